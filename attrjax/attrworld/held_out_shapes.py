"""The families of shapes that are held out: references of the benchmark, which no model is trained on."""

from collections.abc import Mapping

from attrjax.attrworld.sdf import EXTRUDED, SQUARE, Shape, make_shape, part
from attrjax.attrworld.shapes import Family, Numbers, between


def teapot(u: Numbers) -> Shape:
    """A belly with a spout, a handle and a lid."""
    r, flat = between(u[:, 0], 0.56, 0.64), between(u[:, 1], 0.8, 0.95)
    y = -1 + 0.62 * flat + 0.04
    return make_shape(
        [
            part((0, y, 0), scale=(1, flat, 1), rounding=r),
            part((0, -0.96, 0), radius=0.36, height=0.04, blend=0.05),
            part(
                (0.72, y + 0.1, 0), (0, 0, -48), bottom=0.15, top=0.07, height=0.36, rounding=0.02, blend=0.1
            ),
            part((-0.66, y + 0.05, 0), (90, 0, 0), ring=0.28, rounding=0.07, blend=0.03),
            part((0, y + r * flat, 0), bottom=0.3, top=0.2, height=0.06, rounding=0.03, blend=0.03),
            part((0, y + r * flat + 0.17, 0), rounding=0.11, blend=0.03),
        ],
        n=len(u),
    )


def pagoda(u: Numbers) -> Shape:
    """Three storeys with wide roofs and a spire."""
    w, shrink = between(u[:, 0], 0.7, 0.85), between(u[:, 1], 0.72, 0.82)
    parts = []
    for i in range(3):
        y = -1 + 0.55 * i
        parts.append(
            part((0, y + 0.16, 0), (0, 35, 0), section=SQUARE, radius=w * 0.55 * shrink**i, height=0.17)
        )
        parts.append(
            part(
                (0, y + 0.42, 0),
                (0, 35, 0),
                section=SQUARE,
                bottom=w * shrink**i,
                top=0.2 * shrink**i,
                height=0.15,
                bulge=-0.05,
                rounding=0.02,
            )
        )
    parts.append(part((0, 0.74, 0), bottom=0.09, top=0.0, height=0.24))
    return make_shape(parts, n=len(u))


def rocket(u: Numbers) -> Shape:
    """A bulging body with a nose, a nozzle and fins."""
    r, fin = between(u[:, 0], 0.3, 0.38), between(u[:, 1], 0.3, 0.4)
    return make_shape(
        [
            part((0, -0.1, 0), bottom=r * 0.75, top=r * 0.8, height=0.55, bulge=0.08),
            part((0, 0.7, 0), bottom=r * 0.8, top=0.0, height=0.27, bulge=0.08, blend=0.03),
            part((0, -0.78, 0), bottom=r * 0.75, top=r * 0.45, height=0.14),
            part(
                (r * 0.7 + fin * 0.45, -0.66, 0),
                section=EXTRUDED,
                bottom=fin * 0.75,
                top=0.08,
                height=0.34,
                depth=0.05,
                repeat=True,
            ),
            part((0, 0.2, r + 0.04), (90, 0, 0), ring=0.13, rounding=0.04),
        ],
        count=4,
        n=len(u),
    )


def windmill(u: Numbers) -> Shape:
    """A tapered tower with a cap and four sails."""
    r, sail = between(u[:, 0], 0.38, 0.46), between(u[:, 1], 0.1, 0.14)
    return make_shape(
        [
            part((0, -0.42, -0.1), bottom=r, top=r * 0.6, height=0.58),
            part((0, 0.16, -0.1), scale=(1, 0.9, 1), rounding=r * 0.66),
            part((0.0, 0.12, 0.3), (90, 0, 0), radius=0.06, height=0.16),
            part((0, 0.1 + 0.45, 0.4), (0, 0, 20), section=EXTRUDED, radius=0.02, height=0.0, depth=0.02),
            part((0.43, 0.53, 0.42), (0, 0, -45), section=EXTRUDED, radius=sail, height=0.44, depth=0.03),
            part((-0.43, 0.53, 0.42), (0, 0, 45), section=EXTRUDED, radius=sail, height=0.44, depth=0.03),
            part((0.43, -0.29, 0.42), (0, 0, 45), section=EXTRUDED, radius=sail, height=0.44, depth=0.03),
            part((-0.43, -0.29, 0.42), (0, 0, -45), section=EXTRUDED, radius=sail, height=0.44, depth=0.03),
        ],
        n=len(u),
    )


def guitar(u: Numbers) -> Shape:
    """A waisted body with a sound hole, a neck and a head."""
    r, waist = between(u[:, 0], 0.42, 0.48), between(u[:, 1], 0.3, 0.36)
    return make_shape(
        [
            part((0, -1 + r + 0.04, 0), (90, 0, 0), radius=r, height=0.12, rounding=0.04),
            part((0, -0.06, 0), (90, 0, 0), radius=waist, height=0.12, rounding=0.04, blend=0.14),
            part((0, -0.3, 0.2), (90, 0, 0), radius=0.14, height=0.12, cut=True),
            part((0, 0.4, 0.12), section=EXTRUDED, radius=0.06, height=0.55, depth=0.05),
            part((0, 0.86, 0.12), section=EXTRUDED, bottom=0.08, top=0.14, height=0.13, depth=0.05),
        ],
        n=len(u),
    )


def chess(u: Numbers) -> Shape:
    """A chess queen: a foot, a waisted body, a collar, a crown and a ball."""
    foot, waist = between(u[:, 0], 0.44, 0.54), between(u[:, 1], 0.15, 0.2)
    return make_shape(
        [
            part((0, -0.9, 0), radius=foot - 0.03, height=0.07, rounding=0.03),
            part((0, -0.72, 0), bottom=foot - 0.08, top=waist + 0.1, height=0.14, blend=0.08),
            part((0, -0.1, 0), bottom=waist + 0.1, top=waist, height=0.55, blend=0.1),
            part((0, 0.4, 0), radius=waist + 0.14, height=0.02, rounding=0.03),
            part((0, 0.58, 0), bottom=waist, top=waist + 0.16, height=0.18, blend=0.04),
            part((0.3, 0.82, 0), rounding=0.09, repeat=True),
            part((0, 0.84, 0), rounding=0.13),
        ],
        count=7,
        n=len(u),
    )


def airplane(u: Numbers) -> Shape:
    """An airplane from above, nose up."""
    body, wing = between(u[:, 0], 0.15, 0.2), between(u[:, 1], 0.78, 0.92)
    return make_shape(
        [
            part((0, 0, 0), scale=(1, 4.8, 1), rounding=body + 0.04),
            part(
                (wing * 0.5, 0.02, 0),
                (0, 0, 72),
                section=EXTRUDED,
                bottom=0.1,
                top=0.22,
                height=wing * 0.5,
                depth=0.04,
                mirror_x=True,
            ),
            part(
                (0.22, -0.8, 0),
                (0, 0, 75),
                section=EXTRUDED,
                bottom=0.06,
                top=0.12,
                height=0.22,
                depth=0.04,
                mirror_x=True,
            ),
            part((0, -0.76, 0.16), section=EXTRUDED, radius=0.03, height=0.16, depth=0.16),
        ],
        n=len(u),
    )


def cactus(u: Numbers) -> Shape:
    """A column with two arms that bend up."""
    r, left, right = between(u[:, 0], 0.2, 0.26), between(u[:, 1], -0.25, -0.05), between(u[:, 2], 0.1, 0.3)
    arm = 0.13
    return make_shape(
        [
            part((0, -0.1, 0), radius=0.0, height=0.7, rounding=r),
            part((-0.36, left, 0), (0, 0, 90), radius=0.0, height=0.2, rounding=arm, blend=0.06),
            part((-0.56, left + 0.24, 0), radius=0.0, height=0.24, rounding=arm, blend=0.06),
            part((0.36, right, 0), (0, 0, 90), radius=0.0, height=0.2, rounding=arm, blend=0.06),
            part((0.56, right + 0.2, 0), radius=0.0, height=0.2, rounding=arm, blend=0.06),
            part((0, -0.88, 0), bottom=0.32, top=0.4, height=0.12, rounding=0.02),
        ],
        n=len(u),
    )


def trophy(u: Numbers) -> Shape:
    """A cup with two handles on a stem and a block."""
    r, grip = between(u[:, 0], 0.44, 0.54), between(u[:, 1], 0.22, 0.28)
    return make_shape(
        [
            part((0, 0.45, 0), bottom=0.12, top=r, height=0.5, bulge=0.16),
            part((r * 0.95, 0.55, 0), (90, 0, 0), ring=grip, rounding=0.055, mirror_x=True),
            part((0, 0.75, 0), bottom=r * 0.6, top=r - 0.05, height=0.32, cut=True),
            part((0, -0.3, 0), radius=0.08, height=0.35, blend=0.1),
            part((0, -0.62, 0), bottom=0.3, top=0.1, height=0.1, blend=0.05),
            part((0, -0.85, 0), section=SQUARE, radius=0.36, height=0.14, rounding=0.01),
        ],
        n=len(u),
    )


def anchor(u: Numbers) -> Shape:
    """A ring, a shaft with a bar, and a curved crown with two flukes."""
    r, bar = between(u[:, 0], 0.58, 0.68), between(u[:, 1], 0.34, 0.46)
    return make_shape(
        [
            part((0, -1 + r + 0.1, 0), (90, 0, 0), ring=r, rounding=0.1),
            part((0, 0.2, 0), section=EXTRUDED, radius=1.2, height=1.2 - r + 0.12 + 0.1, depth=1.0, cut=True),
            part(
                (r, -0.2, 0),
                section=EXTRUDED,
                bottom=0.22,
                top=0.0,
                height=0.16,
                depth=0.07,
                rounding=0.02,
                mirror_x=True,
            ),
            part((0, -0.1, 0), radius=0.085, height=0.8),
            part((0, 0.42, 0), (0, 0, 90), radius=0.08, height=bar, rounding=0.01),
            part((0, 0.8, 0), (90, 0, 0), ring=0.16, rounding=0.06),
        ],
        n=len(u),
    )


def snowman(u: Numbers) -> Shape:
    """Three balls and a hat."""
    r, shrink = between(u[:, 0], 0.46, 0.54), between(u[:, 1], 0.7, 0.78)
    middle = -1 + r * 1.75 + r * shrink * 0.75
    head = middle + r * shrink * 0.8 + r * shrink**2 * 0.8
    return make_shape(
        [
            part((0, -1 + r, 0), rounding=r),
            part((0, middle, 0), rounding=r * shrink),
            part((0, head, 0), rounding=r * shrink**2),
            part((0, head, r * shrink**2 + 0.08), (90, 0, 0), bottom=0.06, top=0.01, height=0.14),
            part((0, head + r * shrink**2 * 0.75, 0), radius=0.34, height=0.03),
            part((0, head + r * shrink**2 * 0.75 + 0.15, 0), radius=0.2, height=0.15),
            part((r * shrink + 0.14, middle + 0.18, 0), (0, 0, -55), radius=0.04, height=0.26, mirror_x=True),
        ],
        n=len(u),
    )


def umbrella(u: Numbers) -> Shape:
    """An open umbrella with a crook."""
    r, n = between(u[:, 0], 0.82, 0.94), len(u)
    return make_shape(
        [
            part((0, 0.05, 0), scale=(1, 0.85, 1), rounding=r),
            part((0, -0.02, 0), scale=(1, 0.85, 1), rounding=r - 0.06, cut=True),
            part((0, -0.8, 0), radius=1.2, height=0.95, cut=True),
            part((0, 0.05, 0), radius=0.045, height=0.88),
            part((0.13, -0.82, 0), (90, 0, 0), ring=0.13, rounding=0.05),
            part((0.13, -0.72, 0), section=EXTRUDED, radius=0.07, height=0.1, depth=0.1, cut=True),
        ],
        n=n,
    )


def key(u: Numbers) -> Shape:
    """A key with its bow up and two teeth."""
    r, shaft = between(u[:, 0], 0.28, 0.34), between(u[:, 1], 0.08, 0.11)
    return make_shape(
        [
            part((0, 0.52, 0), (90, 0, 0), ring=r, rounding=0.11),
            part((0, -0.4, 0), radius=shaft, height=0.6, blend=0.03),
            part((0.24, -0.85, 0), section=EXTRUDED, radius=0.2, height=0.09, depth=0.06, rounding=0.01),
            part((0.2, -0.52, 0), section=EXTRUDED, radius=0.16, height=0.08, depth=0.06, rounding=0.01),
        ],
        n=len(u),
    )


def duck(u: Numbers) -> Shape:
    """A toy duck that looks to the right."""
    body, head = between(u[:, 0], 0.5, 0.58), between(u[:, 1], 0.3, 0.36)
    return make_shape(
        [
            part((-0.1, -1 + body * 0.85, 0), scale=(1.35, 0.85, 1), rounding=body),
            part(
                (-0.72, -0.38, 0), (0, 0, 48), bottom=0.22, top=0.04, height=0.24, rounding=0.04, blend=0.15
            ),
            part((0.42, 0.28, 0), rounding=head, blend=0.22),
            part((0.8, 0.2, 0), scale=(1.3, 0.55, 1), rounding=0.17, blend=0.04),
            part((-0.12, -0.48, 0.46), scale=(1.5, 0.8, 0.5), rounding=0.26, blend=0.03),
        ],
        n=len(u),
    )


FAMILIES: Mapping[str, Family] = {
    f.__name__: f
    for f in (
        *(teapot, pagoda, rocket, windmill, guitar, chess, airplane, cactus, trophy, anchor, snowman),
        *(umbrella, key, duck),
    )
}
