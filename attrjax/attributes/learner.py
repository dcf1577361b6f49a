"""What an attribute is learned with: the parts that learn, the loss, and the file at the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, Int, Key

from attrjax.attributes.base import Base, read_reference
from attrjax.attributes.conditioning import (
    FUSIONS,
    Word,
    attribute_vectors,
    context_of,
    init_conditioning,
    make_filter,
    new_word,
    see,
)
from attrjax.attributes.material import material_from
from attrjax.attributes.partition import Partition, join, rules_of, split
from attrjax.attributes.recognition import find_filters, recognized
from attrjax.checkpoints.attribute import ATTRIBUTES, Attribute
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.data.references import Reference
from attrjax.diffusion.guidance import check_guidance
from attrjax.diffusion.losses import check_timesteps, denoising_losses
from attrjax.diffusion.schedule import sampler_for, schedule_from_config
from attrjax.models.adapters import bind
from attrjax.prefetch import side_by_side
from attrjax.runs import plain
from attrjax.training import make_optimizer

# What a run's key is folded with, so that no two uses share random numbers; ``fit.STEPS`` is another.
DATA, PRIOR, INIT = range(3)
# What pairs show: the attribute with the other one destroyed, or the reference as it is.
PAIRS = ("destroyed", "whole")
# float16's gradients would need a scaled loss.
DTYPES = ("float32", "bfloat16")
PAINT_STRENGTH = 0.4  # on the bundled base
HERE = "{}"  # where a probe's prompt has the placeholder


class Learner(NamedTuple):
    """What does not change while an attribute is learned.

    Attributes:
        pipeline: the untuned base.
        digest: of its weights.
        reference: the picture.
        word: its placeholder.
        filter: the attribute's.
        fusion: how what it finds enters prompts, one of ``FUSIONS``.
        partition: of the UNet at the beginning.
        states, weight: what the filter reads of the reference itself.
        begun: parameters of filter and fusion to begin with.
        recognizes: whether those were learned before, on other pictures.
        other: embeddings of the reference's other attribute, where the base has a filter for it.
    """

    pipeline: Pipeline
    digest: str
    reference: Reference
    word: Word
    filter: nn.Module
    fusion: str
    partition: Partition
    states: Float[Array, "1 n c"]
    weight: Float[Array, "1 n"]
    begun: dict[str, Any]
    recognizes: bool
    other: Float[np.ndarray, "k d"] | None


def check_config(config: Mapping[str, Any]) -> None:
    """Whether a config fits itself, as far as that is seen without a base.

    Raises:
        ValueError: it does not.
    """
    if config["attribute"] not in ATTRIBUTES:
        raise ValueError(f"attribute={config['attribute']!r} must be one of {', '.join(ATTRIBUTES)}")
    if config["steps"] and not 0 < config["probe"]["every"] <= config["steps"]:
        raise ValueError(
            f"probe.every={config['probe']['every']} must be at least 1 and at most steps={config['steps']}: "
            "what is measured decides which step is kept"
        )
    if config["dtype"] not in DTYPES:
        raise ValueError(f"dtype={config['dtype']!r} must be one of {', '.join(DTYPES)}")
    if config["steps"]:
        make_optimizer(steps=config["steps"], **config["optimizer"])
    check_guidance(config["guidance_interval"], config["guidance_rescale"])
    if not (0 <= config["paint_strength"] <= 1 or config["paint_strength"] == -1):
        raise ValueError(
            f"paint_strength={config['paint_strength']} must be from 0 to 1, or -1 for what suits the base"
        )
    if config["attribute"] == "shape" and config["paint_strength"] > 0:
        raise ValueError("paint_strength is of appearances: a shape has no material to paint with")
    if config["patience"] < 0:
        raise ValueError(f"patience={config['patience']} must be a number of probes, or 0 for no end by them")
    if config["fusion"] not in FUSIONS:
        raise ValueError(f"fusion={config['fusion']!r} must be one of {', '.join(FUSIONS)}")
    if config["pairs"] not in PAIRS:
        raise ValueError(f"pairs={config['pairs']!r} must be one of {', '.join(PAIRS)}")
    if not 0 <= config["crossed"] <= 1:
        raise ValueError(f"crossed={config['crossed']} must be a share of the pairs, from 0 to 1")
    if config["prior"]["count"] and not (config["prior"]["prompts"] and config["prior"]["objects"]):
        raise ValueError("prior.prompts and prior.objects must name one each at least, or prior.count be 0")
    for prompt in config["prior"]["prompts"]:
        if config["crossed"] and HERE not in prompt:
            raise ValueError(
                f"the prior's prompt {prompt!r} has no {HERE}, where its objects and the placeholder stand: "
                "add it, or cross no pairs with --config.crossed=0"
            )
    for prompt in config["probe"]["prompts"]:
        if HERE not in prompt:
            raise ValueError(f"the probe's prompt {prompt!r} has no {HERE}, where the placeholder stands")


def make_learner(config: Mapping[str, Any], base: Base) -> Learner:
    """See the config's reference, and make ready what is learned of it.

    Raises:
        ValueError, FileNotFoundError: the reference cannot be used, or the config does not fit the base.
    """
    key = jax.random.fold_in(jax.random.key(config["seed"]), INIT)
    pipeline = base.pipeline
    assert pipeline.image_encoder is not None
    reference = read_reference(config, base)
    fusion = config["fusion"]
    word = new_word(pipeline, config["placeholder"], config["initial"], config["num_tokens"], fusion)
    filter_ = make_filter(config["filter"], pipeline, config["num_tokens"])
    rules = rules_of(config["partition"], config["rule"])
    partition = split(pipeline.unet.params, rules, jax.random.fold_in(key, 0))
    states, weight = see(
        pipeline.image_encoder, jnp.asarray(reference.picture[None]), jnp.asarray(reference.mask[None])
    )
    saved, other = find_filters(config, base.path)
    if saved:
        begun = saved.params
    else:
        begun = init_conditioning(jax.random.fold_in(key, 1), filter_, states, weight, fusion)
    # What prompts read when they are encoded is no word that could stand in a negative prompt.
    sayable = other if other and other.fusion == "placeholder" else None
    if not saved and not config["steps"]:
        raise ValueError(
            f"steps=0 learns nothing, and {base.path} has no filter that recognizes the "
            f"{config['attribute']} of a picture (configs/attrworld/filters.py trains one): give "
            "--config.steps"
        )
    return Learner(
        pipeline=pipeline,
        digest=base.digest,
        reference=reference,
        word=word,
        filter=filter_,
        fusion=fusion,
        partition=partition,
        states=states,
        weight=weight,
        begun=begun,
        recognizes=saved is not None,
        other=recognized(sayable, pipeline, states, weight) if sayable else None,
    )


def first_params(learner: Learner) -> dict[str, Any]:
    """What is trained, before it is: ``filter``, ``fusion``, and the UNet's ``unet`` and ``adapter``."""
    partition = learner.partition
    return {**learner.begun, "unet": partition.trainable, "adapter": partition.adapter}


def frozen_of(config: Mapping[str, Any], learner: Learner) -> dict[str, Any]:
    """What the loss uses and does not train, the same for all references of a base and a config.

    It is in the type that the networks compute in, for it is only read; what is tuned stays float32.
    """
    dtype = learner.pipeline.unet.module.dtype

    def read_only(tree: Any) -> Any:
        if dtype == jnp.float32:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, side_by_side(lambda leaf: jnp.asarray(leaf, dtype), leaves))

    frozen = {
        "unet": read_only(learner.partition.frozen),
        "text": read_only(learner.pipeline.text_encoder.params),
        "origin": jnp.asarray(learner.word.origin),
    }
    if len(_edges(config)) > 2:
        frozen["untuned"] = read_only(learner.partition.trainable)
    return frozen


def begun_of(learner: Learner) -> Float[Array, "..."]:
    """What ``attribute_vectors`` are kept near: those that the filter begins with, [1, k, d]; the initial
    word, [d], where that was never trained and they are embeddings.
    """
    if not learner.recognizes and learner.fusion == "placeholder":
        return jnp.asarray(learner.word.origin)
    return vectors_of(learner.begun, learner)


def vectors_of(params: Any, learner: Learner) -> Float[Array, "1 k d"]:
    """``attribute_vectors`` of the reference itself.

    Args:
        params: of filter and fusion.
        learner: what does not change.
    """
    origin = jnp.asarray(learner.word.origin)
    return attribute_vectors(params, learner.filter, origin, learner.states, learner.weight, learner.fusion)


def loss_of(config: Mapping[str, Any], learner: Learner) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """``loss_fn`` of ``training.make_step``: the denoising loss of pairs, and that of the prior.

    ``trained_as_sampled``: a step's timesteps are either all within ``sampling_timesteps``, or all beyond,
    where the UNet is the base's own and the filter alone learns, what to say to it.

    Of the learner it holds only what all references of a base and a config have in common; ``frozen`` is
    that of ``frozen_of`` with ``begun``, of ``begun_of``.

    Raises:
        ValueError: ``timesteps`` are none of the base's.
    """
    pipeline, filter_, fusion = learner.pipeline, learner.filter, learner.fusion
    schedule = schedule_from_config(pipeline.scheduler, sampler_for(pipeline.scheduler))
    rows, edges = config["batch_size"], _edges(config)
    check_timesteps(schedule, edges[0], edges[-1])

    def loss_fn(
        params: Any, batch: dict[str, Any], key: Key[Array, ""], frozen: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        origin, text = frozen["origin"], pipeline.text_encoder
        vectors = attribute_vectors(params, filter_, origin, batch["states"], batch["weight"], fusion)
        clean = batch["latents"]
        more = len(clean) - rows
        vectors = jnp.pad(vectors, ((0, more), (0, 0), (0, 0)))
        ids, places = batch["ids"], batch["places"]
        context = context_of(text, frozen["text"], ids, places, vectors, params["fusion"], origin, fusion)
        weights: Any = params["unet"]
        strength: Any = 1.0
        timesteps: Any = (edges[0], edges[-1])
        if len(edges) > 2:
            choosing, key = jax.random.split(key)
            acts, timesteps = _drawn_range(choosing, edges, config["sampling_timesteps"])
            weights = jax.tree.map(lambda new, old: jnp.where(acts, new, old), weights, frozen["untuned"])
            strength = acts.astype(jnp.float32)
        variables = {"params": join(weights, frozen["unet"])}
        if params["adapter"]:
            variables["adapters"] = bind(params["adapter"], strength)

        def network(noisy: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Any:
            return pipeline.unet.module.apply(variables, noisy, t, context)

        losses = denoising_losses(
            schedule,
            network,
            clean,
            key,
            timesteps=timesteps,
            offset_noise=config["offset_noise"],
            snr_gamma=config["snr_gamma"] or None,
            mask=jnp.concatenate([batch["mask"], jnp.ones((more, *batch["mask"].shape[1:]))]),
        )
        loss = losses[:rows].mean()
        metrics = {"pairs": loss}
        if more:
            metrics["prior"] = losses[rows:].mean()
            loss = loss + config["prior"]["weight"] * metrics["prior"]
        size = config["code_weight"] * jnp.mean((vectors[:rows] - frozen["begun"]) ** 2)
        return loss + size, metrics

    return loss_fn


def _edges(config: Mapping[str, Any]) -> list[int]:
    """Timesteps between which what was tuned is trained, or is not: two where it always is."""
    low, high = config["timesteps"]
    inner = config["sampling_timesteps"] if config["trained_as_sampled"] else ()
    return [low, *sorted(t for t in inner if low < t < high), high]


def _drawn_range(
    key: Key[Array, ""], edges: Sequence[int], acting: tuple[int, int]
) -> tuple[Bool[Array, ""], tuple[Int[Array, ""], Int[Array, ""]]]:
    """Two neighbours of ``edges``, drawn as often as timesteps lie between them; and whether there what was
    tuned acts.
    """
    bounds = jnp.asarray(edges)
    t = jax.random.randint(key, (), edges[0], edges[-1])
    index = jnp.searchsorted(bounds, t, side="right") - 1
    return (acting[0] <= t) & (t < acting[1]), (bounds[index], bounds[index + 1])


def paint_strength(config: Mapping[str, Any]) -> float:
    """How much of a painted picture is made anew; 0 where none is painted.

    The segmenter that finds what is painted knows pictures like those of the bundled base.
    """
    if config["attribute"] == "shape":
        return 0.0
    suits = 0.0 if config["base"] else PAINT_STRENGTH
    return config["paint_strength"] if config["paint_strength"] >= 0 else suits


def to_attribute(params: Any, learner: Learner, config: Mapping[str, Any], *, tuned: bool) -> Attribute:
    """What a file keeps of trained parameters: the reference itself is what the filter then sees.

    Args:
        params: of filter, fusion and the UNet's part.
        learner: what does not change.
        config: of the run.
        tuned: whether the UNet's part has changed; else it is left out.
    """
    weights = flatten_dict(params["unet"], sep="/")
    adapter = flatten_dict(params["adapter"], sep="/")
    keep = (
        *("filter", "partition", "rule", "steps", "batch_size", "optimizer", "seed", "num_tokens", "fusion"),
        *("pairs", "draw", "crossed", "timesteps", "sampling_timesteps", "trained_as_sampled"),
        *("guidance_interval", "guidance_rescale"),
    )
    paint, reference = paint_strength(config), learner.reference
    return Attribute(
        attribute=config["attribute"],
        word=learner.word.text,
        initial=config["initial"],
        base=learner.digest,
        vectors=np.asarray(vectors_of(params, learner)[0]),
        origin=learner.word.origin,
        other=learner.other,
        weights={name: np.asarray(leaf) for name, leaf in weights.items() if tuned},
        adapter={name: np.asarray(leaf) for name, leaf in adapter.items() if tuned},
        recipe={name: plain(config[name]) for name in keep}
        | {"paint_strength": paint}
        | {"example": config["probe"]["prompts"][0].replace(HERE, learner.word.text)},
        fusion=flatten_dict(jax.device_get(params["fusion"]), sep="/") if learner.fusion == "cross" else None,
        material=material_from(reference.picture, reference.mask) if paint else None,
    )
