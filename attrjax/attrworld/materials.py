"""Materials as data: solid textures that look the same on every shape.

A material paints every point of space. Two layers, each a pattern with a threshold, mix up to four colours;
a warp of noise bends them, a mottle of noise shades them. As with shapes, a material is arrays and no code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from attrjax.attrworld.sdf import rotation

# What a layer's field is; each is in [0, 1] and of the layer's own coordinates.
PATTERNS = (
    "none",
    "stripes",  # waves along y
    "checks",  # cubes
    "dots",  # balls in rows that are offset from each other
    "bricks",  # mortar between offset blocks
    "noise",  # clouds
    "veins",  # thin lines where noise crosses its middle
    "rings",  # waves around the y axis
    "cells",  # distance to the border between random cells
    "spots",  # nearness to the middle of random cells
    "hexagons",  # distance to the border between hexagons
    "grid",  # waves along two axes
    "height",  # y itself
    "contours",  # waves along noise
    "steps",  # right-angled lines
)
INDEX = {name: float(i) for i, name in enumerate(PATTERNS)}


class Layer(NamedTuple):
    """One pattern that paints over what is below.

    Attributes:
        pattern: index into ``PATTERNS``.
        frequency: [3], of the pattern along its axes, in periods for a unit.
        turn: [3, 3], from the object's axes to the pattern's.
        offset: [3], of the pattern.
        threshold, softness: the layer shows where the field is above threshold, over a width of softness.
        warp: how far noise bends the pattern, in periods.
        warp_frequency: of that noise.
        amount: opacity of the layer.
        shuffle: how much of the layer's colour is drawn for each cell, block or ring from all four colours.
    """

    pattern: Any
    frequency: Any
    turn: Any
    offset: Any
    threshold: Any
    softness: Any
    warp: Any
    warp_frequency: Any
    amount: Any
    shuffle: Any


class Material(NamedTuple):
    """A solid texture and how it takes light.

    Attributes:
        colours: [4, 3] in sRGB: ground, first layer, second layer, mottle.
        first, second: the layers.
        mottle, mottle_frequency: how much of the fourth colour noise mixes in.
        hue: how much the first layer's colour runs through the rainbow along its field.
        gloss, metal, glow: in [0, 1].
    """

    colours: Any
    first: Layer
    second: Layer
    mottle: Any
    mottle_frequency: Any
    hue: Any
    gloss: Any
    metal: Any
    glow: Any


def surface(material: Material, point: list, normal: list, width: Float[Array, "h w"]):
    """Linear albedo [h, w, 3], and gloss, metal and glow of one material at points of the surface.

    Args:
        material: without leading axes.
        point, normal: x, y and z, each [h, w].
        width: of a pixel, in units; patterns finer than that are blurred.
    """
    colours = jnp.maximum(jnp.asarray(material.colours), 1e-5) ** 2.2
    shape = (*point[0].shape, 3)
    colour = jnp.broadcast_to(colours[0], shape)
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), material.first, material.second)
    packed = lax.map(lambda one: _field(one, point, normal), layers)
    for i, layer in enumerate((material.first, material.second)):
        cell, field = jnp.floor(packed[i]), packed[i] - jnp.floor(packed[i])
        blur = width * jnp.max(jnp.abs(layer.frequency))
        soft = layer.softness + 1.2 * blur
        amount = layer.amount * _smooth(layer.threshold - soft, layer.threshold + soft, field)
        paint = jnp.broadcast_to(colours[i + 1], shape)
        drawn = colours[cell.astype(jnp.int32)]
        paint = paint + layer.shuffle * (drawn - paint)
        if i == 0:
            paint = paint + material.hue * (_rainbow(field) - paint)
        colour = colour + amount[..., None] * (paint - colour)
    cloud = _fractal([p * material.mottle_frequency + 31.7 for p in point])
    mix = material.mottle * _smooth(0.35, 0.75, cloud)
    colour = colour + mix[..., None] * (colours[3] - colour)
    return colour, material.gloss, material.metal, material.glow


def _field(layer: Layer, point: list, normal: list):
    """The layer's field in [0, 1), plus a whole number from 0 to 3 for the cell that each point is in.

    One number and not two, so that compilers for CPUs compute all patterns once.
    """
    turned = [sum(layer.turn[i, j] * point[j] for j in range(3)) for i in range(3)]
    facing = [jnp.abs(sum(layer.turn[i, j] * normal[j] for j in range(3))) for i in range(3)]
    bend = _fractal([t * layer.warp_frequency + 7.1 for t in turned]) - 0.5
    x, y, z = (
        t * layer.frequency[i] + layer.offset[i] + layer.warp * bend * (1.0, 1.3, -0.8)[i]
        for i, t in enumerate(turned)
    )
    cloud = _fractal([x, y, z])
    around = jnp.sqrt(x * x + z * z + 1e-9)
    cells, spots, cell_identity = _cells(x, y, z)
    block, block_identity = _bricks(x, y, z, facing)
    hexagon, hexagon_identity = _hexagons(x, y, z, facing)
    line, line_identity = _steps(x, y, z, facing)
    none = jnp.zeros_like(x)
    fields = (
        none,
        _wave(y),
        0.5 + 0.5 * _square(x) * _square(y) * _square(z),
        _dots(x, y, z),
        block,
        cloud,
        jnp.clip(1 - 6 * jnp.abs(cloud - 0.5), 0, 1),
        _wave(around),
        cells,
        spots,
        hexagon,
        jnp.maximum(_wave(x), _wave(y)),
        jnp.clip(0.5 + 0.5 * y, 0, 1),
        _wave(2 * cloud),
        line,
    )
    identities = (
        none,
        _hash(jnp.floor(y + 0.5), none, none),
        none,
        _hash(jnp.floor(x), jnp.floor(y), jnp.floor(z)),
        block_identity,
        cloud,
        cloud,
        _hash(jnp.floor(around + 0.5), none, none),
        cell_identity,
        cell_identity,
        hexagon_identity,
        none,
        none,
        cloud,
        line_identity,
    )
    chosen = [layer.pattern == i for i in range(len(PATTERNS))]
    field, identity = (
        sum(jnp.where(c, f, 0) for c, f in zip(chosen, of, strict=True)) for of in (fields, identities)
    )
    return jnp.clip(field, 0, 0.9999) + jnp.clip(jnp.floor(4 * identity), 0, 3)


def _smooth(low, high, value):
    s = jnp.clip((value - low) / jnp.maximum(high - low, 1e-4), 0, 1)
    return s * s * (3 - 2 * s)


def _wave(x):
    """A triangle wave of period 1 in [0, 1], 1 at whole numbers."""
    return 2 * jnp.abs(x - jnp.floor(x) - 0.5)


def _square(x):
    """A wave of period 2 in [-1, 1] with steep sides."""
    return jnp.clip(5 * (2 * _wave(x / 2) - 1), -1, 1)


def _rainbow(value):
    """Linear colours of a spectrum, red at 0, violet at 1."""
    phase = value[..., None] * 0.82 + jnp.array([0.0, -1 / 3, 1 / 3])
    return jnp.clip(0.5 + 0.5 * jnp.cos(2 * jnp.pi * phase), 0.0, 1.0) ** 1.5 * 0.9 + 0.02


def _hash(x, y, z):
    """A number in [0, 1) for whole numbers x, y and z."""
    a, b, c = (v.astype(jnp.int32).astype(jnp.uint32) for v in (x, y, z))
    h = a * jnp.uint32(0x8DA6B343) ^ b * jnp.uint32(0xD8163841) ^ c * jnp.uint32(0xCB1AB31F)
    h = (h ^ (h >> 13)) * jnp.uint32(0x5BD1E995)
    h = (h ^ (h >> 15)) * jnp.uint32(0x27D4EB2D)
    return (h >> 8).astype(jnp.float32) / 2**24


def _noise(x, y, z):
    """Value noise: random numbers at whole points, smoothly between."""
    floors = [jnp.floor(v) for v in (x, y, z)]
    fractions = [v - f for v, f in zip((x, y, z), floors, strict=True)]
    weights = [f * f * (3 - 2 * f) for f in fractions]
    corner = [
        [[_hash(floors[0] + i, floors[1] + j, floors[2] + k) for k in (0, 1)] for j in (0, 1)] for i in (0, 1)
    ]

    def mix(a, b, w):
        return a + w * (b - a)

    planes = [
        mix(mix(p[0][0], p[0][1], weights[2]), mix(p[1][0], p[1][1], weights[2]), weights[1]) for p in corner
    ]
    return mix(planes[0], planes[1], weights[0])


def _fractal(p):
    """Two octaves of noise, stretched so that they fill [0, 1]."""
    x, y, z = p
    value = 0.65 * _noise(x, y, z) + 0.35 * _noise(2.1 * x + 5.2, 2.1 * y + 1.3, 2.1 * z + 8.4)
    return jnp.clip(0.5 + 1.5 * (value - 0.5), 0, 1)


def _cells(x, y, z):
    """Worley's cells (1996): border distance, nearness to the middle, and identity, from 3x3x3 neighbours."""
    floors = [jnp.floor(v) for v in (x, y, z)]
    first = second = jnp.full_like(x, 9.0)
    identity = jnp.zeros_like(x)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            for k in (-1, 0, 1):
                cell = [f + o for f, o in zip(floors, (i, j, k), strict=True)]
                name = _hash(*cell)
                jitter = (name, (name * 57.31) % 1.0, (name * 191.7) % 1.0)
                d = sum(
                    (c + 0.15 + 0.7 * o - v) ** 2 for c, o, v in zip(cell, jitter, (x, y, z), strict=True)
                )
                nearer = d < first
                second = jnp.where(nearer, first, jnp.minimum(second, d))
                identity = jnp.where(nearer, name, identity)
                first = jnp.where(nearer, d, first)
    first, second = jnp.sqrt(first), jnp.sqrt(second)
    return jnp.clip(2 * (second - first), 0, 1), jnp.clip(1 - 1.3 * first, 0, 1), (identity * 917.3) % 1.0


def _dots(x, y, z):
    """Nearness to the points of a face-centred lattice, the densest there is."""
    nearest = jnp.full_like(x, 9.0)
    for shift in ((0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)):
        d = sum((v + s - jnp.floor(v + s) - 0.5) ** 2 for v, s in zip((x, y, z), shift, strict=True))
        nearest = jnp.minimum(nearest, d)
    return jnp.clip(1 - 2 * jnp.sqrt(nearest), 0, 1)


def _flat(x, y, z, facing):
    """Two coordinates within the surface: the axis that it faces most along is left out."""
    top = (facing[1] > facing[0]) & (facing[1] > facing[2])
    side = facing[0] > facing[2]
    return jnp.where(side & ~top, z, x), jnp.where(top, z, y)


def _bricks(x, y, z, facing):
    """Distance to the mortar of bricks two units long and one high, and each brick's identity."""
    u, v = _flat(x, y, z, facing)
    row = jnp.floor(v)
    u = u / 2 + 0.5 * (row % 2)
    column = jnp.floor(u)
    from_u, from_v = jnp.minimum(u - column, 1 - u + column) * 2, jnp.minimum(v - row, 1 - v + row)
    return jnp.clip(2 * jnp.minimum(from_u, from_v), 0, 1), _hash(column, row, jnp.zeros_like(row))


def _hexagons(x, y, z, facing):
    """Distance to the border of hexagons one unit wide, and each hexagon's identity."""
    u, v = _flat(x, y, z, facing)
    root = 3**0.5
    au, av = u - jnp.floor(u + 0.5), v - root * jnp.floor(v / root + 0.5)
    bu, bv = u - 0.5 - jnp.floor(u), v - root / 2 - root * jnp.floor(v / root)
    nearer = au * au + av * av < bu * bu + bv * bv
    hu, hv = jnp.where(nearer, au, bu), jnp.where(nearer, av, bv)
    border = 0.5 - jnp.maximum(jnp.abs(hu), 0.5 * jnp.abs(hu) + root / 2 * jnp.abs(hv))
    return jnp.clip(2 * border, 0, 1), _hash(
        jnp.round(2 * (u - hu)), jnp.round(2 * (v - hv)), jnp.zeros_like(u)
    )


def _steps(x, y, z, facing):
    """Nearness to right-angled lines that join some of the neighbouring points of a lattice."""
    u, v = _flat(x, y, z, facing)
    column, row = jnp.floor(u), jnp.floor(v)
    fu, fv = u - column - 0.5, v - row - 0.5
    zero = jnp.zeros_like(u)
    nearest = jnp.sqrt(fu * fu + fv * fv)
    pad = _hash(column, row, zero + 3)
    nearest = jnp.where(pad > 0.6, nearest - 0.16, nearest)
    arms = (
        (_hash(column, row, zero + 1), jnp.maximum(-fu, jnp.abs(fv))),
        (_hash(column - 1, row, zero + 1), jnp.maximum(fu, jnp.abs(fv))),
        (_hash(column, row, zero + 2), jnp.maximum(-fv, jnp.abs(fu))),
        (_hash(column, row - 1, zero + 2), jnp.maximum(fv, jnp.abs(fu))),
    )
    for there, d in arms:
        nearest = jnp.minimum(nearest, jnp.where(there > 0.45, d, 9.0))
    return jnp.clip(1 - 2 * nearest, 0, 1), pad


def layer(
    pattern: str = "none",
    frequency: Any = 1.0,
    turn: Any = (0.0, 0.0, 0.0),
    offset: Any = (0.0, 0.0, 0.0),
    threshold: Any = 0.5,
    softness: Any = 0.05,
    warp: Any = 0.0,
    warp_frequency: Any = 1.5,
    amount: Any = 1.0,
    shuffle: Any = 0.0,
) -> dict[str, Any]:
    """A layer for ``make_material``; numbers may be arrays [n]. ``turn`` is in degrees around x, y and z."""
    return {
        "pattern": INDEX[pattern],
        "frequency": frequency if isinstance(frequency, tuple) else (frequency,) * 3,
        "turn": turn,
        "offset": offset,
        "threshold": threshold,
        "softness": softness,
        "warp": warp,
        "warp_frequency": warp_frequency,
        "amount": 0.0 if pattern == "none" else amount,
        "shuffle": shuffle,
    }


def make_material(
    colours: Any,
    first: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    *,
    mottle: Any = 0.0,
    mottle_frequency: Any = 2.0,
    hue: Any = 0.0,
    gloss: Any = 0.3,
    metal: Any = 0.0,
    glow: Any = 0.0,
    n: int | None = None,
) -> Material:
    """A material as arrays.

    Args:
        colours: one to four colours in sRGB, each of three numbers in [0, 1] or arrays [n] of them; the
            fourth is that of the mottle, and those that are not given repeat the ground.
        first, second: as ``layer`` makes them.
        n: number of variants; None for one material without that axis.
        The others: as in ``Material``.

    Raises:
        ValueError: there is no colour, or there are more than four.
    """
    if not 1 <= len(colours) <= 4:
        raise ValueError(f"a material has 1 to 4 colours, not {len(colours)}")
    lead = () if n is None else (n,)
    filled = [*colours, *[colours[0]] * (4 - len(colours))]

    def numbers(value: Any) -> Float[np.ndarray, "*n"]:
        return np.broadcast_to(np.asarray(value, np.float32), lead)

    def vector(value: Any) -> Float[np.ndarray, "*n 3"]:
        return np.stack([numbers(v) for v in value], -1)

    def stacked(one: dict[str, Any] | None) -> Layer:
        one = one or layer()
        fields = {name: vector(one[name]) for name in ("frequency", "offset")}
        fields["turn"] = rotation(np.radians(vector(one["turn"])))
        return Layer(
            **{name: fields[name] if name in fields else numbers(one[name]) for name in Layer._fields}
        )

    return Material(
        np.stack([vector(c) for c in filled], -2),
        stacked(first),
        stacked(second),
        *[numbers(v) for v in (mottle, mottle_frequency, hue, gloss, metal, glow)],
    )
