"""Paints in two dimensions for training pairs: textures to put on an object, and backdrops to put behind it.

They are those that the world's words can name (``attrworld.words``), so that a prompt can say truly what a
picture shows. Everything is in units of the picture's side: a key gives the same paint at every size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attrjax.attrworld.looks import COLOURS
from attrjax.attrworld.scenes import BACKDROPS

Range = tuple[float, float]  # of a number that is drawn uniformly
PATTERNS = ("plain", "stripes", "checks", "dots", "blotches", "rings")
COLOUR_NAMES, BACKDROP_NAMES = tuple(COLOURS), tuple(BACKDROPS)
_COLOURS = np.array(list(COLOURS.values()), np.float32)
_BACKDROPS = np.array(list(BACKDROPS.values()), np.float32)

PLAIN_RATE = 0.3  # of textures without a pattern
SHADE = 0.06  # by how much a colour is off that of its name; more, and another name would fit better
CONTRAST = 0.45  # least distance between a backdrop and what stands before it, in sRGB


def places(height: int, width: int) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """x to the right and y down of every pixel's middle, 0 in the picture's middle, its shorter side is 1."""
    side = min(height, width)
    y, x = jnp.mgrid[:height, :width]
    return (x + 0.5 - width / 2) / side, (y + 0.5 - height / 2) / side


def between(u: Float[Array, "*s"], bounds: Range) -> Float[Array, "*s"]:
    """Numbers in [0, 1) moved to a range."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def smooth_noise(key: Key[Array, ""], height: int, width: int, cells: int) -> Float[Array, "h w"]:
    """Random hills, about as many along a side as there are cells; mean 0, about as high as N(0, 1) is."""
    coarse = jax.random.normal(key, (cells, cells))
    return jax.image.resize(coarse, (height, width), "cubic")


def draw_texture(
    key: Key[Array, ""], height: int, width: int
) -> tuple[Float[Array, "h w 3"], Int[Array, ""], Int[Array, " 2"]]:
    """A flat colour, or a pattern of two.

    Returns:
        the texture in [0, 1]; the index of its pattern in ``PATTERNS``; and those of its ground and of what
        is on it in ``COLOUR_NAMES``, which differ. A plain texture has its ground's alone.
    """
    numbers, bends, blotches = jax.random.split(key, 3)
    u = jax.random.uniform(numbers, (13,))  # at once: each call is compiled anew
    which = (u[0] - PLAIN_RATE) / (1 - PLAIN_RATE)
    pattern = jnp.where(which < 0, 0, 1 + (which * (len(PATTERNS) - 1)).astype(int))
    ground = (u[1] * len(COLOURS)).astype(int)
    # Counted on from the ground, so that it is another one.
    colours = jnp.stack([ground, (ground + 1 + (u[2] * (len(COLOURS) - 1)).astype(int)) % len(COLOURS)])
    shades = between(u[3:9].reshape(2, 3), (-SHADE, SHADE))
    paints = jnp.clip(jnp.asarray(_COLOURS)[colours] + shades, 0, 1)

    # The pattern's own coordinates, in its periods: turned, moved, and bent a little.
    x, y = places(height, width)
    frequency = jnp.exp(between(u[9], (np.log(4.0), np.log(9.0))))
    angle = 2 * np.pi * u[10]
    bend = 0.15 * smooth_noise(bends, height, width, 4)
    x, y = x - between(u[11], (-0.3, 0.3)), y - between(u[12], (-0.3, 0.3))
    s = frequency * (jnp.cos(angle) * x + jnp.sin(angle) * y) + bend
    t = frequency * (jnp.cos(angle) * y - jnp.sin(angle) * x) + bend
    # Every pattern as a field that is 0 at its borders, grows by 1 or so in a period, and is positive on it.
    fields = jnp.stack(
        [
            jnp.full_like(x, -1),
            _wave(s),
            2 * _wave(s / 2) * _wave(t / 2) / (jnp.abs(_wave(s / 2)) + jnp.abs(_wave(t / 2)) + 1e-3),
            0.32 - jnp.hypot(*_to_nearest(s, t)),
            0.3 * smooth_noise(blotches, height, width, 9),
            _wave(jnp.sqrt(s * s + t * t + 1e-6)),
        ]
    )
    pixel = frequency / min(height, width)
    amount = jnp.clip(0.5 + fields[pattern] / (1.5 * pixel), 0, 1)[..., None]
    return paints[0] + amount * (paints[1] - paints[0]), pattern, colours


def draw_backdrop(
    key: Key[Array, ""], height: int, width: int, before: Float[Array, " 3"], gradient: float = 0.09
) -> tuple[Float[Array, "h w 3"], Int[Array, ""]]:
    """A flat colour or a soft gradient of it, that what is before it stands out from.

    Args:
        key: of all that is drawn.
        height, width: in pixels.
        before: mean colour in [0, 1] of what is to be put before it.
        gradient: how much brighter than its middle one end of the backdrop is at most.

    Returns:
        the backdrop in [0, 1], and the index of its colour in ``BACKDROP_NAMES``.
    """
    which, numbers = jax.random.split(key)
    u = jax.random.uniform(numbers, (5,))
    distance = jnp.linalg.norm(jnp.asarray(_BACKDROPS) - before, axis=-1)
    # There is always one: the darkest and the lightest backdrop are further apart than twice this.
    index = jax.random.categorical(which, jnp.where(distance > CONTRAST, 0.0, -jnp.inf))
    colour = jnp.asarray(_BACKDROPS)[index] + between(u[:3], (-0.03, 0.03))
    x, y = places(height, width)
    angle = 2 * np.pi * u[3]
    slope = gradient * u[4] * 2 * (jnp.cos(angle) * x + jnp.sin(angle) * y)
    return jnp.clip(colour + slope[..., None], 0, 1), index


def _wave(x: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """A triangle wave of period 1 between -1/4 and 1/4, rising and falling by 1."""
    return jnp.abs(x - jnp.floor(x) - 0.5) - 0.25


def _to_nearest(
    s: Float[Array, "h w"], t: Float[Array, "h w"]
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """From the nearest point of a square lattice, every other row of which is moved by a half."""
    row = jnp.round(t)
    s = s + 0.5 * (row % 2)
    return s - jnp.round(s), t - row
