"""A base with learned attributes: their words in its vocabulary, their changes in its UNet."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from attrjax.attributes.conditioning import read_across
from attrjax.checkpoints.attribute import OTHER, Attribute
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.checkpoints.textual_inversion import with_words
from attrjax.diffusion.schedule import MAX_TIMESTEP
from attrjax.models.adapters import bind, combine
from attrjax.models.stages import Stage


class Applied(NamedTuple):
    """A base with learned attributes.

    Attributes:
        pipeline: the base with longer vocabulary, what its encoded prompts read of attributes, and the UNet's
            weights of the first stage.
        adapters: bound adapters for ``generate``, of the first stage.
        stages: the UNet's weights and adapters by timestep, for ``generate``; empty where all timesteps have
            the same.
        guidance: how guidance is to act beside the attributes, as fields of ``generate.Settings``.
        paintings: by the words of appearances that are painted (``painting``).
    """

    pipeline: Pipeline
    adapters: dict[str, Any]
    stages: list[Stage]
    guidance: dict[str, Any]
    paintings: dict[str, "Painting"]


class Painting(NamedTuple):
    """What a picture with an appearance is painted with.

    Attributes:
        layout: makes the same without any appearances that are painted, which the form is made with.
        attribute: of which there is material.
        opacity: of the paint, in [0, 1].
        strength: in (0, 1], how much of the painted picture is made anew.
    """

    layout: Callable[[], Applied]
    attribute: Attribute
    opacity: float
    strength: float


def apply_attributes(
    pipeline: Pipeline,
    attributes: Sequence[tuple[Attribute, float]],
    *,
    digest: str,
    timesteps: Sequence[tuple[int, int]] | None = None,
    paint_strength: float | None = None,
    force: bool = False,
) -> Applied:
    """A base that knows learned attributes, each at a strength.

    What was changed adds up, where attributes act at the same timesteps in the same part of the UNet: by
    their recipes shape and appearance do, both in the decoder, at 200 to 750.

    Args:
        pipeline: the base.
        attributes: each with its strength; 1 is as it was learned, and at 0 its word is what it began as.
        digest: ``weights_digest`` of the base.
        timesteps: for each attribute the timesteps [low, high) at which its weights act; the word acts at
            all. None for what the files say.
        paint_strength: of appearances, in [0, 1]; 0 does not paint them, None is what the files say.
        force: apply what was learned on another base, where its shapes allow it.

    Raises:
        ValueError: an attribute belongs to another base, two have one word, shapes do not fit, timesteps are
            no range, or there is nothing to paint with that is to be painted.
    """
    words = [attribute.word for attribute, _ in attributes]
    if len(set(words)) < len(words):
        raise ValueError(
            f"two attributes have the same word ({', '.join(words)}): learn one of them with another "
            "--config.placeholder"
        )
    ranges = timesteps or [sampling_timesteps(attribute) for attribute, _ in attributes]
    for low, high in ranges:
        if not 0 <= low < high <= MAX_TIMESTEP:
            raise ValueError(
                f"an attribute's timesteps ({low}, {high}) must be (low, high) with 0 <= low < high <= "
                f"{MAX_TIMESTEP}"
            )
    base = flatten_dict(pipeline.unet.params, sep="/")
    untouched = pipeline
    for attribute, strength in attributes:
        if attribute.base != digest and not force:
            raise ValueError(
                f"{attribute.word} was learned on a base with the digest {attribute.base[:12]}, and "
                f"{pipeline.path} has {digest[:12]}: use the base that it was learned on, or "
                "--config.force=True"
            )
        for name, leaf in attribute.weights.items():
            if name not in base or base[name].shape != leaf.shape:
                raise ValueError(f"{attribute.word} changes {name}, which this base has not in that shape")
        if attribute.fusion is None:
            known = {attribute.word: attribute.origin + strength * (attribute.vectors - attribute.origin)}
        else:
            known = {attribute.word: attribute.origin[None]}
        if attribute.other is not None:
            known[other_word(attribute.word, attribute.attribute)] = attribute.other
        pipeline = with_words(pipeline, {"text_encoder": known})
        if attribute.fusion is not None:
            number = pipeline.tokenizer.convert_tokens_to_ids(attribute.word)
            reading = functools.partial(_read, attribute, strength, number)
            pipeline = pipeline._replace(fusions=(*pipeline.fusions, reading))
    # What only has a word acts everywhere.
    tuned = [pair for (one, _), pair in zip(attributes, ranges, strict=True) if one.weights or one.adapter]
    edges = sorted({0, *(edge for pair in tuned for edge in pair if edge < MAX_TIMESTEP)}, reverse=True)
    stages = []
    for low in edges:
        now = [
            (attribute, strength if first <= low < last else 0.0)
            for (attribute, strength), (first, last) in zip(attributes, ranges, strict=True)
        ]
        stages.append(Stage(low, *_changed(pipeline.unet.params, now)))
    unet = pipeline.unet._replace(params=stages[0].params)
    adapters = {"unet": stages[0].adapters} if stages[0].adapters else {}
    guidance = guidance_of([attribute for attribute, strength in attributes if strength])
    paintings = _paintings(untouched, attributes, digest, timesteps, paint_strength, force)
    return Applied(
        pipeline._replace(unet=unet), adapters, stages if len(stages) > 1 else [], guidance, paintings
    )


def _paintings(
    pipeline: Pipeline,
    attributes: Sequence[tuple[Attribute, float]],
    digest: str,
    timesteps: Sequence[tuple[int, int]] | None,
    asked: float | None,
    force: bool,
) -> dict[str, Painting]:
    """Of the appearances that act; the arguments are those of ``apply_attributes``."""
    if asked is not None and not 0 <= asked <= 1:
        raise ValueError(
            f"paint_strength={asked} must be from 0 to 1, the share of the steps behind painting"
        )
    strengths = {
        one.word: one.recipe.get("paint_strength", 0.0) if asked is None else asked
        for one, strength in attributes
        if one.attribute == "appearance" and strength > 0
    }
    acting = {one.word: (one, strength) for one, strength in attributes if strengths.get(one.word)}
    for one, _ in acting.values():
        if one.material is None:
            raise ValueError(
                f"the file of {one.word} does not hold its reference's material, which it would be painted "
                "with: sample with --config.paint_strength=0, or learn it with --config.paint_strength=0.4"
            )
    # Without weights, rather than with those of the base in their places, the form is made by a program that
    # is there for pictures without the appearance.
    bare = [
        (one._replace(weights={}, adapter={}), 0.0) if one.word in acting else (one, strength)
        for one, strength in attributes
    ]
    layout = functools.partial(
        apply_attributes,
        pipeline,
        bare,
        digest=digest,
        timesteps=timesteps,
        force=force,
    )
    return {
        word: Painting(layout, one, min(strength, 1.0), strengths[word])
        for word, (one, strength) in acting.items()
    }


def sampling_timesteps(attribute: Attribute) -> tuple[int, int]:
    """The timesteps [low, high) at which an attribute's weights act, unless another range is asked for."""
    low, high = attribute.recipe.get("sampling_timesteps", (0, MAX_TIMESTEP))
    return int(low), int(high)


def guidance_of(attributes: Sequence[Attribute]) -> dict[str, Any]:
    """How guidance acts beside attributes, unless something else is asked for: fields of ``Settings``.

    It acts at the timesteps of all (Kynkaanniemi et al., NeurIPS 2024, limit it to an interval, and find it
    unnecessary at low noise), and as much of its contrast is taken back as each allows (Lin et al. 2023).

    Raises:
        ValueError: there is no timestep that belongs to all.
    """
    intervals = [one.recipe.get("guidance_interval", (0, MAX_TIMESTEP)) for one in attributes]
    low = max((int(one[0]) for one in intervals), default=0)
    high = min((int(one[1]) for one in intervals), default=MAX_TIMESTEP)
    if low >= high:
        raise ValueError(
            f"{' and '.join(one.word for one in attributes)} are to be guided at no timestep together "
            f"({intervals}): use them apart, or learn them with the same --config.guidance_interval"
        )
    rescale = min((float(one.recipe.get("guidance_rescale", 0.0)) for one in attributes), default=0.0)
    return {"guidance_interval": (low, high), "guidance_rescale": rescale}


def _read(
    attribute: Attribute,
    strength: float,
    number: int,
    ids: Int[np.ndarray, "b t"],
    context: Float[Array, "b t d"],
) -> Float[Array, "b t d"]:
    """Encoded prompts that have read an attribute, where they hold its word, which has this number."""
    assert attribute.fusion is not None
    tokens = jnp.tile(attribute.vectors, (len(ids), 1, 1))
    named = jnp.asarray((ids == number).any(1))
    return read_across(unflatten_dict(attribute.fusion, sep="/"), context, tokens, named, strength)


def _changed(params: dict[str, Any], attributes: Sequence[tuple[Attribute, float]]) -> tuple[Any, Any]:
    """A UNet's parameters with the sum of changes, and bound low-rank changes; at strength 0 all leaves are
    there, as they were.
    """
    flat = flatten_dict(params, sep="/")
    changed: dict[str, Any] = {}
    bound = []
    for attribute, strength in attributes:
        for name, leaf in attribute.weights.items():
            before = np.asarray(flat[name], np.float32)
            changed[name] = changed.get(name, before) + strength * (leaf - before)
        if attribute.adapter:
            bound.append(bind(unflatten_dict(attribute.adapter, sep="/"), strength, network=params))
    flat |= {name: leaf.astype(flat[name].dtype) for name, leaf in changed.items()}
    return unflatten_dict(flat, sep="/"), combine(bound) if bound else {}


def other_word(word: str, attribute: str) -> str:
    """What stands for the other attribute of the reference: ``<shape:appearance>`` beside ``<shape>``.

    Args:
        word: the placeholder of what was learned.
        attribute: that was learned.
    """
    return f"<{word.strip('<>')}:{OTHER[attribute]}>"
