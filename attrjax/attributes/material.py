"""What a masked object is made of, and how that is laid out anew without its outline."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key, UInt8

from attrjax.attributes.silhouettes import blur
from attrjax.attributes.sources import continued, depth, pure
from attrjax.attributes.textures import Range, between, smooth_noise
from attrjax.data.pictures import to_uint8

CELLS = 12  # patches along a side, at most


class Material(NamedTuple):
    """What there is to cut patches from.

    Attributes:
        filled: [H, W, 3] in [0, 1], the material everywhere: outside of the mask it is filled in
            from inside.
        lit: [H, W], what light does to each pixel, relative to the mean over the object.
        deep: [H, W], how far inside the mask a pixel is, in pixels; 0 outside.
    """

    filled: Float[Array, "h w 3"]
    lit: Float[Array, "h w"]
    deep: Float[Array, "h w"]


def material_of(picture: Float[Array, "h w 3"], mask: Float[Array, "h w"]) -> Material:
    """The material of what a mask in [0, 1], not empty, covers in a picture in [-1, 1]."""
    inside = pure(mask)
    filled = continued((picture + 1) / 2, inside)
    light = filled.mean(-1)
    sigma = 0.15 * min(mask.shape)
    even = blur(light, sigma) / blur(jnp.ones_like(light), sigma)
    lit = (even + 0.02) / ((even * inside).sum() / (inside.sum() + 1e-3) + 0.02)
    return Material(filled, lit, depth(inside))


def material_from(
    picture: Float[np.ndarray, "h w 3"], mask: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 4"]:
    """A reference in [-1, 1] as an attribute's file keeps it: no pixels of which the mask has nothing."""
    alpha = np.clip(np.round(255 * mask), 0, 255).astype(np.uint8)[..., None]
    return np.concatenate([np.where(alpha > 0, to_uint8(picture), 0), alpha], axis=-1)


def laid_out(
    keys: Sequence[Key[Array, ""]],
    material: Material,
    *,
    patch: Range = (0.8, 1.6),
    zoom: Range = (0.9, 1.3),
    turn: float = 0.2,
    elastic: float = 0.02,
    flip: float = 0.5,
    evened: Range = (0.3, 1.0),
) -> Float[Array, "h w 3"]:
    """A material all over a picture, in [0, 1], from patches at places of their own.

    Args:
        keys: four, of all that is drawn.
        material: to cut patches from.
        patch: side of a patch, where 1 is the radius of a disc as thick as the reference.
        zoom: of the material.
        turn: of the material, in radians to either side at most.
        elastic: how far the warp moves a point, in sides of the picture.
        flip: probability of a mirrored patch.
        evened: how much of the light and shadow is taken away, that the reference's own body threw.
    """
    u = jax.random.uniform(keys[0], (6,))
    height, width, _ = material.filled.shape
    side, deep = min(height, width), material.deep
    evenly = material.filled / jnp.maximum(material.lit, 0.2)[..., None] ** between(u[0], evened)

    # A grid of patches, turned and bent: u and v count patches.
    grid = jnp.stack(jnp.mgrid[:height, :width], -1) + 0.5
    thickness = 2 * (deep**2).sum() / (deep.sum() + 1e-3)
    cell = jnp.maximum(between(u[1], patch) * thickness, side / (CELLS - 2))
    bends = [smooth_noise(k, height, width, 5) for k in jax.random.split(keys[1])]
    bend = elastic * side * jnp.stack(bends, -1)
    cells = (grid + bend) / cell + u[2:4]

    # Each patch shows the surroundings of a place of its own, deep inside.
    chosen = jax.random.choice(keys[2], deep.size, (CELLS, CELLS), p=deep.reshape(-1) ** 2)
    sources = jnp.stack(jnp.unravel_index(chosen, deep.shape), -1) + 0.5
    mirrors = 1.0 - 2.0 * jax.random.bernoulli(keys[3], flip, (CELLS, CELLS, 1)) * jnp.array([0.0, 1.0])
    angle = turn * between(u[4], (-1, 1))
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    inward = cell / between(u[5], zoom)

    # Between the middles of four patches their colours are faded, within an eighth of a patch.
    low = jnp.floor(cells - 0.5)
    fade = jnp.clip(0.5 + 8 * (cells - 0.5 - low - 0.5), 0, 1)

    def part(corner: Int[Array, " 2"]) -> Float[Array, "h w 3"]:
        patches = low + corner
        index = jnp.clip(patches.astype(int), 0, CELLS - 1)
        source, mirror = (of[index[..., 0], index[..., 1]] for of in (sources, mirrors))
        at = source + inward * mirror * (cells - patches - 0.5) @ rotation - 0.5
        weight = jnp.where(corner == 1, fade, 1 - fade).prod(-1)
        return weight[..., None] * _sample(evenly, at)

    return jax.vmap(part)(jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])).sum(0)


def _sample(picture: Float[Array, "h w c"], at: Float[Array, "h w 2"]) -> Float[Array, "h w c"]:
    """Colours at rows and columns, with linear interpolation; mirrored beyond the picture."""
    places = (at[..., 0], at[..., 1])
    of = jax.vmap(lambda channel: map_coordinates(channel, places, 1, mode="mirror"), -1, -1)
    return of(picture)
