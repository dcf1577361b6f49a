"""Materials that no model is trained on: their appearance is what is learned from one picture."""

from collections.abc import Mapping

from attrjax.attrworld.looks import Look, anywhere
from attrjax.attrworld.materials import Material, layer, make_material
from attrjax.attrworld.shapes import Numbers, between


def porcelain(u: Numbers) -> Material:
    """Blue curls and bands on white china."""
    curls = layer("contours", 1.25, (0, 0, 0), anywhere(u), 0.7, 0.05, warp=0.4)
    bands = layer("stripes", (0, 0.72, 0), (0, 0, 0), (0, 0.3, 0), 0.86, 0.02)
    return make_material(
        [(0.96, 0.97, 0.98), (0.12, 0.22, 0.62), (0.09, 0.17, 0.55)], curls, bands, gloss=0.9, n=len(u)
    )


def tiger(u: Numbers) -> Material:
    """Black stripes on orange that fray, with pale patches."""
    stripes = layer("stripes", 2.2, (10, 0, 8), anywhere(u), 0.62, 0.08, warp=1.5, warp_frequency=1.5)
    return make_material(
        [(0.93, 0.52, 0.12), (0.06, 0.05, 0.05), (0.9, 0.9, 0.9), (0.97, 0.82, 0.6)],
        stripes,
        mottle=0.5,
        mottle_frequency=1.3,
        gloss=0.1,
        n=len(u),
    )


def watermelon(u: Numbers) -> Material:
    """Dark jagged stripes on light green."""
    stripes = layer("stripes", 1.9, (0, 0, 90), anywhere(u), 0.5, 0.12, warp=1.0, warp_frequency=3.2)
    return make_material(
        [(0.55, 0.78, 0.36), (0.09, 0.32, 0.13), (0.1, 0.3, 0.1), (0.42, 0.66, 0.3)],
        stripes,
        mottle=0.5,
        mottle_frequency=5.0,
        gloss=0.4,
        n=len(u),
    )


def terrazzo(u: Numbers) -> Material:
    """Chips of pink, ochre and grey in cream."""
    chips = layer("cells", 3.6, (10, 20, 30), anywhere(u), 0.42, 0.04, shuffle=1.0)
    colours = [(0.93, 0.9, 0.85), (0.86, 0.5, 0.45), (0.8, 0.62, 0.25), (0.35, 0.42, 0.46)]
    return make_material(colours, chips, gloss=0.5, n=len(u))


def tartan(u: Numbers) -> Material:
    """Red cloth with crossing bands of green and thin yellow lines."""
    bands = layer("grid", 1.5, (0, 0, 0), anywhere(u), 0.62, 0.02, amount=0.75)
    lines = layer("grid", 1.5, (0, 0, 0), tuple(o + 0.5 for o in anywhere(u)), 0.92, 0.02, amount=0.9)
    return make_material(
        [(0.74, 0.1, 0.12), (0.07, 0.25, 0.17), (0.93, 0.83, 0.35)], bands, lines, gloss=0.04, n=len(u)
    )


def glass(u: Numbers) -> Material:
    """Stained glass: bright panes in lead."""
    panes = layer("cells", 2.0, (10, 20, 30), anywhere(u), 0.13, 0.03, shuffle=1.0)
    colours = [(0.05, 0.05, 0.06), (0.95, 0.75, 0.1), (0.1, 0.35, 0.9), (0.85, 0.1, 0.2)]
    return make_material(colours, panes, gloss=0.8, glow=0.25, n=len(u))


def rust(u: Numbers) -> Material:
    """Flaking paint over rusted iron."""
    flakes = layer("noise", 2.4, (0, 0, 0), anywhere(u), 0.5, 0.06, warp=0.8, warp_frequency=4.0)
    pits = layer("noise", 9.0, (30, 0, 0), anywhere(u), 0.62, 0.1)
    return make_material(
        [(0.35, 0.5, 0.52), (0.6, 0.27, 0.1), (0.3, 0.13, 0.07), (0.72, 0.4, 0.16)],
        flakes,
        pits,
        mottle=0.25,
        mottle_frequency=5,
        gloss=0.03,
        n=len(u),
    )


def circuit(u: Numbers) -> Material:
    """Golden traces on a green board."""
    traces = layer("steps", 3.2, (0, 0, 0), anywhere(u), 0.74, 0.05)
    return make_material([(0.04, 0.33, 0.17), (0.88, 0.76, 0.35)], traces, gloss=0.4, n=len(u))


def honeycomb(u: Numbers) -> Material:
    """Amber cells in wax."""
    cells = layer("hexagons", between(u[:, 0], 2.6, 3.2), (0, 0, 0), anywhere(u), 0.2, 0.04)
    return make_material(
        [(0.98, 0.86, 0.42), (0.82, 0.48, 0.05), (0.8, 0.5, 0.1), (0.6, 0.3, 0.02)],
        cells,
        mottle=0.35,
        gloss=0.6,
        n=len(u),
    )


def galaxy(u: Numbers) -> Material:
    """Violet and blue nebulae with stars in the dark."""
    nebula = layer("noise", 1.5, (0, 0, 0), anywhere(u), 0.58, 0.28, warp=0.9)
    stars = layer("spots", 5.5, (20, 10, 5), anywhere(u), 0.83, 0.03)
    return make_material(
        [(0.05, 0.04, 0.18), (0.62, 0.16, 0.66), (1.0, 1.0, 0.95), (0.1, 0.3, 0.75)],
        nebula,
        stars,
        mottle=0.5,
        mottle_frequency=1.5,
        gloss=0.3,
        glow=0.25,
        n=len(u),
    )


def lava(u: Numbers) -> Material:
    """Glowing cracks in black rock."""
    cracks = layer("cells", 2.2, (10, 20, 30), anywhere(u), 0.16, 0.12, warp=0.7, warp_frequency=2.0)
    return make_material(
        [(1.0, 0.42, 0.03), (0.1, 0.08, 0.08), (0.1, 0.08, 0.08), (1.0, 0.7, 0.1)],
        cracks,
        gloss=0.1,
        glow=0.35,
        n=len(u),
    )


def strawberry(u: Numbers) -> Material:
    """Pale seeds on bright red."""
    seeds = layer("dots", (2.4, 1.8, 2.4), (20, 0, 10), anywhere(u), 0.58, 0.03)
    return make_material([(0.88, 0.07, 0.14), (0.98, 0.88, 0.5)], seeds, gloss=0.6, n=len(u))


def malachite(u: Numbers) -> Material:
    """Bands of light and dark green that follow each other."""
    bands = layer("contours", 1.0, (0, 0, 0), anywhere(u), 0.5, 0.4, warp=0.5)
    return make_material([(0.03, 0.3, 0.22), (0.3, 0.78, 0.58)], bands, gloss=0.7, n=len(u))


def bamboo(u: Numbers) -> Material:
    """Yellow-green canes with dark joints."""
    canes = layer("stripes", (0, 3.2, 0), (0, 0, 90), anywhere(u), 0.84, 0.06)
    joints = layer("stripes", (0, 1.3, 0), (0, 0, 0), anywhere(u), 0.93, 0.02)
    return make_material(
        [(0.74, 0.76, 0.38), (0.42, 0.46, 0.17), (0.36, 0.3, 0.14)], canes, joints, gloss=0.35, n=len(u)
    )


FAMILIES: Mapping[str, Look] = {
    f.__name__: f
    for f in (
        *(porcelain, tiger, watermelon, terrazzo, tartan, glass, rust, circuit, honeycomb, galaxy, lava),
        *(strawberry, malachite, bamboo),
    )
}
