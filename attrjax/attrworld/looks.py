"""The families of materials that models are trained on, and unnamed ones; ``held_out_looks`` has the others.

A family is a function of random numbers u [n, 6] in [0, 1] to n variants of one look. Plain colours are
families too, whose finish varies.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from attrjax.attrworld.materials import INDEX, Material, layer, make_material
from attrjax.attrworld.shapes import Numbers, between

Look = Callable[[Numbers], Material]

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.97, 0.85, 0.15),
    "green": (0.16, 0.62, 0.2),
    "teal": (0.06, 0.62, 0.62),
    "blue": (0.13, 0.3, 0.85),
    "purple": (0.5, 0.2, 0.72),
    "pink": (0.97, 0.52, 0.72),
    "white": (0.95, 0.95, 0.93),
    "black": (0.09, 0.09, 0.1),
}


def shades(colour: Any, u: Float[np.ndarray, "n k"], spread: float = 0.08) -> list[np.ndarray]:
    """Variants [n] of each channel of a colour: brighter or darker, and a little off in hue."""
    light = between(u[:, 0], -spread, spread)
    return [
        np.clip(c + light + 0.4 * between(u[:, min(i, u.shape[1] - 1)], -spread, spread), 0.02, 0.98)
        for i, c in enumerate(colour)
    ]


def plain(name: str) -> Look:
    """A colour, matte where u[:, 5] is under one half and glossy over it."""

    def look(u: Numbers) -> Material:
        return make_material(
            [shades(COLOURS[name], u, 0.06)], gloss=np.where(u[:, 5] < 0.5, 0.04, 0.85), n=len(u)
        )

    look.__name__ = name
    return look


def anywhere(u: Numbers) -> tuple[np.ndarray, ...]:
    """An offset [3] of a pattern."""
    return tuple(7 * u[:, i] for i in range(3))


def wood(u: Numbers) -> Material:
    """Growth rings around a tilted axis."""
    rings = layer(
        "rings",
        (2.6, 0.35, 2.6),
        (12, 0, 76),
        anywhere(u),
        0.5,
        0.4,
        warp=0.5,
        warp_frequency=1.2,
        amount=0.8,
    )
    grain = layer("noise", (14.0, 1.2, 14.0), (12, 0, 76), anywhere(u), 0.55, 0.2, amount=0.35)
    return make_material(
        [shades((0.76, 0.53, 0.3), u), shades((0.5, 0.29, 0.13), u), (0.4, 0.22, 0.1)],
        rings,
        grain,
        gloss=0.25,
        n=len(u),
    )


def marble(u: Numbers) -> Material:
    """White stone with grey veins."""
    veins = layer("veins", 1.1, (20, 30, 40), anywhere(u), 0.55, 0.4, warp=0.9, amount=0.75)
    return make_material(
        [(0.94, 0.93, 0.91), (0.36, 0.37, 0.41), (0.5, 0.5, 0.5), (0.78, 0.78, 0.8)],
        veins,
        mottle=0.5,
        gloss=0.75,
        n=len(u),
    )


def brick(u: Numbers) -> Material:
    """Red bricks in pale mortar."""
    f = between(u[:, 0], 4.2, 5.2)
    blocks = layer("bricks", f, (0, 8, 0), anywhere(u), 0.22, 0.04, shuffle=0.55)
    colours = [(0.8, 0.77, 0.71), (0.66, 0.25, 0.16), (0.5, 0.18, 0.12), (0.74, 0.36, 0.22)]
    material = make_material(colours, blocks, gloss=0.03, n=len(u))
    # Blocks are drawn from all four colours: the mortar's must not be one of them.
    return material._replace(
        first=material.first._replace(shuffle=np.zeros(len(u), np.float32)),
        mottle=np.full(len(u), 0.3, np.float32),
    )


def zebra(u: Numbers) -> Material:
    """Black stripes on white that bend."""
    stripes = layer("stripes", 2.5, (8, 0, 18), anywhere(u), 0.5, 0.06, warp=1.1, warp_frequency=1.1)
    return make_material([(0.95, 0.94, 0.91), (0.07, 0.06, 0.06)], stripes, gloss=0.1, n=len(u))


def candy(u: Numbers) -> Material:
    """Red and white diagonal stripes with a gloss."""
    stripes = layer("stripes", between(u[:, 0], 2.0, 2.5), (0, 0, 38), anywhere(u), 0.5, 0.02)
    return make_material([(0.97, 0.96, 0.95), (0.88, 0.08, 0.13)], stripes, gloss=0.9, n=len(u))


def checkerboard(u: Numbers) -> Material:
    """Black and white cubes."""
    checks = layer("checks", between(u[:, 0], 2.8, 3.4), (0, 12, 0), (0.31, 0.27, 0.35), 0.5, 0.02)
    return make_material([(0.95, 0.95, 0.94), (0.06, 0.06, 0.07)], checks, gloss=0.45, n=len(u))


def polka(u: Numbers) -> Material:
    """White dots on a strong colour."""
    dots = layer("dots", between(u[:, 0], 1.6, 1.9), (25, 15, 10), anywhere(u), 0.47, 0.02)
    ground = np.array([COLOURS[c] for c in ("red", "blue", "teal")])[np.minimum(3 * u[:, 4], 2).astype(int)]
    return make_material([list(ground.T), (0.97, 0.97, 0.95)], dots, gloss=0.3, n=len(u))


def gold(u: Numbers) -> Material:
    """Polished gold."""
    return make_material([shades((1.0, 0.78, 0.28), u, 0.02)], gloss=0.8, metal=1.0, n=len(u))


def silver(u: Numbers) -> Material:
    """Polished silver."""
    return make_material([shades((0.93, 0.94, 0.96), u, 0.02)], gloss=0.9, metal=1.0, n=len(u))


def copper(u: Numbers) -> Material:
    """Polished copper."""
    return make_material([shades((0.96, 0.52, 0.36), u, 0.02)], gloss=0.8, metal=1.0, n=len(u))


def leopard(u: Numbers) -> Material:
    """Dark rosettes with a brown middle on tan."""
    f = between(u[:, 0], 3.4, 4.0)
    rosettes = layer("spots", f, (0, 20, 0), anywhere(u), 0.42, 0.04, warp=0.5, warp_frequency=3.0)
    middles = layer("spots", f, (0, 20, 0), anywhere(u), 0.68, 0.05, warp=0.5, warp_frequency=3.0)
    return make_material(
        [(0.89, 0.7, 0.4), (0.15, 0.09, 0.05), (0.66, 0.42, 0.19)], rosettes, middles, gloss=0.08, n=len(u)
    )


def giraffe(u: Numbers) -> Material:
    """Brown patches with pale borders."""
    patches = layer("cells", between(u[:, 0], 2.2, 2.7), (0, 20, 0), anywhere(u), 0.2, 0.06)
    return make_material([(0.95, 0.86, 0.66), (0.6, 0.33, 0.13)], patches, gloss=0.08, n=len(u))


def cow(u: Numbers) -> Material:
    """Large black patches on white."""
    patches = layer("noise", between(u[:, 0], 1.3, 1.7), (0, 0, 0), anywhere(u), 0.57, 0.03, warp=0.3)
    return make_material([(0.96, 0.95, 0.93), (0.1, 0.08, 0.07)], patches, gloss=0.08, n=len(u))


def camouflage(u: Numbers) -> Material:
    """Blotches of olive, brown and dark green."""
    first = layer("noise", 2.0, (0, 0, 0), anywhere(u), 0.5, 0.02)
    second = layer("noise", 2.3, (30, 0, 40), anywhere(u[:, ::-1]), 0.64, 0.02)
    colours = [(0.48, 0.51, 0.29), (0.22, 0.31, 0.16), (0.36, 0.25, 0.15)]
    return make_material(colours, first, second, gloss=0.04, n=len(u))


def granite(u: Numbers) -> Material:
    """Grey stone with black and white specks."""
    dark = layer("noise", 9.0, (0, 0, 0), anywhere(u), 0.62, 0.05)
    pale = layer("noise", 8.0, (30, 0, 40), anywhere(u[:, ::-1]), 0.66, 0.05)
    return make_material(
        [(0.58, 0.57, 0.57), (0.18, 0.18, 0.2), (0.9, 0.88, 0.86)], dark, pale, gloss=0.3, n=len(u)
    )


def clouds(u: Numbers) -> Material:
    """White clouds in a blue sky."""
    puffs = layer("noise", (1.6, 2.4, 1.6), (0, 0, 0), anywhere(u), 0.55, 0.22)
    return make_material([(0.36, 0.63, 0.93), (0.98, 0.98, 1.0)], puffs, gloss=0.05, n=len(u))


def rainbow(u: Numbers) -> Material:
    """All hues from the bottom to the top."""
    height = layer("height", (0, 0.95, 0), (0, 0, 0), (0, 0, 0), -1.0, 0.01)
    return make_material(
        [(0.9, 0.2, 0.2), (0.9, 0.2, 0.2)], height, hue=1.0, gloss=between(u[:, 0], 0.1, 0.5), n=len(u)
    )


def mosaic(u: Numbers) -> Material:
    """Small tiles of turquoise, blue, white and sand."""
    tiles = layer("bricks", (2 * 3.4, 3.4, 2 * 3.4), (0, 0, 0), anywhere(u), 0.14, 0.03, shuffle=1.0)
    colours = [(0.93, 0.88, 0.75), (0.1, 0.6, 0.65), (0.12, 0.3, 0.66), (0.45, 0.78, 0.75)]
    return make_material(colours, tiles, gloss=0.5, n=len(u))


FAMILIES: Mapping[str, Look] = {
    **{name: plain(name) for name in COLOURS},
    **{
        f.__name__: f
        for f in (
            *(wood, marble, brick, zebra, candy, checkerboard, polka, gold, silver, copper, leopard),
            *(giraffe, cow, camouflage, granite, clouds, rainbow, mosaic),
        )
    },
}

# Patterns of unnamed materials, and the field, threshold, softness and frequencies of each.
UNNAMED: Mapping[str, tuple[str, float, float, tuple[float, float]]] = {
    "stripes": ("stripes", 0.5, 0.03, (1.5, 3.0)),
    "checks": ("checks", 0.5, 0.02, (2.2, 3.6)),
    "dots": ("dots", 0.46, 0.03, (1.4, 2.2)),
    "blotches": ("noise", 0.52, 0.06, (1.3, 2.6)),
    "cells": ("cells", 0.2, 0.05, (1.8, 3.2)),
    "bricks": ("bricks", 0.2, 0.04, (3.2, 5.0)),
    "veins": ("veins", 0.5, 0.3, (0.9, 1.8)),
    "rings": ("rings", 0.5, 0.06, (1.6, 3.0)),
}


def unnamed(generator: np.random.Generator, n: int) -> tuple[Material, list[str], list[tuple[str, ...]]]:
    """Random materials of two, now and then three, colours in a random pattern.

    Returns:
        the materials [n], and for each the name of its pattern and of its colours.
    """
    u = generator.random((n, 12))
    patterns = [list(UNNAMED)[i] for i in generator.integers(0, len(UNNAMED), n)]
    order = np.argsort(generator.random((n, len(COLOURS))), axis=1)
    palette = np.array(list(COLOURS.values()), np.float32)
    tint = generator.uniform(-0.06, 0.06, (n, 3, 3)).astype(np.float32)
    chosen = np.clip(palette[order[:, :3]] + tint, 0.02, 0.98)
    three = u[:, 0] > 0.75
    rows = [UNNAMED[name] for name in patterns]
    low, high = (np.array([row[3][i] for row in rows]) for i in (0, 1))
    turn = (between(u[:, 1], -25, 25), between(u[:, 2], -40, 40), between(u[:, 3], -60, 60))
    first = layer(
        "stripes",
        low + u[:, 4] * (high - low),
        turn,
        anywhere(u),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        warp=np.where(u[:, 5] > 0.6, between(u[:, 6], 0, 0.9), 0),
    )
    second = layer(
        "noise",
        between(u[:, 7], 1.5, 3.0),
        turn,
        anywhere(u[:, 6:]),
        0.62,
        0.04,
        amount=three.astype(np.float32),
    )
    material = make_material(
        [list(chosen[:, i].T) for i in range(3)], first, second, gloss=np.where(u[:, 8] < 0.5, 0.05, 0.8), n=n
    )
    index = np.array([INDEX[row[0]] for row in rows], np.float32)
    material = material._replace(first=material.first._replace(pattern=index))
    names = list(COLOURS)
    colours = [tuple(names[j] for j in order[i, : 3 if three[i] else 2]) for i in range(n)]
    return material, patterns, colours
