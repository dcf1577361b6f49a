"""Pictures of shapes and materials that a user makes up, in a few lines and without families.

A lollipop with a swirl of rings, from the front:

    from attrjax.attrworld.concepts import render_concept
    from attrjax.attrworld.materials import layer, make_material
    from attrjax.attrworld.sdf import make_shape, part

    lollipop = make_shape(
        [
            part((0, 0.3, 0), (90, 0, 0), radius=0.6, height=0.1, rounding=0.08),  # a disc upright
            part((0, -0.6, 0), radius=0.05, height=0.4),  # on a stick
        ]
    )
    # Rings around the disc's own axis: the offset moves them to its middle, and noise bends them a little.
    swirl = layer("rings", 3.0, (90, 0, 0), (0, 0, -0.9), warp=0.7, warp_frequency=1.2)
    candy = make_material([(0.97, 0.95, 0.9), (0.9, 0.2, 0.5)], swirl, gloss=0.8)
    seen = render_concept(lollipop, candy, backdrop="lavender")
    seen.picture, seen.mask, seen.depth  # [64, 64, 3] in [0, 1], [64, 64] in [0, 1], [64, 64]

``Image.fromarray(np.uint8(255 * seen.picture))`` is a picture to learn the concept from, and ``render`` of
``attrworld.render`` is the same without checks, for ``vmap`` and ``grad``.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from attrjax.arguments import did_you_mean
from attrjax.attrworld.materials import Material
from attrjax.attrworld.render import Rendered, Scene, render_batch
from attrjax.attrworld.scenes import BACKDROPS
from attrjax.attrworld.sdf import Shape


def render_concept(
    shape: Shape,
    material: Material,
    *,
    size: int = 64,
    samples: int = 1,
    azimuth: float = 0.0,
    elevation: float = 0.25,
    zoom: float = 1.1,
    shift: Sequence[float] = (0.0, 0.0),
    light: Sequence[float] = (-0.75, 0.9, 0.75),
    warmth: float = 0.0,
    softness: float = 0.5,
    backdrop: str | Sequence[float] = "white",
) -> Rendered:
    """One shape in one material, seen; the module has an example.

    Args:
        shape: as ``sdf.make_shape`` makes it without n. It should stand on y = -1 and lie within 1.5 of the
            middle; what is further away is cut off.
        material: as ``materials.make_material`` makes it without n.
        size: side of the picture in pixels.
        samples: rays for a pixel in each direction.
        azimuth, elevation: of the camera, in radians; 0 and 0 is in front of the object, at its level.
        zoom: 1 shows 2.9 units of height.
        shift: of the picture to the right and up, in halves of its side.
        light: direction to the light in the camera's axes (right, up, towards the viewer); any length.
        warmth: of the light, -1 is cold, 1 is warm.
        softness: of the shadow, in [0, 1].
        backdrop: a key of ``scenes.BACKDROPS``, or a colour in sRGB, three numbers in [0, 1].

    Returns:
        picture [size, size, 3] in sRGB, in [0, 1], mask [size, size] in [0, 1], and depth [size, size] in
        units of the world.

    Raises:
        ValueError: the shape or the material is of another type, or many at once; there is no such backdrop;
            or a number is out of its range.
    """
    _check_single(shape, Shape, "count", "sdf.make_shape")
    _check_single(material, Material, "gloss", "materials.make_material")
    if size < 1 or samples < 1:
        raise ValueError(f"size={size} and samples={samples} must be at least 1")
    if not zoom > 0:
        raise ValueError(f"zoom={zoom} must be positive")
    if not 0 <= softness <= 1:
        raise ValueError(f"softness={softness} must be in [0, 1]")
    if isinstance(backdrop, str):
        if backdrop not in BACKDROPS:
            raise ValueError(f"there is no backdrop {backdrop!r}{did_you_mean(backdrop, BACKDROPS)}")
        backdrop = BACKDROPS[backdrop]
    colour = _numbers(backdrop, 3, "backdrop")
    if colour.min() < 0 or colour.max() > 1:
        raise ValueError(
            f"backdrop={tuple(backdrop)} must be in [0, 1], or a name out of {', '.join(BACKDROPS)}"
        )
    towards = _numbers(light, 3, "light")
    if not towards.any():
        raise ValueError("light must point somewhere, not be all zeros")
    scene = Scene(
        shape=shape,
        material=material,
        azimuth=azimuth,
        elevation=elevation,
        zoom=zoom,
        shift=_numbers(shift, 2, "shift"),
        light=towards,
        warmth=warmth,
        softness=softness,
        backdrop=colour,
    )
    one = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], scene)
    return jax.tree.map(lambda leaf: leaf[0], render_batch(one, size=size, samples=samples))


def _check_single(value: Any, kind: type, leaf: str, maker: str) -> None:
    """``leaf`` is one of the value's arrays that has no axis unless there are many variants."""
    what = kind.__name__.lower()
    if not isinstance(value, kind):
        raise ValueError(
            f"{what} must be what {maker} makes, not {value!r}; scenes.draw_{what}s finds families by name"
        )
    variants = np.shape(getattr(value, leaf))
    if variants:
        raise ValueError(
            f"{what} must be a single one, and there are {variants[0]}: "
            f"take jax.tree.map(lambda leaf: leaf[0], {what}), or make it without n"
        )


def _numbers(value: Sequence[float], n: int, what: str) -> np.ndarray:
    numbers = np.asarray(value, np.float32)
    if numbers.shape != (n,) or not np.isfinite(numbers).all():
        raise ValueError(f"{what}={value!r} must be {n} finite numbers")
    return numbers
