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
from attrjax.attrworld.judges import LEAST_FOREGROUND, Judges, embed_appearance, embed_shape
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
    """Similarity to the reference in foregrounds, and features of the base's own image encoder, for any base.

    Shape is the mean of two, both of pictures that are moved and scaled until their foreground has the
    reference's centroid and spread: how much the foregrounds overlap (intersection over union), and over the
    reference's foreground the correlation of the patches' self-similarities, which say how parts lie to each
    other and not what they look like (Shechtman & Irani 2007; of features of a transformer: Tumanyan et al.
    2022, section 3.2). Appearance is the mean of two: the cosine of the features' means and spreads over the
    foreground, and how much the histograms of colours have in common.

    A picture in which (nearly) no foreground is found is taken as a whole, as if it were filled to its
    corners: a change from none to one is no larger than one of outlines.

    Args:
        encoder: the base's.
        reference: with its mask.
        segment: from a picture [h, w, 3] in [-1, 1] to its mask.
    """
    params, own = jax.device_put(encoder.params), reference.mask
    describe = functools.partial(_describe, params, own, module=encoder.module)
    wanted = describe(reference.picture[None], own[None])

    def cover(picture: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        mask = segment(picture)
        return mask if mask.mean() > LEAST_FOREGROUND else np.ones_like(mask)

    def cosine(a: Array, b: Array) -> Array:
        norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
        return (a * b).sum(-1) / jnp.maximum(norms, 1e-6)

    def similarity(pictures: Pictures) -> dict[str, Float[np.ndarray, " n"]]:
        seen = to_floats(pictures)
        overlap, alike, statistics, histogram = describe(seen, np.stack([cover(picture) for picture in seen]))
        common = jnp.minimum(histogram, wanted[3]).sum(-1)
        shape = (cosine(alike, wanted[1]) + overlap) / 2
        appearance = (cosine(statistics, wanted[2]) + common) / 2
        return {"shape": np.asarray(shape), "appearance": np.asarray(appearance)}

    return similarity


@functools.partial(jax.jit, static_argnames="module")  # once for all references
def _describe(
    params: Any,
    own: Float[Array, "h w"],
    pictures: Float[Array, "n h w 3"],
    masks: Float[Array, "n h w"],
    *,
    module: nn.Module,
) -> tuple[Float[Array, " n"], Float[Array, "n p"], Float[Array, "n d"], Float[Array, "n 216"]]:
    """What ``encoded`` compares: overlaps with the reference's own mask, self-similarities over it,
    statistics of features, and histograms of colours.
    """
    moved, moved_masks = jax.vmap(lambda picture, mask: _moved(picture, mask, own))(pictures, masks)
    overlap = jnp.minimum(moved_masks, own).sum((1, 2)) / jnp.maximum(moved_masks, own).sum((1, 2))
    owns = jnp.broadcast_to(own, masks.shape)
    both, covers = jnp.concatenate([pictures, moved]), jnp.concatenate([masks, owns])
    (states, moved_states), (weight, inside) = (
        jnp.split(found, 2) for found in see(Component(module, params, {}), both, covers)
    )
    mean, variance = foreground_statistics(states, weight)
    centred = moved_states - foreground_statistics(moved_states, inside)[0][:, None]
    unit = centred / (jnp.linalg.norm(centred, axis=-1, keepdims=True) + 1e-6)
    # Every patch is like itself: that says nothing.
    pairs = inside[:, :, None] * inside[:, None] * (1 - jnp.eye(inside.shape[1]))
    alike = jnp.einsum("nic,njc->nij", unit, unit)
    counted = jnp.maximum(pairs.sum((1, 2), keepdims=True), 1e-6)
    alike = alike - (pairs * alike).sum((1, 2), keepdims=True) / counted
    alike = (jnp.sqrt(pairs) * alike).reshape(len(alike), -1)
    statistics = jnp.concatenate([mean, jnp.sqrt(variance)], -1)
    levels = jnp.clip(((pictures + 1) * 3).astype(jnp.int32), 0, 5)
    colour = (levels[..., 0] * 6 + levels[..., 1]) * 6 + levels[..., 2]
    flat = masks.reshape(len(masks), -1)
    histogram = jax.vmap(lambda c, m: jnp.bincount(c.reshape(-1), m, length=216))(colour, flat)
    return overlap, alike, statistics, histogram / jnp.maximum(flat.sum(-1, keepdims=True), 1e-6)


def _moved(
    picture: Float[Array, "h w 3"], mask: Float[Array, "h w"], own: Float[Array, "h w"]
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """A picture and its mask, moved and scaled until that has the centroid and the spread of ``own``."""

    def place(mask: Float[Array, "h w"]) -> tuple[Float[Array, "2"], Float[Array, ""]]:
        share = mask / jnp.maximum(mask.sum(), 1e-6)
        grid = jnp.stack(jnp.mgrid[: mask.shape[0], : mask.shape[1]], -1) + 0.5
        centre = (share[..., None] * grid).sum((0, 1))
        return centre, jnp.sqrt((share * ((grid - centre) ** 2).sum(-1)).sum())

    (centre, spread), (wanted, width) = place(mask), place(own)
    scale = width / jnp.maximum(spread, 1e-6)
    both = jnp.concatenate([picture, mask[..., None]], -1)
    both = jax.image.scale_and_translate(
        both, both.shape, (0, 1), jnp.stack([scale, scale]), wanted - scale * centre, "linear"
    )
    return both[..., :3], both[..., 3]


def _resized(pictures: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 64 64 3"]:
    """Pictures in the size of the judges."""
    shape: Any = (len(pictures), 64, 64, 3)
    if pictures.shape == shape:
        return pictures
    return np.clip(np.asarray(jax.image.resize(pictures, shape, "cubic", antialias=True)), -1, 1)
