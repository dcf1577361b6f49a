"""Where in a masked picture there is material to draw from: pixels inside the mask, and how deep."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PURE = 0.9  # of the mask's largest value: pixels with less of it are mixed with the backdrop


def pure(mask: Float[Array, "h w"]) -> Bool[Array, "h w"]:
    """Pixels that show the foreground alone; of a mask that is 1 nowhere, those that show most of it."""
    return (mask >= PURE * mask.max()) & (mask > 0)


def nearest(inside: Bool[Array, "h w"]) -> Int[Array, "h w 2"]:
    """Row and column of the nearest pixel inside, for every pixel; itself for those that are inside.

    Jump flooding (Rong & Tan 2006): candidates are handed on over steps of half the picture, a quarter, and
    so on to 1, and once more over 1. Near a tie it may find a pixel that is a little further. Where nothing
    is inside, all indices are negative.
    """
    height, width = inside.shape
    grid = jnp.stack(jnp.mgrid[:height, :width], -1)
    seeds = jnp.where(inside[..., None], grid, -4 * (height + width))

    def squared(candidate: Int[Array, "h w 2"]) -> Int[Array, "h w"]:
        return ((candidate - grid) ** 2).sum(-1)

    def hand_on(seeds: Int[Array, "h w 2"], step: Int[Array, ""]) -> tuple[Int[Array, "h w 2"], None]:
        best, nearer = squared(seeds), seeds
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                # What comes in at the other side is a pixel inside as well, only far: it does no harm.
                candidate = jnp.roll(seeds, step * jnp.array([down, right]), (0, 1))
                distance = squared(candidate)
                nearer = jnp.where((distance < best)[..., None], candidate, nearer)
                best = jnp.minimum(distance, best)
        return nearer, None

    steps = [1 << i for i in reversed(range((max(height, width) - 1).bit_length()))]
    return jax.lax.scan(hand_on, seeds, jnp.array([*steps, 1]))[0]


def depth(inside: Bool[Array, "h w"]) -> Float[Array, "h w"]:
    """Distance to the nearest pixel outside or beyond the picture, in pixels; 0 outside."""
    height, width = inside.shape
    grid = jnp.stack(jnp.mgrid[:height, :width], -1)
    outside = jnp.hypot(*jnp.moveaxis((nearest(~inside) - grid).astype(jnp.float32), -1, 0))
    edge = jnp.minimum(grid + 1, jnp.array([height, width]) - grid).min(-1)
    return jnp.where(inside, jnp.minimum(outside, edge), 0)


def continued(picture: Float[Array, "h w c"], inside: Bool[Array, "h w"]) -> Float[Array, "h w c"]:
    """A picture whose outside is filled with what is inside, mirrored at the border.

    Where the mirrored place is outside again, as it is around thin parts, the nearest pixel inside is taken.
    """
    height, width = inside.shape
    limit = jnp.array([height, width]) - 1
    border = jnp.clip(nearest(inside), 0, limit)
    mirrored = jnp.clip(2 * border - jnp.stack(jnp.mgrid[:height, :width], -1), 0, limit)
    at = jnp.where(inside[mirrored[..., 0], mirrored[..., 1]][..., None], mirrored, border)
    return picture[at[..., 0], at[..., 1]]
