"""The task ``customize``: one attribute of one picture is learned into a small file.

Read from top to bottom: the reference is seen and its attribute's filter made; the UNet is split; pairs that
destroy the other attribute are drawn; the step trains filter, fusion and the UNet's part on them; every few
steps pictures are made with and without what was learned, and what they have of the reference decides which
step is kept.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, Key, UInt8

from attrjax.attributes import measure
from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.batches import DATA, PAIRS, PRIOR, Learner, batches
from attrjax.attributes.conditioning import (
    attribute_vectors,
    context_of,
    init_conditioning,
    make_filter,
    new_word,
    see,
)
from attrjax.attributes.measure import Probe
from attrjax.attributes.partition import describe, join, rules_of, split
from attrjax.attributes.recognition import find_filters, recognized
from attrjax.attributes.report import write_report
from attrjax.attrworld.bundled import REFERENCES, base_or_bundled
from attrjax.attrworld.judges import load_judges, segment
from attrjax.checkpoints.attribute import (
    ATTRIBUTES,
    FILE_NAME,
    Attribute,
    load_attribute,
    save_attribute,
    weights_digest,
)
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.data.references import load_reference
from attrjax.diffusion.losses import denoising_losses
from attrjax.diffusion.schedule import sampler_for, schedule_from_config
from attrjax.fit import begin, fit
from attrjax.generate import Settings, latent_shape, make_jobs, make_pictures, vae_factor
from attrjax.models.adapters import bind
from attrjax.runs import peak_memory, plain, timed, write_record
from attrjax.training import TrainState

INIT = 1 + max(DATA, PRIOR)  # what the run's key is folded with, beside what ``batches`` folds it with
PROBES = "probes.jsonl"
HERE = "{}"  # where a probe's prompt has the placeholder


def customize(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Learn the config's attribute of its reference, and write it to ``workdir/attribute.safetensors``.

    With 0 steps nothing is tuned: the file holds what the base's own filter recognizes in the reference.

    The run directory also gets ``index.html``, which shows what was learned, ``probes.jsonl`` with what was
    measured, and what every training run has. With ``resume`` it goes on from the newest checkpoint.

    Raises:
        ValueError, FileNotFoundError: the reference, its mask or the base cannot be used, or the config does
            not fit itself.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    if config["attribute"] not in ATTRIBUTES:
        raise ValueError(f"attribute={config['attribute']!r} must be one of {', '.join(ATTRIBUTES)}")
    if config["steps"] and not 0 < config["probe"]["every"] <= config["steps"]:
        raise ValueError(
            f"probe.every={config['probe']['every']} must be at least 1 and at most steps={config['steps']}: "
            "what is measured decides which step is kept"
        )
    if config["pairs"] not in PAIRS:
        raise ValueError(f"pairs={config['pairs']!r} must be one of {', '.join(PAIRS)}")
    for prompt in config["probe"]["prompts"]:
        if HERE not in prompt:
            raise ValueError(f"the probe's prompt {prompt!r} has no {HERE}, where the placeholder stands")
    timings: dict[str, float] = {}
    started = time.monotonic()
    with timed(timings, "load"):
        key = jax.random.fold_in(jax.random.key(config["seed"]), INIT)
        learner = _learner(config, key)
        similarity = _similarity(config, learner)
    # What cannot be learned leaves no run behind that the next attempt would have to go on with.
    directory, root = begin(config, workdir, resume)
    if config["steps"]:
        logging.info("%s", "\n".join(describe(learner.partition)))

    params = {
        **learner.begun,
        "unet": learner.partition.trainable,
        "adapter": learner.partition.adapter,
    }
    settings = Settings(**{name: config["probe"][name] for name in ("steps", "guidance", "batch_size")})
    asked, seeds = config["probe"]["prompts"], config["probe"]["seeds"]
    jobs, plain_jobs = (
        make_jobs([prompt.replace(HERE, word) for prompt in asked], seeds)
        for word in (learner.word.text, config["initial"])
    )
    with timed(timings, "before and after"):
        before = np.stack(list(make_pictures(learner.pipeline, plain_jobs, settings)))
    unmoved = similarity(before)

    def with_attribute(attribute: Attribute) -> UInt8[np.ndarray, "n h w 3"]:
        tuned, adapters, stages = apply_attributes(
            learner.pipeline, [(attribute, 1.0)], digest=learner.digest
        )
        return np.stack(list(make_pictures(tuned, jobs, settings, adapters=adapters, stages=stages)))

    def look(step: int, params: Any) -> None:
        with timed(timings, "probe, of that"):
            attribute = to_attribute(jax.device_get(params), learner, config, tuned=step > 0)
            found = measure.probe(config["attribute"], step, unmoved, similarity(with_attribute(attribute)))
            # A run that goes on measures again what was measured after its checkpoint.
            earlier = [one for one in read_probes(directory) if one.step != step]
            if found.score > max((one.score for one in earlier), default=-np.inf):
                save_attribute(directory, attribute)
            with (directory / PROBES).open("a") as file:
                file.write(json.dumps({**found._asdict(), "score": found.score}) + "\n")
        logging.info(
            "step %d: gain %.3f, leakage %.3f, score %.3f", step, found.gain, found.leakage, found.score
        )

    with timed(timings, "train and probe"):
        # What the filter recognizes is the first candidate.
        if learner.recognizes and not any(one.step == 0 for one in read_probes(directory)):
            look(0, params)
        if config["steps"] and not _tune(config, learner, directory, root, params, look, timings):
            return
    probes = read_probes(directory)
    best = max(probes, key=lambda one: one.score)
    with timed(timings, "before and after"):
        after = with_attribute(load_attribute(directory))
    timings["all"] = round(time.monotonic() - started, 3)
    size = (directory / FILE_NAME).stat().st_size
    results = {
        "chosen": best._asdict() | {"score": best.score},
        "bytes": size,
        "peak_memory": peak_memory(),
        "timings": timings,
        "mask": learner.reference.origin,
        "tuned": describe(learner.partition) if best.step else ["tuned: nothing, the filter recognized it"],
    }
    write_record(directory, config, {"results": results})
    write_report(
        directory,
        config,
        learner.reference,
        [(job.prompt, job.seed) for job in jobs],
        before,
        after,
        probes,
        results,
    )
    logging.info(
        "the step with the best score is %d: gain %.3f, leakage %.3f; wrote %s (%.2f MB) and index.html",
        *(best.step, best.gain, best.leakage, directory / FILE_NAME, size / 1e6),
    )


def _tune(
    config: Mapping[str, Any],
    learner: Learner,
    directory: Path,
    root: Key[Array, ""],
    params: Any,
    look: Callable[[int, Any], None],
    timings: dict[str, float],
) -> bool:
    """Train, and look every few steps; false where the time was up before the end."""
    with timed(timings, "prior, of that"):
        batch_at = batches(config, learner, root)
    begun = attribute_vectors(
        learner.begun, learner.filter, jnp.asarray(learner.word.origin), learner.states, learner.weight
    )
    frozen = {
        "unet": learner.partition.frozen,
        "text": learner.pipeline.text_encoder.params,
        "origin": jnp.asarray(learner.word.origin),
        "begun": begun if learner.recognizes else jnp.asarray(learner.word.origin),
    }

    def look_at(step: int, state: TrainState) -> None:
        look(step, state.params)

    every = (config["probe"]["every"], look_at)
    loss_fn = loss_of(config, learner)
    return fit(config, directory, root, params, loss_fn, batch_at, frozen=frozen, every=every) is not None


def loss_of(config: Mapping[str, Any], learner: Learner) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """``loss_fn`` of ``training.make_step``: the denoising loss of pairs, and that of the prior."""
    pipeline = learner.pipeline
    schedule = schedule_from_config(pipeline.scheduler, sampler_for(pipeline.scheduler))
    rows = config["batch_size"]

    def loss_fn(
        params: Any, batch: dict[str, Any], key: Key[Array, ""], frozen: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        vectors = attribute_vectors(
            params, learner.filter, frozen["origin"], batch["states"], batch["weight"]
        )
        clean = batch["latents"]
        more = len(clean) - rows
        vectors = jnp.pad(vectors, ((0, more), (0, 0), (0, 0)))
        context = context_of(pipeline.text_encoder, frozen["text"], batch["ids"], batch["places"], vectors)
        variables = {"params": join(params["unet"], frozen["unet"])}
        if params["adapter"]:
            variables["adapters"] = bind(params["adapter"])

        def network(noisy: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Any:
            return pipeline.unet.module.apply(variables, noisy, t, context)

        losses = denoising_losses(
            schedule,
            network,
            clean,
            key,
            timesteps=config["timesteps"],
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


def to_attribute(params: Any, learner: Learner, config: Mapping[str, Any], *, tuned: bool) -> Attribute:
    """What a file keeps of trained parameters: the reference itself is what the filter then sees.

    Args:
        params: of filter, fusion and the UNet's part.
        learner: what does not change.
        config: of the run.
        tuned: whether the UNet's part has changed; else it is left out.
    """
    vectors = attribute_vectors(
        params, learner.filter, jnp.asarray(learner.word.origin), learner.states, learner.weight
    )
    weights = flatten_dict(params["unet"], sep="/")
    adapter = flatten_dict(params["adapter"], sep="/")
    keep = (
        *("filter", "partition", "rule", "steps", "batch_size", "optimizer", "seed", "num_tokens"),
        "sampling_timesteps",
    )
    return Attribute(
        attribute=config["attribute"],
        word=learner.word.text,
        initial=config["initial"],
        base=learner.digest,
        vectors=np.asarray(vectors[0]),
        origin=learner.word.origin,
        other=learner.other,
        weights={name: np.asarray(leaf) for name, leaf in weights.items() if tuned},
        adapter={name: np.asarray(leaf) for name, leaf in adapter.items() if tuned},
        recipe={name: plain(config[name]) for name in keep}
        | {"example": config["probe"]["prompts"][0].replace(HERE, learner.word.text)},
    )


def read_probes(directory: Path) -> list[Probe]:
    """What a run has measured, by step; of a step that was measured twice, the last."""
    path = directory / PROBES
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {line["step"]: Probe(**{name: line[name] for name in Probe._fields}) for line in lines}
    return [found[step] for step in sorted(found)]


def _learner(config: Mapping[str, Any], key: Key[Array, ""]) -> Learner:
    base = find_base(base_or_bundled(config["base"]), config["variant"] or None)
    pipeline = load_pipeline(base, variant=config["variant"] or None)
    if pipeline.image_encoder is None:
        raise ValueError(
            f"{base} has no image_encoder, which the reference is seen with: add a CLIP vision tower"
        )
    factor = vae_factor(pipeline)
    side = latent_shape(pipeline, Settings(height=config["size"], width=config["size"]), [])[0] * factor
    judges = load_judges()
    reference = load_reference(
        config["reference"] or REFERENCES / f"{config['attribute']}.png",
        mask=config["mask"] or None,
        size=side,
        segmenter=lambda picture: _segment(judges, picture),
    )
    word = new_word(pipeline, config["placeholder"], config["initial"], config["num_tokens"])
    filter_ = make_filter(config["filter"], pipeline, config["num_tokens"])
    rules = rules_of(config["partition"], config["rule"])
    partition = split(pipeline.unet.params, rules, jax.random.fold_in(key, 0))
    states, weight = see(
        pipeline.image_encoder, jnp.asarray(reference.picture[None]), jnp.asarray(reference.mask[None])
    )
    saved, other = find_filters(config, base)
    begun = saved.params if saved else init_conditioning(jax.random.fold_in(key, 1), filter_, states, weight)
    if not saved and not config["steps"]:
        raise ValueError(
            f"steps=0 learns nothing, and {base} has no filter that recognizes the {config['attribute']} of "
            "a picture (configs/attrworld/filters.py trains one): give --config.steps"
        )
    return Learner(
        pipeline=pipeline,
        digest=weights_digest(base, config["variant"] or None),
        reference=reference,
        word=word,
        filter=filter_,
        partition=partition,
        states=states,
        weight=weight,
        begun=begun,
        recognizes=saved is not None,
        other=recognized(other, pipeline, states, weight) if other else None,
    )


def _similarity(config: Mapping[str, Any], learner: Learner) -> measure.Similarity:
    judges = load_judges()
    if not config["base"]:
        return measure.judged(judges, learner.reference)
    assert learner.pipeline.image_encoder is not None
    return measure.encoded(
        learner.pipeline.image_encoder, learner.reference, lambda picture: _segment(judges, picture)
    )


def _segment(judges: Any, picture: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """The bundled segmenter's mask, in the picture's size."""
    height, width = picture.shape[:2]
    small = np.asarray(jax.image.resize(picture, (64, 64, 3), "cubic", antialias=True))
    mask = segment(judges, np.clip(small, -1, 1)[None])[0]
    return np.clip(np.asarray(jax.image.resize(mask, (height, width), "linear")), 0, 1)
