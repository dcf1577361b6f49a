"""Batches to learn an attribute from: pairs of the reference, and the base's own pictures beside them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from attrjax.attributes import pairs
from attrjax.attributes.conditioning import Word, see
from attrjax.attributes.fusion import places_of
from attrjax.attributes.partition import Partition
from attrjax.attrworld.scenes import generator_of
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.data.prompts import tokenize
from attrjax.data.references import Reference
from attrjax.generate import Job, Settings, latent_scale, make_pictures, vae_factor
from attrjax.models.vae import scale_latents

# What the run's key is folded with, so that no two uses share random numbers.
DATA, PRIOR = range(2)
# What pairs show: the attribute with the other one destroyed, or the reference as it is.
PAIRS = ("destroyed", "whole")


class Learner(NamedTuple):
    """What does not change while an attribute is learned.

    Attributes:
        pipeline: the untuned base.
        digest: of its weights.
        reference: the picture.
        word: its placeholder.
        filter: the attribute's.
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
    partition: Partition
    states: Float[Array, "1 n c"]
    weight: Float[Array, "1 n"]
    begun: dict[str, Any]
    recognizes: bool
    other: Float[np.ndarray, "k d"] | None


def batches(
    config: Mapping[str, Any], learner: Learner, root: Key[Array, ""]
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of pairs from the reference, and of pictures of the base itself.

    Each row has latents of a target, where its error counts, and tokens of a prompt; rows of pairs have what
    the filter reads of the view, rows of the base's own pictures (prior preservation, Ruiz et al. 2023,
    section 3.2) have no placeholder in their prompts.

    Args:
        config: of the run.
        learner: what is learned from.
        root: the run's root key.
    """
    pipeline, reference, word = learner.pipeline, learner.reference, learner.word
    attribute, rows = config["attribute"], config["batch_size"]
    length = pipeline.text_encoder.module.max_position_embeddings
    factor = vae_factor(pipeline)
    whole = config["pairs"] == "whole"
    make = {"shape": pairs.shape_pair, "appearance": pairs.appearance_pair}[attribute]
    make = pairs.whole_pair if whole else make
    vae, encoder = pipeline.vae, pipeline.image_encoder
    assert encoder is not None

    @jax.jit
    def encode(pictures: Float[Array, "b h w 3"], key: Array) -> Float[Array, "b h2 w2 c"]:
        moments: Any = vae.module.apply({"params": vae.params}, pictures, method="encode")
        return scale_latents(moments.sample(key), *latent_scale(pipeline))

    @jax.jit
    def draw(key: Array) -> tuple[dict[str, Array], Any]:
        keys, noise = jax.random.split(jax.random.fold_in(key, 0), rows), jax.random.fold_in(key, 1)
        pair = jax.vmap(lambda k: make(k, reference.picture, reference.mask))(keys)
        states, weight = see(encoder, pair.view, pair.view_mask)
        small = (rows, pair.target_mask.shape[1] // factor, pair.target_mask.shape[2] // factor)
        mask = jnp.clip(jax.image.resize(pair.target_mask, small, "linear", antialias=True), 0, 1)
        outside = config["backdrop_weight"]
        batch = {
            "latents": encode(pair.target, noise),
            "mask": outside + (1 - outside) * mask,
            "states": states,
            "weight": weight,
        }
        return batch, pair.drawn

    own = _prior(config, learner, encode, jax.random.fold_in(root, PRIOR))

    def batch_at(step: int) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.fold_in(root, DATA), step)
        batch, drawn = draw(key)
        generator = generator_of(jax.random.fold_in(key, 2))
        if whole:
            prompts = [f"an object in the {attribute} of {word.text}"] * rows
        else:
            prompts = pairs.say(attribute, jax.device_get(drawn), word.text, generator)
        if own is not None:
            chosen = generator.integers(0, len(own["latents"]), config["prior"]["rows"])
            prompts = [*prompts, *(own["prompts"][i] for i in chosen)]
            batch["latents"] = jnp.concatenate([batch["latents"], own["latents"][chosen]])
        ids = tokenize(word.tokenizer, prompts, length)
        return {**batch, "ids": ids, "places": places_of(ids, word.ids)}

    return batch_at


def _prior(
    config: Mapping[str, Any], learner: Learner, encode: Callable, key: Key[Array, ""]
) -> dict[str, Any] | None:
    """Pictures that the base makes of the prior's prompts, encoded; None where there are to be none."""
    count, prompts = config["prior"]["count"], config["prior"]["prompts"]
    if not count or not config["prior"]["rows"]:
        return None
    settings = Settings(**{name: config["probe"][name] for name in ("steps", "guidance", "batch_size")})
    said: Sequence[str] = [prompts[i % len(prompts)] for i in range(count)]
    first = int(np.asarray(jax.random.randint(key, (), 0, 2**30)))
    jobs = [Job(text, first + i) for i, text in enumerate(said)]
    made = np.stack(list(make_pictures(learner.pipeline, jobs, settings))).astype(np.float32) / 127.5 - 1
    size = settings.batch_size
    latents = [encode(made[i : i + size], jax.random.fold_in(key, 1 + i)) for i in range(0, len(made), size)]
    return {"latents": np.concatenate(latents), "prompts": said}
