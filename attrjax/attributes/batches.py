"""Batches to learn an attribute from: pairs of the reference, and the base's own pictures beside them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from attrjax.attributes import pairs
from attrjax.attributes.base import Base, settings_of
from attrjax.attributes.conditioning import see
from attrjax.attributes.fusion import places_of
from attrjax.attributes.learner import DATA, HERE, PRIOR, Learner
from attrjax.attributes.pair_prompts import framed, prior_prompts, say
from attrjax.attributes.sources import continued, pure
from attrjax.attrworld.judges import LEAST_FOREGROUND, foreground
from attrjax.attrworld.scenes import generator_of
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.compiling import quick
from attrjax.data.pictures import to_floats
from attrjax.data.prompts import tokenize
from attrjax.generate import Job, latent_scale, make_pictures, vae_factor
from attrjax.models.vae import scale_latents
from attrjax.runs import plain


class Tools(NamedTuple):
    """Functions that are compiled once for all references.

    Attributes:
        encode: (pictures [b, H, W, 3] in [-1, 1], key) to latents.
        draw: (key, picture, mask, what the last pairs' targets are of) to a batch's rows of pairs, and what
            was drawn of them.
        draw_shapes: the same without values, and without compiling anything.
    """

    encode: Callable[..., Float[Array, "b h w c"]]
    draw: Callable[..., tuple[dict[str, Array], Any]]
    draw_shapes: Callable[..., tuple[dict[str, jax.ShapeDtypeStruct], Any]]


def make_tools(config: Mapping[str, Any], pipeline: Pipeline) -> Tools:
    """The tools of a config and a base."""
    attribute, rows = config["attribute"], config["batch_size"]
    factor = vae_factor(pipeline)
    make: Callable[..., pairs.Pair] = functools.partial(
        {"shape": pairs.shape_pair, "appearance": pairs.appearance_pair}[attribute], **plain(config["draw"])
    )
    make = pairs.whole_pair if config["pairs"] == "whole" else make
    vae, encoder = pipeline.vae, pipeline.image_encoder
    assert encoder is not None
    # Weights are arguments: as constants each program, and each compiled file of one, would hold a copy.
    weights = jax.device_put({"vae": vae.params, "encoder": encoder.params})

    def encode(weights: Any, pictures: Float[Array, "b h w 3"], key: Array) -> Float[Array, "b h2 w2 c"]:
        moments: Any = vae.module.apply({"params": weights["vae"]}, pictures, method="encode")
        return scale_latents(moments.sample(key), *latent_scale(pipeline))

    def draw(
        weights: Any,
        key: Array,
        picture: Float[Array, "h w 3"],
        mask: Float[Array, "h w"],
        given: Array | None = None,
    ) -> tuple[dict[str, Array], Any]:
        keys, noise = jax.random.split(jax.random.fold_in(key, 0), rows), jax.random.fold_in(key, 1)
        free = rows - (0 if given is None else len(given))
        parts = [jax.vmap(lambda k: make(k, picture, mask))(keys[:free])] if free else []
        if given is not None:
            parts.append(jax.vmap(lambda k, g: make(k, picture, mask, g))(keys[free:], given))
        pair = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        states, weight = see(encoder._replace(params=weights["encoder"]), pair.view, pair.view_mask)
        small = (rows, pair.target_mask.shape[1] // factor, pair.target_mask.shape[2] // factor)
        small_mask = jnp.clip(jax.image.resize(pair.target_mask, small, "linear", antialias=True), 0, 1)
        outside = config["backdrop_weight"]
        batch = {
            "latents": encode(weights, pair.target, noise),
            "mask": outside + (1 - outside) * small_mask,
            "states": states,
            "weight": weight,
        }
        return batch, pair.drawn

    compiled = functools.partial(jax.jit, compiler_options=quick())
    return Tools(
        encode=functools.partial(compiled(encode), weights),
        draw=functools.partial(compiled(draw), weights),
        draw_shapes=functools.partial(jax.eval_shape, draw, weights),
    )


def batches(
    config: Mapping[str, Any],
    learner: Learner,
    root: Key[Array, ""],
    tools: Tools,
    own: Mapping[str, Any] | None,
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of pairs from the reference, and of pictures of the base itself.

    Each row has latents of a target, where its error counts, and tokens of a prompt; rows of pairs have what
    the filter reads of the view, rows of the base's own pictures (prior preservation, Ruiz et al. 2023,
    section 3.2) have no placeholder in their prompts.

    Args:
        config: of the run.
        learner: what is learned from.
        root: the run's root key.
        tools: of ``make_tools``.
        own: of ``prior``.
    """
    reference, word = learner.reference, learner.word
    attribute, rows = config["attribute"], config["batch_size"]
    length = learner.pipeline.text_encoder.module.max_position_embeddings
    known = own["known"] if own is not None else []
    crossed = int(config["crossed"] * rows) if len(known) and config["pairs"] != "whole" else 0

    def batch_at(step: int) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.fold_in(root, DATA), step)
        generator = generator_of(jax.random.fold_in(key, 2))
        given, said = None, []
        if own is not None and crossed:
            which = generator.integers(0, len(known), crossed)
            given, said = known[which], [own["crossed"][i] for i in which]
        batch, drawn = tools.draw(key, reference.picture, reference.mask, given)
        if config["pairs"] == "whole":
            prompts = [f"an object in the {attribute} of {word.text}"] * rows
        else:
            drawn = jax.device_get(drawn)
            free = jax.tree.map(lambda leaf: leaf[: rows - crossed], drawn)
            prompts = say(attribute, free, word.text, generator)
            for one, backdrop in zip(said, drawn.backdrop[rows - crossed :], strict=True):
                prompts.append(framed(one.replace(HERE, word.text), backdrop, generator))
        if own is not None:
            chosen = generator.integers(0, len(own["latents"]), config["prior"]["rows"])
            prompts = [*prompts, *(own["prompts"][i] for i in chosen)]
            batch["latents"] = jnp.concatenate([batch["latents"], own["latents"][chosen]])
        ids = tokenize(word.tokenizer, prompts, length)
        return {**batch, "ids": ids, "places": places_of(ids, word.ids)}

    return batch_at


def batch_like(config: Mapping[str, Any], learner: Learner, tools: Tools) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what ``batches`` gives, before anything is drawn."""
    reference, word = learner.reference, learner.word
    drawn, _ = tools.draw_shapes(jax.random.key(0), reference.picture, reference.mask)
    more = config["prior"]["rows"] if config["prior"]["count"] else 0
    rows, *rest = drawn["latents"].shape
    latents = jax.ShapeDtypeStruct((rows + more, *rest), drawn["latents"].dtype)
    length = learner.pipeline.text_encoder.module.max_position_embeddings
    ids = tokenize(word.tokenizer, [word.text] * (rows + more), length)
    said = jax.eval_shape(lambda: {"ids": jnp.asarray(ids), "places": jnp.asarray(places_of(ids, word.ids))})
    return {**drawn, "latents": latents, **said}


def prior(config: Mapping[str, Any], base: Base, tools: Tools, root: Key[Array, ""]) -> dict[str, Any] | None:
    """Pictures that the base makes of the prior's prompts, encoded; None where there are to be none.

    Returns:
        ``latents`` [n, h, w, c] and their ``prompts``; and what pairs can be crossed with, of the pictures in
        which a foreground is found: what is ``known`` to the base, for a shape its surface [k, H, W, 3] in
        [0, 1], continued over all of the picture, for an appearance its form [k, H, W] in [0, 1]; and
        ``crossed``, the k prompts of pairs that have it. k is 0 where none are to be crossed.
    """
    key = jax.random.fold_in(root, PRIOR)
    count = config["prior"]["count"]
    if not count or not config["prior"]["rows"]:
        return None
    said, crossed = prior_prompts(config)
    settings = settings_of(config, base.pipeline)
    first = int(np.asarray(jax.random.randint(key, (), 0, 2**30)))
    jobs = [Job(text, first + i) for i, text in enumerate(said)]
    made = to_floats(np.stack(list(make_pictures(base.pipeline, jobs, settings))))
    size = settings.batch_size
    latents = [
        tools.encode(made[i : i + size], jax.random.fold_in(key, 1 + i)) for i in range(0, len(made), size)
    ]
    own = {"latents": np.concatenate(latents), "prompts": said, "known": [], "crossed": []}
    if not config["crossed"]:
        return own
    masks = np.stack([foreground(base.judges, picture) for picture in made])
    found = np.flatnonzero(masks.mean((1, 2)) > LEAST_FOREGROUND)
    known = np.asarray(_surfaces(made, masks)) if config["attribute"] == "shape" else masks
    return {**own, "known": known[found], "crossed": [crossed[i] for i in found]}


@jax.jit
@jax.vmap
def _surfaces(picture: Float[Array, "h w 3"], mask: Float[Array, "h w"]) -> Float[Array, "h w 3"]:
    """What a foreground is made of, everywhere; pictures in [-1, 1] to colours in [0, 1]."""
    return continued((picture + 1) / 2, pure(mask))
