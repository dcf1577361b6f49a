"""What is in the pictures: scenes drawn at random, and the facts about them that captions are made of.

Scenes are drawn on the host with numpy, some ten thousand a second, and rendered on the device.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from attrjax.attrworld import held_out_looks, held_out_shapes, looks, shapes
from attrjax.attrworld.captions import Facts
from attrjax.attrworld.materials import Material
from attrjax.attrworld.render import Scene
from attrjax.attrworld.sdf import Shape

SHAPES: Mapping[str, shapes.Family] = {**shapes.FAMILIES, **held_out_shapes.FAMILIES}
LOOKS: Mapping[str, looks.Look] = {**looks.FAMILIES, **held_out_looks.FAMILIES}
# Shares of pictures whose shape is a random composition, and whose material is a random pattern.
UNNAMED_SHAPES, UNNAMED_MATERIALS = 0.15, 0.25
BACKDROPS: Mapping[str, tuple[float, float, float]] = {
    "white": (0.93, 0.93, 0.94),
    "gray": (0.6, 0.61, 0.63),
    "black": (0.16, 0.16, 0.18),
    "blue": (0.56, 0.72, 0.9),
    "green": (0.62, 0.8, 0.64),
    "pink": (0.95, 0.75, 0.8),
    "beige": (0.91, 0.84, 0.72),
    "lavender": (0.77, 0.71, 0.89),
}
# Where shapes and materials of training stand in their lists; no name is in both.
_PLACES = {name: i for names in (shapes.FAMILIES, looks.FAMILIES) for i, name in enumerate(names)}
LIGHTS = {"left": -0.75, "front": 0.0, "right": 0.75}


class Drawn(NamedTuple):
    """Scenes with the facts about each.

    Attributes:
        scene: arrays with a leading axis [n].
        facts: n of them.
    """

    scene: Scene
    facts: list[Facts]


def generator_of(key: Key[Array, ""]) -> np.random.Generator:
    """numpy's generator for a typed key of jax, so that one tree of keys serves both."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def draw_scenes(
    generator: np.random.Generator,
    n: int,
    *,
    shape_names: Sequence[str] | None = None,
    material_names: Sequence[str] | None = None,
    views: bool = True,
) -> Drawn:
    """Scenes at random.

    Args:
        generator: of all that is drawn.
        n: how many.
        shape_names: n families, "" for a random composition; None draws from those of training.
        material_names: n families, "" for a random pattern; None draws from those of training, and never an
            ``unseen`` one for its shape.
        views: whether camera and light vary; else they are those of a catalogue.

    Raises:
        ValueError: a name is not known.
    """
    if shape_names is None:
        shape_names = draw_names(generator, n, list(shapes.FAMILIES), UNNAMED_SHAPES)
    if material_names is None:
        material_names = draw_names(generator, n, list(looks.FAMILIES), UNNAMED_MATERIALS)
        material_names = [_seen(*pair) for pair in zip(shape_names, material_names, strict=True)]
    shape = draw_shapes(generator, shape_names)
    material, patterns, colours = draw_materials(generator, material_names)
    u = generator.random((n, 10)) if views else np.full((n, 10), 0.5)
    light_names = [list(LIGHTS)[i] for i in np.minimum(3 * u[:, 0], 2).astype(int)]
    if not views:
        light_names = ["left"] * n
    names = [list(BACKDROPS)[i] for i in generator.integers(0, len(BACKDROPS), n)]
    above = u[:, 1] > 0.6
    elevation = np.where(above, 0.4 + 0.2 * u[:, 2], 0.08 + 0.2 * u[:, 2])
    sideways = np.array([LIGHTS[name] for name in light_names]) + 0.25 * (u[:, 3] - 0.5)
    light = np.stack([sideways, 0.75 + 0.3 * u[:, 4], np.full(n, 0.75)], -1)
    backdrop = np.array([BACKDROPS[name] for name in names]) + 0.06 * (u[:, 5:6] - 0.5)
    scene = Scene(
        shape=shape,
        material=material,
        azimuth=1.1 * (u[:, 6] - 0.5),
        elevation=elevation,
        zoom=0.92 + 0.16 * u[:, 7],
        shift=0.12 * (u[:, 8:10] - 0.5),
        light=light,
        warmth=2 * u[:, 2] - 1,
        softness=u[:, 4],
        backdrop=backdrop,
    )
    scene = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), scene)
    gloss = np.asarray(material.gloss)
    facts = [
        Facts(
            shape=shape_names[i],
            material=material_names[i],
            pattern=patterns[i],
            colours=colours[i],
            finish=("glossy" if gloss[i] > 0.5 else "matte")
            if patterns[i] or material_names[i] in looks.COLOURS
            else "",
            backdrop=names[i],
            light=light_names[i],
            view="above" if above[i] else "level",
        )
        for i in range(n)
    ]
    return Drawn(scene, facts)


def draw_grid(generator: np.random.Generator, rows: int, columns: int) -> Drawn:
    """Scenes of every row's shape in every column's material, row by row, of families of training.

    Each scene has variants, view, light and backdrop of its own. A model that tells such scenes apart must
    see both attributes.
    """
    shape_names = draw_names(generator, rows, list(shapes.FAMILIES), UNNAMED_SHAPES)
    material_names = draw_names(generator, columns, list(looks.FAMILIES), UNNAMED_MATERIALS)
    pairs = [(s, _seen(s, m)) for s in shape_names for m in material_names]
    names, materials = zip(*pairs, strict=True)
    return draw_scenes(generator, len(pairs), shape_names=names, material_names=materials)


def draw_names(generator: np.random.Generator, n: int, names: Sequence[str], unnamed: float) -> list[str]:
    """n of the names with equal chances, and "" for a share of ``unnamed``."""
    chosen = generator.integers(0, len(names), n)
    nameless = generator.random(n) < unnamed
    return ["" if no else names[i] for i, no in zip(chosen, nameless, strict=True)]


def unseen(shape: str, material: str) -> bool:
    """Whether a pair of named families is held out: one in eight, in no picture of training.

    They lie on diagonals, so that every shape and every material has as many of them as any other, give or
    take one.
    """
    return shape in _PLACES and material in _PLACES and (_PLACES[shape] + _PLACES[material]) % 8 == 0


def draw_shapes(generator: np.random.Generator, names: Sequence[str]) -> Shape:
    """A shape of each named family; "" is a random composition.

    Raises:
        ValueError: a name is not known.
    """
    _check(names, SHAPES, "shape")

    def make(name: str, n: int) -> Shape:
        return SHAPES[name](generator.random((n, 6))) if name else shapes.composition(generator, n)

    return _by_name(names, make)


def draw_materials(
    generator: np.random.Generator, names: Sequence[str]
) -> tuple[Material, list[str], list[tuple[str, ...]]]:
    """A material of each named family; "" is a random pattern.

    Returns:
        the materials [n], and for each unnamed one its pattern and colours ("" and () for named ones).

    Raises:
        ValueError: a name is not known.
    """
    _check(names, LOOKS, "material")
    patterns = [""] * len(names)
    colours: list[tuple[str, ...]] = [()] * len(names)

    def make(name: str, n: int) -> Material:
        if name:
            return LOOKS[name](generator.random((n, 6)))
        material, drawn_patterns, drawn_colours = looks.unnamed(generator, n)
        places = [i for i, other in enumerate(names) if not other]
        for i, pattern, chosen in zip(places, drawn_patterns, drawn_colours, strict=True):
            patterns[i], colours[i] = pattern, chosen
        return material

    return _by_name(names, make), patterns, colours


def _seen(shape: str, material: str) -> str:
    """The material, or the next one in order with which the shape is not held out."""
    names = list(looks.FAMILIES)
    while unseen(shape, material):
        material = names[(names.index(material) + 1) % len(names)]
    return material


def _check(names: Sequence[str], known: Mapping, what: str) -> None:
    for name in names:
        if name and name not in known:
            raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}")


def _by_name(names: Sequence[str], make):
    """Variants made a family at a time, put back into the order of the names."""
    order, made = [], []
    for name in sorted(set(names)):
        places = [i for i, other in enumerate(names) if other == name]
        order += places
        made.append(make(name, len(places)))
    back = np.argsort(order)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *made)
