"""Batches of the world for training: scenes from the host, rendered on the device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from attrjax.attrworld import looks, shapes
from attrjax.attrworld.captions import caption
from attrjax.attrworld.render import Rendered, Scene, render
from attrjax.attrworld.scenes import draw_grid, draw_scenes, generator_of
from attrjax.data.prompts import tokenize

# What a run's root key is folded with, so that no two uses share random numbers.
DATA, NOISE, INIT = range(3)


def generator_at(root: Key[Array, ""], step: int) -> np.random.Generator:
    """The generator of what this process draws for a step."""
    key = jax.random.fold_in(jax.random.fold_in(root, DATA), step)
    return generator_of(jax.random.fold_in(key, jax.process_index()))


def scenes_at(root: Key[Array, ""], batch_size: int) -> Callable[[int], Scene]:
    """``batch_at`` of ``training.train``: scenes alone.

    Args:
        root: the run's root key.
        batch_size: rows of all processes together.
    """
    rows = rows_here(batch_size)
    return lambda step: draw_scenes(generator_at(root, step), rows).scene


def captioned_at(
    root: Key[Array, ""], rows: int, columns: int, tokenizer: Any
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of grids of scenes (``scenes.draw_grid``), with tokens [n, T] of a caption of each.

    T is the tokenizer's length. ``shape`` and ``material`` are indices of the families of training, -1 for
    what has no name.

    Args:
        root: the run's root key.
        rows: shapes, of all processes together.
        columns: materials.
        tokenizer: transformers'.
    """
    rows, length = rows_here(rows), tokenizer.model_max_length
    numbers = [{name: i for i, name in enumerate(names)} for names in (shapes.FAMILIES, looks.FAMILIES)]

    def batch_at(step: int) -> dict[str, Any]:
        generator = generator_at(root, step)
        drawn = draw_grid(generator, rows, columns)
        captions = [caption(facts, generator) for facts in drawn.facts]
        return {
            "scene": drawn.scene,
            "tokens": tokenize(tokenizer, captions, length),
            "shape": np.array([numbers[0].get(facts.shape, -1) for facts in drawn.facts], np.int32),
            "material": np.array([numbers[1].get(facts.material, -1) for facts in drawn.facts], np.int32),
        }

    return batch_at


def rows_here(batch_size: int) -> int:
    """Rows of a batch that one process contributes.

    Raises:
        ValueError: the processes cannot share the batch evenly.
    """
    count = jax.process_count()
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"batch_size={batch_size} must be a positive multiple of {count}, the processes")
    return batch_size // count


def rendered(scenes: Scene, size: int) -> Rendered:
    """Scenes with a leading axis, seen; pictures are in [-1, 1] as networks read them."""
    seen = jax.vmap(lambda scene: render(scene, size=size))(scenes)
    return seen._replace(picture=2 * seen.picture - 1)


def squared_error_to_psnr(error: Float[Array, ""]) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of a mean squared error of pictures in [-1, 1]."""
    return 10 * jax.numpy.log10(4.0 / error)
