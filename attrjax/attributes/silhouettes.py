"""Random outlines in two dimensions, and how light falls on what they enclose."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attrjax.attributes.textures import Range, between, places

# What is drawn, and the nouns that are true of it: those of the world that name no shape, or the shape's.
SILHOUETTES = ("blob", "ellipse", "polygon", "ball", "star", "ring")


def draw_silhouette(
    key: Key[Array, ""], height: int, width: int, fill: Range = (0.27, 0.44)
) -> tuple[Float[Array, "h w"], Int[Array, ""]]:
    """One outline, whole, near the middle of the picture.

    All are radii as functions of the angle: waves for a blob, rounded regular polygons, stars of five.

    Args:
        key: of all that is drawn.
        height, width: in pixels.
        fill: range of the outline's mean radius, where the picture's shorter side is 1.

    Returns:
        the mask in [0, 1], its edge one pixel wide, and the index of what it is in ``SILHOUETTES``.
    """
    numbers, heights = jax.random.split(key)
    u = jax.random.uniform(numbers, (12,))
    kind = (u[0] * len(SILHOUETTES)).astype(int)
    radius = between(u[1], fill)
    turn = 2 * np.pi * u[2]
    aspect = between(u[3], (0.55, 0.8))
    sides = jnp.floor(between(u[4], (3, 7)))
    shift = between(u[5:7], (-1, 1))
    phases = 2 * np.pi * u[7:12]
    waves = jax.random.normal(heights, (5,)) * jnp.array([0.1, 0.1, 0.08, 0.05, 0.03])

    # What reaches furthest must fit: a star's points, and a blob's waves.
    radius = jnp.minimum(radius, jnp.array([0.3, 0.44, 0.42, 0.44, 0.44, 0.44])[kind])
    room = jnp.maximum(0.46 - radius * jnp.array([1.45, 1.0, 1.0, 1.0, 1.0, 1.0])[kind], 0)
    x, y = places(height, width)
    x, y = x - room * shift[0], y - room * shift[1]
    x, y = jnp.cos(turn) * x + jnp.sin(turn) * y, jnp.cos(turn) * y - jnp.sin(turn) * x
    stretched = (kind == SILHOUETTES.index("ellipse")) | (kind == SILHOUETTES.index("blob"))
    y = y / jnp.where(stretched, aspect, 1)

    distance, angle = jnp.sqrt(x * x + y * y + 1e-9), jnp.arctan2(y, x)
    orders = jnp.arange(2, 7, dtype=jnp.float32)
    wavy = 1 + (waves * jnp.cos(orders * angle[..., None] + phases)).sum(-1)
    # Of a star, from 1 at a point to 0 between two.
    point = 2 * jnp.abs((5 * angle / (2 * np.pi)) % 1 - 0.5)
    straight = 1 / (0.85 / 0.42 + (1 - 0.85 / 0.42) * point**0.9)
    ones = jnp.ones_like(x)
    radii = jnp.stack([jnp.clip(wavy, 0.5, 1.45), ones, _polygon(angle, sides), ones, straight, ones])
    field = radius * radii[kind] - distance
    hole = distance - 0.45 * radius
    field = jnp.where(kind == SILHOUETTES.index("ring"), jnp.minimum(field, hole), field)
    # In pixels from the outline, for the field's own slope is not 1.
    down, right = jnp.gradient(field)
    return jnp.clip(0.5 + field / jnp.maximum(jnp.hypot(down, right), 1e-4), 0, 1), kind


def _polygon(angle: Float[Array, "h w"], sides: Float[Array, ""]) -> Float[Array, "h w"]:
    """Radius of a regular polygon with rounded corners; 1 at the corners."""
    half = np.pi / sides
    sector = (angle % (2 * half)) - half
    sharp = jnp.cos(half) / jnp.cos(sector)
    # A soft minimum with a circle that cuts the corners off.
    round_ = 0.35 * jnp.cos(half) + 0.65
    return (sharp**-16 + round_**-16) ** (-1 / 16)


def relief(mask: Float[Array, "h w"], light: Float[Array, " 2"], height: float = 0.5) -> Float[Array, "h w"]:
    """Light on a mask that is blown up like a balloon, about 1 in the mean over the mask, in [0, 2].

    The surface is highest where there is most mask around, at several scales: no more than the outline goes
    in, so it gives an object a body and says nothing of its material. (Lumo, Johnston 2002, shades drawn
    outlines in a like way.)

    Args:
        mask: in [0, 1].
        light: where it comes from, to the right and down; its length is how far it is from the viewer's side.
        height: of the surface; more is rounder.
    """
    side = min(mask.shape)
    surface = sum(blur(mask, side * sigma) * side * sigma for sigma in (0.02, 0.05, 0.12))
    down, right = jnp.gradient(height * 4 * surface)
    length = jnp.sqrt(1 + down * down + right * right)
    lit = (1 - light[0] * right - light[1] * down) / length
    mean = (lit * mask).sum() / jnp.maximum(mask.sum(), 1e-3)
    return jnp.clip(1 + (lit - mean), 0, 2)


def shaded(key: Key[Array, ""], mask: Float[Array, "h w"], amount: Range) -> Float[Array, "h w"]:
    """A random part of the mask's relief in light from above or a side, 1 in the mean."""
    u = jax.random.uniform(key, (3,))
    light = jnp.stack([between(u[0], (-0.8, 0.8)), between(u[1], (-0.8, 0.1))])
    return 1 + between(u[2], amount) * (relief(mask, light) - 1)


def blur(values: Float[Array, "h w"], sigma: Float[Array, ""] | float) -> Float[Array, "h w"]:
    """Gaussian blur of ``sigma`` pixels; what lies beyond the picture is 0."""
    down, across = (_gaussian(n, sigma) for n in values.shape)
    return down @ values @ across


def _gaussian(n: int, sigma: Float[Array, ""] | float) -> Float[Array, "n n"]:
    """As a matrix: a product of two is the fastest blur of a wide kernel on every device."""
    distance = jnp.arange(n)[:, None] - jnp.arange(n)
    return jnp.exp(-0.5 * (distance / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
