"""The families of shapes: what is trained on.

A family is a function of random numbers u [n, 6] in [0, 1], its proportions, to n variants of one kind of
thing. Things stand on y = -1 and are shown to +z. ``held_out_shapes`` has those that no model is trained on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from attrjax.attrworld.sdf import EXTRUDED, SQUARE, Shape, make_shape, part

Numbers = Float[np.ndarray, "n 6"]
Family = Callable[[Numbers], Shape]


def between(u: Float[np.ndarray, " n"], low: float, high: float) -> Float[np.ndarray, " n"]:
    """Numbers in [0, 1] stretched over a range."""
    return low + (high - low) * u


def ball(u: Numbers) -> Shape:
    """A ball, a little flattened or stretched."""
    r = between(u[:, 0], 0.68, 0.9)
    tall = between(u[:, 1], 0.9, 1.08)
    return make_shape([part((0, -1 + r * tall, 0), scale=(1, tall, 1), rounding=r)], n=len(u))


def cube(u: Numbers) -> Shape:
    """A box with nearly equal sides."""
    r, turn = between(u[:, 0], 0.5, 0.66), between(u[:, 2], 20, 50)
    h = r * between(u[:, 1], 0.85, 1.15)
    return make_shape(
        [part((0, -1 + h, 0), (0, turn, 0), section=SQUARE, radius=r - 0.04, height=h - 0.04, rounding=0.04)],
        n=len(u),
    )


def cylinder(u: Numbers) -> Shape:
    """A can."""
    r, h = between(u[:, 0], 0.4, 0.62), between(u[:, 1], 0.65, 0.9)
    return make_shape([part((0, -1 + h, 0), radius=r, height=h - 0.03, rounding=0.03)], n=len(u))


def cone(u: Numbers) -> Shape:
    """A cone with a blunt tip."""
    r, h = between(u[:, 0], 0.6, 0.85), between(u[:, 1], 0.75, 0.98)
    return make_shape([part((0, -1 + h, 0), bottom=r, top=0.0, height=h - 0.03, rounding=0.03)], n=len(u))


def pyramid(u: Numbers) -> Shape:
    """A pyramid on a square, one edge towards the viewer."""
    r, h, turn = between(u[:, 0], 0.65, 0.85), between(u[:, 1], 0.6, 0.85), between(u[:, 2], 22, 50)
    sides = part((0, -1 + h, 0), (0, turn, 0), section=SQUARE, bottom=r, height=h - 0.02, rounding=0.02)
    return make_shape([sides], n=len(u))


def ring(u: Numbers) -> Shape:
    """A ring that stands, its hole towards the viewer."""
    r, w = between(u[:, 0], 0.52, 0.66), between(u[:, 1], 0.17, 0.3)
    return make_shape([part((0, -1 + r + w, 0), (90, 0, 0), ring=r, rounding=w)], n=len(u))


def vase(u: Numbers) -> Shape:
    """A belly, a narrow neck and a flared lip."""
    belly, y, neck = between(u[:, 0], 0.42, 0.6), between(u[:, 1], -0.5, -0.3), between(u[:, 2], 0.16, 0.26)
    return make_shape(
        [
            part((0, y, 0), bottom=0.25, top=neck, height=y + 1, bulge=belly - 0.25, rounding=0.02),
            part((0, 0.42, 0), bottom=neck, top=neck, height=0.45, blend=0.15),
            part((0, 0.83, 0), bottom=neck, top=neck + 0.2, height=0.14, rounding=0.02, blend=0.12),
            part((0, 0.9, 0), radius=neck - 0.06, height=0.3, cut=True),
        ],
        n=len(u),
    )


def bottle(u: Numbers) -> Shape:
    """A straight body, a shoulder, and a thin neck with a ring."""
    r, h, neck = between(u[:, 0], 0.34, 0.46), between(u[:, 1], 0.45, 0.6), between(u[:, 2], 0.1, 0.15)
    top = -1 + 2 * h
    return make_shape(
        [
            part((0, -1 + h, 0), radius=r - 0.04, height=h - 0.04, rounding=0.04),
            part((0, top + 0.12, 0), bottom=r - 0.02, top=neck, height=0.16, rounding=0.02, blend=0.12),
            part((0, 0.55, 0), radius=neck, height=0.42, blend=0.1),
            part((0, 0.9, 0), radius=neck + 0.05, height=0.05, rounding=0.01),
        ],
        n=len(u),
    )


def bowl(u: Numbers) -> Shape:
    """Half a hollow ball on a foot."""
    r, lip = between(u[:, 0], 0.8, 0.95), between(u[:, 1], 0.0, 0.15)
    return make_shape(
        [
            part((0, -0.05, 0), rounding=r),
            part((0, 0.85, 0), section=SQUARE, radius=1.2, height=0.85 - lip, cut=True),
            part((0, 0.0, 0), rounding=r - 0.1, cut=True),
            part((0, -0.92, 0), bottom=0.4, top=0.3, height=0.08, blend=0.05),
        ],
        n=len(u),
    )


def mug(u: Numbers) -> Shape:
    """An open can with a handle."""
    r, h, grip = between(u[:, 0], 0.5, 0.62), between(u[:, 1], 0.62, 0.82), between(u[:, 2], 0.28, 0.38)
    y = -1 + h
    return make_shape(
        [
            part((-0.15, y, 0), radius=r - 0.03, height=h - 0.03, rounding=0.03),
            part((r - 0.13, y, 0), (90, 0, 0), ring=grip, rounding=0.1, blend=0.04),
            part((-0.15, y + 0.15, 0), radius=r - 0.1, height=h, cut=True),
        ],
        n=len(u),
    )


def table(u: Numbers) -> Shape:
    """A plate on four legs."""
    w, h, d = between(u[:, 0], 0.75, 0.95), between(u[:, 1], 0.45, 0.62), between(u[:, 2], 0.06, 0.09)
    leg = {"section": SQUARE, "radius": d, "mirror_x": True, "mirror_z": True}
    return make_shape(
        [
            part((0, -1 + 2 * h, 0), section=EXTRUDED, radius=w, height=0.06, depth=0.6, rounding=0.03),
            part((w - 0.12, -1 + h, 0.46), height=h, **leg),
        ],
        n=len(u),
    )


def chair(u: Numbers) -> Shape:
    """A seat, four legs and a high back, turned to the side."""
    w, h, back = between(u[:, 0], 0.42, 0.52), between(u[:, 1], 0.4, 0.5), between(u[:, 2], 0.45, 0.55)
    seat = -1 + 2 * h
    leg = {"section": SQUARE, "radius": 0.07, "mirror_x": True, "mirror_z": True}
    return make_shape(
        [
            part((0, seat, 0), section=SQUARE, radius=w, height=0.06, rounding=0.03),
            part((w - 0.08, -1 + h, w - 0.08), height=h, **leg),
            part(
                (-w + 0.04, seat + back, 0),
                section=EXTRUDED,
                radius=0.06,
                height=back,
                depth=w,
                rounding=0.02,
            ),
        ],
        n=len(u),
    )


def house(u: Numbers) -> Shape:
    """A box under a gable roof, with a chimney and a door."""
    w, h, roof = between(u[:, 0], 0.55, 0.7), between(u[:, 1], 0.4, 0.52), between(u[:, 2], 0.25, 0.38)
    top = -1 + 2 * h
    return make_shape(
        [
            part((0, -1 + h, 0), section=EXTRUDED, radius=w, height=h, depth=0.5),
            part((0, top + roof, 0), section=EXTRUDED, bottom=w + 0.16, height=roof, depth=0.6),
            part((w * 0.55, top + roof, 0.1), section=SQUARE, radius=0.1, height=roof * 0.9),
            part((-0.05, -0.72, 0.5), section=EXTRUDED, radius=0.13, height=0.28, depth=0.12, cut=True),
        ],
        n=len(u),
    )


def tower(u: Numbers) -> Shape:
    """A round castle tower with battlements."""
    r, wide, n = between(u[:, 0], 0.36, 0.46), between(u[:, 1], 0.08, 0.16), len(u)
    return make_shape(
        [
            part((0, -0.2, 0), bottom=r + 0.06, top=r, height=0.8),
            part((0, 0.66, 0), radius=r + wide, height=0.18),
            part((r + wide, 0.9, 0), section=SQUARE, radius=0.12, height=0.14, repeat=True),
            part((0, 0.85, 0), radius=r, height=0.2, cut=True),
            part((0, -0.78, r), section=EXTRUDED, radius=0.12, height=0.22, depth=0.2, cut=True),
        ],
        count=8,
        n=n,
    )


def mushroom(u: Numbers) -> Shape:
    """A cap on a stem."""
    cap, stem, flat = between(u[:, 0], 0.68, 0.88), between(u[:, 1], 0.18, 0.3), between(u[:, 2], 0.6, 0.85)
    return make_shape(
        [
            part((0, 0.1, 0), scale=(1, flat, 1), rounding=cap),
            part((0, -0.35, 0), radius=1.2, height=0.42, cut=True),
            part((0, -0.45, 0), bottom=stem + 0.06, top=stem, height=0.52, rounding=0.03, blend=0.08),
        ],
        n=len(u),
    )


def lamp(u: Numbers) -> Shape:
    """A table lamp: a shade, a pole and a foot."""
    low, high, h = between(u[:, 0], 0.55, 0.72), between(u[:, 1], 0.22, 0.36), between(u[:, 2], 0.32, 0.42)
    return make_shape(
        [
            part((0, 0.95 - h, 0), bottom=low, top=high, height=h, rounding=0.02),
            part((0, -0.4, 0), radius=0.07, height=0.6),
            part((0, -0.95, 0), bottom=0.42, top=0.32, height=0.05, rounding=0.02, blend=0.1),
        ],
        n=len(u),
    )


def hammer(u: Numbers) -> Shape:
    """A hammer on the end of its handle."""
    head, thick, handle = (
        between(u[:, 0], 0.5, 0.65),
        between(u[:, 1], 0.17, 0.24),
        between(u[:, 2], 0.08, 0.12),
    )
    return make_shape(
        [
            part((0, -0.2, 0), bottom=handle + 0.04, top=handle, height=0.8),
            part((0, 0.66, 0), (0, 0, 90), radius=thick, height=head, rounding=0.03),
            part((head * 0.72, 0.66, 0), (0, 0, 90), radius=thick + 0.07, height=0.16, rounding=0.02),
        ],
        n=len(u),
    )


def bell(u: Numbers) -> Shape:
    """A bell with a wide lip, a clapper and a loop."""
    lip, waist = between(u[:, 0], 0.66, 0.82), between(u[:, 1], 0.36, 0.46)
    return make_shape(
        [
            part((0, -0.1, 0), bottom=waist + 0.06, top=0.14, height=0.6, bulge=0.12, rounding=0.08),
            part((0, -0.62, 0), bottom=lip, top=waist, height=0.2, rounding=0.03, blend=0.15),
            part((0, -0.85, 0), rounding=0.15),
            part((0, 0.75, 0), (90, 0, 0), ring=0.16, rounding=0.06, blend=0.04),
        ],
        n=len(u),
    )


def barrel(u: Numbers) -> Shape:
    """A barrel with two hoops."""
    r, bulge, h = between(u[:, 0], 0.42, 0.54), between(u[:, 1], 0.14, 0.24), between(u[:, 2], 0.72, 0.88)
    y = -1 + h
    hoop = {"radius": r + bulge * 0.72, "height": 0.045, "rounding": 0.03}
    return make_shape(
        [
            part((0, y, 0), radius=r, height=h, bulge=bulge),
            part((0, y + h * 0.5, 0), **hoop),
            part((0, y - h * 0.5, 0), **hoop),
            part((0, y + h, 0), radius=r - 0.08, height=0.06, cut=True),
        ],
        n=len(u),
    )


def star(u: Numbers) -> Shape:
    """A thick star with five points."""
    w, h, d = between(u[:, 0], 0.34, 0.42), 0.475, between(u[:, 1], 0.14, 0.22)
    point = part(
        (0, h, 0), section=EXTRUDED, bottom=w, top=0.0, height=h, depth=d, rounding=0.02, repeat=True
    )
    core = part((0, 0, 0), (90, 0, 0), radius=0.3, height=d, rounding=0.02)
    return make_shape([core, point], count=5, axis=1, n=len(u))


def heart(u: Numbers) -> Shape:
    """A thick heart."""
    r, d = between(u[:, 0], 0.44, 0.5), between(u[:, 1], 0.16, 0.26)
    return make_shape(
        [
            part((r * 0.88, 0.36, 0), (90, 0, 0), radius=r, height=d, rounding=0.06, mirror_x=True),
            part(
                (0, -0.36, 0),
                section=EXTRUDED,
                bottom=0.0,
                top=r * 1.5,
                height=0.58,
                bulge=0.14,
                depth=d,
                rounding=0.06,
            ),
            part((0, 0.25, 0), section=EXTRUDED, radius=r, height=0.2, depth=d, rounding=0.06),
        ],
        n=len(u),
    )


def cross(u: Numbers) -> Shape:
    """A cross with equal or longer arms."""
    w, y, d = between(u[:, 0], 0.2, 0.3), between(u[:, 1], 0.0, 0.3), between(u[:, 2], 0.16, 0.24)
    bar = {"section": EXTRUDED, "depth": d, "rounding": 0.03}
    return make_shape(
        [part((0, 0, 0), radius=w, height=0.97, **bar), part((0, y, 0), radius=0.8, height=w, **bar)],
        n=len(u),
    )


def arrow(u: Numbers) -> Shape:
    """An arrow that points up."""
    head, shaft, h = between(u[:, 0], 0.6, 0.75), between(u[:, 1], 0.16, 0.25), between(u[:, 2], 0.38, 0.5)
    flat = {"section": EXTRUDED, "depth": 0.2, "rounding": 0.02}
    return make_shape(
        [
            part((0, 0.96 - h, 0), bottom=head, height=h, **flat),
            part((0, -0.3, 0), radius=shaft, height=0.68, **flat),
        ],
        n=len(u),
    )


def gear(u: Numbers) -> Shape:
    """A gear wheel that stands, with a hole."""
    n = len(u)
    r, hole, d = between(u[:, 0], 0.62, 0.7), between(u[:, 1], 0.18, 0.32), between(u[:, 2], 0.14, 0.24)
    return make_shape(
        [
            part((0, 0, 0), (90, 0, 0), radius=r, height=d, rounding=0.02),
            part(
                (0, 0.8, 0),
                section=EXTRUDED,
                bottom=0.18,
                top=0.11,
                height=0.18,
                depth=d,
                rounding=0.02,
                repeat=True,
            ),
            part((0, 0, 0), (90, 0, 0), radius=hole, height=0.6, cut=True),
        ],
        count=np.round(between(u[:, 3], 7.6, 10.4)),
        axis=1,
        n=n,
    )


def crescent(u: Numbers) -> Shape:
    """A moon's sickle, open to the right."""
    x, r, d = between(u[:, 0], 0.36, 0.5), between(u[:, 1], 0.66, 0.74), between(u[:, 2], 0.16, 0.26)
    return make_shape(
        [
            part((0, 0, 0), (90, 0, 0), radius=0.93, height=d, rounding=0.05),
            part((x, 0.08, 0), (90, 0, 0), radius=r, height=0.8, cut=True, blend=0.04),
        ],
        n=len(u),
    )


def hourglass(u: Numbers) -> Shape:
    """Two cones tip to tip between two plates."""
    r, waist = between(u[:, 0], 0.46, 0.6), between(u[:, 1], 0.07, 0.12)
    plate = {"radius": r + 0.1, "height": 0.06, "rounding": 0.02}
    return make_shape(
        [
            part((0, -0.46, 0), bottom=r, top=waist, height=0.46, bulge=0.08),
            part((0, 0.46, 0), bottom=waist, top=r, height=0.46, bulge=0.08, blend=0.08),
            part((0, -0.92, 0), **plate),
            part((0, 0.92, 0), **plate),
        ],
        n=len(u),
    )


def dumbbell(u: Numbers) -> Shape:
    """Two balls on a bar."""
    r, bar, x = between(u[:, 0], 0.36, 0.46), between(u[:, 1], 0.09, 0.15), between(u[:, 2], 0.58, 0.66)
    return make_shape(
        [
            part((0, -1 + r, 0), (0, 0, 90), radius=bar, height=0.6),
            part((x, -1 + r, 0), rounding=r, mirror_x=True, blend=0.05),
        ],
        n=len(u),
    )


def tree(u: Numbers) -> Shape:
    """A fir tree: three cones on a trunk."""
    r, shrink = between(u[:, 0], 0.6, 0.74), between(u[:, 1], 0.7, 0.8)
    return make_shape(
        [
            part((0, -0.8, 0), radius=0.14, height=0.2),
            part((0, -0.3, 0), bottom=r, top=0.12, height=0.34, rounding=0.02),
            part((0, 0.14, 0), bottom=r * shrink, top=0.08, height=0.32, rounding=0.02),
            part((0, 0.6, 0), bottom=r * shrink**2, top=0.0, height=0.36, rounding=0.02),
        ],
        n=len(u),
    )


def arch(u: Numbers) -> Shape:
    """A gate: a block with a round opening."""
    w, hole, h = between(u[:, 0], 0.72, 0.88), between(u[:, 1], 0.34, 0.46), between(u[:, 2], 0.0, 0.16)
    return make_shape(
        [
            part((0, -0.12, 0), section=EXTRUDED, radius=w, height=0.86, depth=0.3, rounding=0.02),
            part((0, 0.82, 0), section=EXTRUDED, radius=w + 0.08, height=0.08, depth=0.36, rounding=0.02),
            part((0, h, 0), (90, 0, 0), radius=hole, height=1.0, cut=True),
            part(
                (0, (h - 1) / 2 - 0.1, 0),
                section=EXTRUDED,
                radius=hole,
                height=(h + 1) / 2 + 0.1,
                depth=1.0,
                cut=True,
            ),
        ],
        n=len(u),
    )


def stairs(u: Numbers) -> Shape:
    """Four steps that rise to the right."""
    d, rise = between(u[:, 0], 0.35, 0.5), between(u[:, 1], 0.32, 0.42)
    steps = []
    for i in range(4):
        half = rise * (i + 1) / 2
        steps.append(
            part((-0.63 + 0.42 * i, -1 + half, 0), section=EXTRUDED, radius=0.215, height=half, depth=d)
        )
    return make_shape(steps, n=len(u))


def pear(u: Numbers) -> Shape:
    """A pear with a stalk."""
    r, neck, y = between(u[:, 0], 0.54, 0.66), between(u[:, 1], 0.26, 0.34), between(u[:, 2], 0.3, 0.42)
    return make_shape(
        [
            part((0, -1 + r, 0), rounding=r),
            part((0, y, 0), rounding=neck, blend=0.55),
            part((0.03, y + neck + 0.1, 0), (0, 0, -14), radius=0.045, height=0.16, rounding=0.01),
        ],
        n=len(u),
    )


def gem(u: Numbers) -> Shape:
    """A cut stone: a low crown over a long pavilion."""
    w, crown, n = between(u[:, 0], 0.74, 0.9), between(u[:, 1], 0.16, 0.24), len(u)
    facet = {"section": EXTRUDED, "depth": 2.0, "repeat": True}
    y = 0.55 - crown
    return make_shape(
        [
            part((0, (y - 1) / 2, 0), bottom=0.02, top=w, height=(y + 1) / 2, **facet),
            part((0, y + crown, 0), bottom=w, top=w * 0.62, height=crown, **facet),
        ],
        count=7,
        n=n,
    )


FAMILIES: Mapping[str, Family] = {
    f.__name__: f
    for f in (
        *(ball, cube, cylinder, cone, pyramid, ring, vase, bottle, bowl, mug, table, chair, house, tower),
        *(mushroom, lamp, hammer, bell, barrel, star, heart, cross, arrow, gear, crescent, hourglass),
        *(dumbbell, tree, arch, stairs, pear, gem),
    )
}


def composition(generator: np.random.Generator, n: int) -> Shape:
    """Unnamed shapes: two to five random primitives on top of and beside each other, and now and then a cut.

    Args:
        generator: of the numbers that are drawn.
        n: how many.
    """
    count = generator.integers(2, 6, n)
    low = np.full(n, -1.0)
    parts: list[dict[str, Any]] = []
    for i in range(5):
        u = generator.random((n, 10))
        section = np.floor(u[:, 0] * 3)
        height = between(u[:, 1], 0.12, 0.5)
        bottom, top = between(u[:, 2], 0.12, 0.62), between(u[:, 3], 0.02, 0.62)
        bulge = np.where((u[:, 4] > 0.7) & (section == 0), between(u[:, 5], -0.1, 0.25), 0)
        beside = (u[:, 6] > 0.55) & (i > 0)
        y = np.where(beside, between(u[:, 7], -0.7, 0.4), low + height)
        x = np.where(beside, between(u[:, 8], -0.6, 0.6), 0)
        there = (i < count) & ((y + height < 0.95) | beside)
        low = np.where(there & ~beside, low + 2 * height, low)
        parts.append(
            part(
                (x, y, np.where(beside, between(u[:, 9], -0.2, 0.2), 0)),
                (0, between(u[:, 9], 0, 50), np.where(beside, between(u[:, 4], -60, 60), 0)),
                section=section,
                bottom=np.where(beside, 0.6, 1) * bottom,
                top=np.where(beside, 0.6, 1) * top,
                height=height,
                bulge=bulge,
                depth=between(u[:, 5], 0.12, 0.4),
                rounding=np.where(there, 0.03, -1e3),
                blend=np.where(u[:, 1] > 0.6, 0.15, 0.02),
                mirror_x=False,
            )
        )
    for one in parts:
        one["mirror_x"] = (generator.random(n) > 0.5).astype(np.float32)
    u = generator.random((n, 4))
    hole = part(
        (between(u[:, 0], -0.4, 0.4), between(u[:, 1], -0.6, 0.4), 0),
        (90, 0, 0),
        radius=between(u[:, 2], 0.12, 0.3),
        height=1.2,
        rounding=np.where(u[:, 3] > 0.6, 0.0, -1e3),
        cut=True,
    )
    return make_shape([*parts, hole], n=n)
