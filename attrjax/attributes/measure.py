"""How much of the reference is in a picture: one number for its shape, one for its appearance.

Target gain is by how much pictures come nearer to the reference in the attribute that is learned, leakage by
how much they come nearer in the other one, both against pictures of the untuned base from the same noise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from attrjax.attributes.conditioning import see
from attrjax.attributes.filters import foreground_statistics
from attrjax.attrworld.judges import Judges, embed_appearance, embed_shape
from attrjax.checkpoints.attribute import OTHER
from attrjax.checkpoints.pipeline import Component
from attrjax.data.pictures import to_floats
from attrjax.data.references import Reference, Segmenter

# Scores that are nearer than this share to the best are taken as no worse: a probe has few pictures.
ALIKE = 0.02
Pictures = UInt8[np.ndarray, "n h w 3"]
Similarity = Callable[[Pictures], dict[str, Float[np.ndarray, " n"]]]


class Probe(NamedTuple):
    """What was measured at a step.

    Attributes:
        step: how many updates were made.
        gain: of the attribute that is learned.
        leakage: of the other one; below 0 where pictures are less alike than the base's.
        target, other: similarities themselves.
    """

    step: int
    gain: float
    leakage: float
    target: float
    other: float

    @property
    def score(self) -> float:
        """What a step is chosen by: gain less leakage, of which none below 0 is a merit."""
        return self.gain - max(self.leakage, 0.0)


def best_of(probes: Sequence[Probe]) -> Probe:
    """The step that is kept: the last whose score is the best but for a share ``ALIKE`` of it.

    Of steps that measure alike the last has the smallest learning rate behind it: an early one that was best
    by a thousandth had specks in its pictures.

    Args:
        probes: at least one, in any order.
    """
    best = max(one.score for one in probes)
    return max((one for one in probes if one.score >= best - ALIKE * abs(best)), key=lambda one: one.step)


def probe(
    attribute: str, step: int, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> Probe:
    """Compare pictures of the tuned base with those of the untuned one.

    Args:
        attribute: that is learned.
        step: that the pictures are of.
        before, after: similarities of pictures from the same prompts and noise.
    """
    other = OTHER[attribute]
    gains = {name: float(np.mean(after[name] - before[name])) for name in (attribute, other)}
    means = {name: float(np.mean(after[name])) for name in (attribute, other)}
    return Probe(step, gains[attribute], gains[other], means[attribute], means[other])


def judged(judges: Judges, reference: Reference) -> Similarity:
    """Cosine similarity to the reference as the judges of attrworld embed it, for bases of that world."""
    wanted = _resized(reference.picture[None])

    def both(pictures: Float[np.ndarray, "n 64 64 3"]) -> dict[str, Float[np.ndarray, "n d"]]:
        return {"shape": embed_shape(judges, pictures), "appearance": embed_appearance(judges, pictures)}

    def similarity(pictures: Pictures) -> dict[str, Float[np.ndarray, " n"]]:
        seen = _resized(to_floats(pictures))
        # The reference with them: by itself it would have each judge compiled for one picture as well.
        found = both(np.concatenate([wanted, seen]))
        return {name: one[1:] @ one[0] for name, one in found.items()}

    return similarity


def encoded(encoder: Component, reference: Reference, segment: Segmenter) -> Similarity:
    """Similarity to the reference in features of the base's own image encoder, for any base.

    Shape is the correlation of the patches' self-similarities, which say how parts lie to each other and not
    what they look like (Shechtman & Irani 2007; of features of a transformer: Tumanyan et al. 2022, section
    3.2). Appearance is the mean of two: the cosine of the features' means and spreads over the foreground,
    and how much the histograms of colours have in common.

    Args:
        encoder: the base's.
        reference: with its mask.
        segment: from a picture [h, w, 3] in [-1, 1] to its mask.
    """
    params = jax.device_put(encoder.params)
    wanted = _describe(params, reference.picture[None], reference.mask[None], module=encoder.module)

    def cosine(a: Array, b: Array) -> Array:
        norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
        return (a * b).sum(-1) / jnp.maximum(norms, 1e-6)

    def similarity(pictures: Pictures) -> dict[str, Float[np.ndarray, " n"]]:
        seen = to_floats(pictures)
        masks = np.stack([segment(picture) for picture in seen])
        alike, statistics, histogram = _describe(params, seen, masks, module=encoder.module)
        common = jnp.minimum(histogram, wanted[2]).sum(-1)
        appearance = (cosine(statistics, wanted[1]) + common) / 2
        return {"shape": np.asarray(cosine(alike, wanted[0])), "appearance": np.asarray(appearance)}

    return similarity


@functools.partial(jax.jit, static_argnames="module")  # once for all references
def _describe(
    params: Any, pictures: Float[Array, "n h w 3"], masks: Float[Array, "n h w"], *, module: nn.Module
) -> tuple[Float[Array, "n p"], Float[Array, "n d"], Float[Array, "n 216"]]:
    """What ``encoded`` compares: self-similarities, statistics of features, and a histogram of colours."""
    states, weight = see(Component(module, params, {}), pictures, masks)
    mean, variance = foreground_statistics(states, weight)
    centred = states - states.mean(1, keepdims=True)
    unit = centred / (jnp.linalg.norm(centred, axis=-1, keepdims=True) + 1e-6)
    alike = jnp.einsum("nic,njc->nij", unit, unit).reshape(len(states), -1)
    alike = alike - alike.mean(-1, keepdims=True)
    statistics = jnp.concatenate([mean, jnp.sqrt(variance)], -1)
    levels = jnp.clip(((pictures + 1) * 3).astype(jnp.int32), 0, 5)
    colour = (levels[..., 0] * 6 + levels[..., 1]) * 6 + levels[..., 2]
    flat = masks.reshape(len(masks), -1)
    histogram = jax.vmap(lambda c, m: jnp.bincount(c.reshape(-1), m, length=216))(colour, flat)
    return alike, statistics, histogram / jnp.maximum(flat.sum(-1, keepdims=True), 1e-6)


def _resized(pictures: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 64 64 3"]:
    """Pictures in the size of the judges."""
    shape: Any = (len(pictures), 64, 64, 3)
    if pictures.shape == shape:
        return pictures
    return np.clip(np.asarray(jax.image.resize(pictures, shape, "cubic", antialias=True)), -1, 1)
