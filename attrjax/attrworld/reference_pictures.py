"""The pictures that attributes are learned from where a user gives none: ``python -m
attrjax.attrworld.reference_pictures``.

Each shows a shape and a material that no part of the bundled base was trained on.
"""

import numpy as np

from attrjax.attrworld.bundled import REFERENCES
from attrjax.attrworld.evaluate import seen
from attrjax.attrworld.scenes import draw_scenes
from attrjax.data.pictures import png_bytes
from attrjax.runs import write_whole

# attribute: (shape, material); the first is learned for "shape", the second for "appearance".
CONCEPTS = {"shape": ("teapot", "tiger"), "appearance": ("duck", "porcelain")}


def main() -> None:
    """Render them and write them into the package."""
    shapes, materials = zip(*CONCEPTS.values(), strict=True)
    generator = np.random.default_rng(7)
    drawn = draw_scenes(generator, len(shapes), shape_names=shapes, material_names=materials, views=False)
    for attribute, picture in zip(CONCEPTS, seen(drawn), strict=True):
        write_whole(REFERENCES / f"{attribute}.png", png_bytes(picture))


if __name__ == "__main__":
    main()
