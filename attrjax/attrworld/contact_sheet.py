"""The task ``contact_sheet``: what the world is made of, on three pictures for its readers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from PIL import Image

from attrjax.attrworld import words
from attrjax.attrworld.render import Rendered, Scene, render_batch
from attrjax.attrworld.scenes import BACKDROPS, draw_scenes
from attrjax.data.pictures import png_bytes, to_uint8
from attrjax.report.tiles import Section, tile_sheet
from attrjax.runs import check_run, use_compile_cache, write_record, write_whole

BATCH = 8  # scenes at a time, so that one program of little memory renders all
CATALOGUE = (0.97, 0.955, 0.93)  # a warm, light backdrop that every material stands out from
# An object is shown so large that it fills this share of the picture, within limits: a key stays less than a
# tower.
FILLED, NEAREST, FARTHEST = 0.8, 1.4, 0.85


def contact_sheet(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Render every shape, every material, and a banner of both, and write them to the run directory.

    It gets ``shapes.png``, ``materials.png`` and ``world.png``. All of it takes seconds: with ``resume``
    it is made again.

    Raises:
        FileExistsError: the run directory holds a run and ``resume`` is false.
        ValueError: it was of another config, or a name in the config is not of the world.
    """
    check_run(workdir, config, resume=resume, may_change=("cache_dir",))
    use_compile_cache(config["cache_dir"])
    directory, size, samples = Path(workdir), config["size"], config["samples"]
    write_record(directory, config)

    def pictures(shapes: Sequence[str], materials: Sequence[str], backdrops: Any) -> list[np.ndarray]:
        generator = np.random.default_rng(config["seed"])
        scenes = catalogue_scenes(generator, shapes, materials, backdrops)
        return list(to_uint8(2 * np.asarray(render_all(scenes, size, samples).picture) - 1))

    known, unknown = config["shape_materials"]
    shape_sections = [
        Section(
            f"{len(words.TRAIN_SHAPES)} shapes to train on",
            pictures(words.TRAIN_SHAPES, [known] * len(words.TRAIN_SHAPES), CATALOGUE),
            [shape_label(name) for name in words.TRAIN_SHAPES],
            "each in endless proportions",
        ),
        Section(
            f"{len(words.HELD_OUT_SHAPES)} held out",
            pictures(words.HELD_OUT_SHAPES, [unknown] * len(words.HELD_OUT_SHAPES), CATALOGUE),
            [shape_label(name) for name in words.HELD_OUT_SHAPES],
            "never seen in training, to learn from one picture",
        ),
    ]
    write_sheet(directory / "shapes.png", tile_sheet(shape_sections, config["shape_columns"]))
    shape = config["material_shape"]
    material_sections = [
        Section(
            f"{len(words.TRAIN_MATERIALS)} materials to train on",
            pictures([shape] * len(words.TRAIN_MATERIALS), words.TRAIN_MATERIALS, CATALOGUE),
            [material_label(name) for name in words.TRAIN_MATERIALS],
            "solid textures, and how they take light",
        ),
        Section(
            f"{len(words.HELD_OUT_MATERIALS)} held out",
            pictures([shape] * len(words.HELD_OUT_MATERIALS), words.HELD_OUT_MATERIALS, CATALOGUE),
            [material_label(name) for name in words.HELD_OUT_MATERIALS],
            "never seen in training, to learn from one picture",
        ),
    ]
    write_sheet(directory / "materials.png", tile_sheet(material_sections, config["material_columns"]))
    rows, columns = config["banner"]
    combinations = draw_combinations(np.random.default_rng(config["seed"]), rows, columns)
    banner = Section("", pictures(*combinations))
    write_sheet(directory / "world.png", tile_sheet([banner], columns, gap=0, margin=0, corner=0))
    logging.info("wrote %s", ", ".join(str(directory / f"{n}.png") for n in ("shapes", "materials", "world")))


def catalogue_scenes(
    generator: np.random.Generator, shapes: Sequence[str], materials: Sequence[str], backdrops: Any
) -> Scene:
    """Scenes in the uniform look of a catalogue: from a little above, in soft light from the left, each
    object in the middle of its picture. Where all have one shape, or one material, they have the same variant
    of it.

    Args:
        generator: of proportions and textures.
        shapes, materials: names, n of each.
        backdrops: [3] or [n, 3], in sRGB.
    """
    n, full = len(shapes), np.ones(len(shapes), np.float32)
    scene = draw_scenes(generator, n, shape_names=shapes, material_names=materials, views=False).scene
    scene = scene._replace(
        azimuth=-0.22 * full,
        elevation=0.22 * full,
        zoom=0.8 * full,
        shift=np.zeros((n, 2), np.float32),
        softness=0.9 * full,
        warmth=0.15 * full,
        backdrop=np.broadcast_to(np.asarray(backdrops, np.float32), (n, 3)),
    )
    if len(set(shapes)) == 1:
        scene = scene._replace(shape=_first_only(scene.shape, n))
    if len(set(materials)) == 1:
        scene = scene._replace(material=_first_only(scene.material, n))
    return framed(scene)


def framed(scene: Scene) -> Scene:
    """Scenes without shift, shifted and zoomed so that each object is in the middle and of about one size."""
    masks = render_all(scene, 48, 1).mask > 0.5
    side = masks.shape[-1]
    low, high = np.empty((2, len(masks), 2), np.float32)  # [n, 2] to the right and up, in halves of the side
    for i, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        low[i] = 2 * columns.min() / side - 1, 1 - 2 * (rows.max() + 1) / side
        high[i] = 2 * (columns.max() + 1) / side - 1, 1 - 2 * rows.min() / side
    zoom = np.clip(scene.zoom * FILLED * 2 / (high - low).max(-1), FARTHEST, NEAREST)
    nearer = (zoom / scene.zoom)[:, None]
    return scene._replace(zoom=zoom, shift=-nearer * (low + high) / 2)


def render_all(scenes: Scene, size: int, samples: int) -> Rendered:
    """What is seen of scenes, rendered a batch at a time; the last batch is filled up."""
    n, made = len(scenes.azimuth), []
    for first in range(0, n, BATCH):
        places = np.minimum(np.arange(first, first + BATCH), n - 1)
        batch = jax.tree.map(lambda leaf, places=places: leaf[places], scenes)
        made.append(render_batch(batch, size=size, samples=samples))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *made)


def draw_combinations(
    generator: np.random.Generator, rows: int, columns: int
) -> tuple[list[str], list[str], list[tuple[float, float, float]]]:
    """Any shapes with any materials but the plain colours, and pale backdrops that differ from their
    neighbours'.
    """
    n = rows * columns
    patterned = [name for name in words.MATERIALS if name not in words.COLOURS]
    pale = [colour for name, colour in BACKDROPS.items() if name not in ("black", "gray")]
    shapes, materials = _shuffled(generator, list(words.SHAPES), n), _shuffled(generator, patterned, n)
    pale = _shuffled(generator, pale, len(pale))
    return shapes, materials, [pale[(c + 2 * r) % len(pale)] for r in range(rows) for c in range(columns)]


def shape_label(name: str) -> str:
    """What a shape is called."""
    return words.SHAPES[name][0]


def material_label(name: str) -> str:
    """What a material is called, in front of a noun."""
    return words.MATERIALS[name].before[0]


def write_sheet(path: Path, sheet: Image.Image) -> None:
    """Write a sheet with its last bit rounded away: no eye sees that, and it saves a quarter of the bytes."""
    write_whole(path, png_bytes(np.asarray(sheet) | 1))


def _shuffled(generator: np.random.Generator, items: list, n: int) -> list:
    """n items in random order: all of them before any comes again."""
    chosen: list = []
    while len(chosen) < n:
        chosen += [items[i] for i in generator.permutation(len(items))]
    return chosen[:n]


def _first_only(tree: Any, n: int) -> Any:
    """The first of n of everything, n times."""
    return jax.tree.map(lambda leaf: np.repeat(leaf[:1], n, axis=0), tree)
