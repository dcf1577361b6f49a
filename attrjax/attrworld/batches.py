"""Batches of the world for training: scenes from the host, rendered on the device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from attrjax.attrworld.captions import caption
from attrjax.attrworld.render import Rendered, Scene, render
from attrjax.attrworld.scenes import Drawn, draw_scenes, generator_of
from attrjax.data.prompts import tokenize

# What a run's root key is folded with, so that no two uses share random numbers.
DATA, NOISE, INIT = range(3)


def drawn_at(root: Key[Array, ""], step: int, n: int) -> tuple[Drawn, np.random.Generator]:
    """Scenes of a step, the rows of this process, and the generator to draw what goes with them."""
    key = jax.random.fold_in(jax.random.fold_in(root, DATA), step)
    generator = generator_of(jax.random.fold_in(key, jax.process_index()))
    return draw_scenes(generator, n), generator


def scenes_at(root: Key[Array, ""], batch_size: int) -> Callable[[int], Scene]:
    """``batch_at`` of ``training.train``: scenes alone.

    Args:
        root: the run's root key.
        batch_size: rows of all processes together.
    """
    rows = rows_here(batch_size)
    return lambda step: drawn_at(root, step, rows)[0].scene


def captioned_at(root: Key[Array, ""], batch_size: int, tokenizer: Any) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of scenes and the tokens [n, T] of a caption of each, T being the tokenizer's length."""
    rows, length = rows_here(batch_size), tokenizer.model_max_length

    def batch_at(step: int) -> dict[str, Any]:
        drawn, generator = drawn_at(root, step, rows)
        captions = [caption(facts, generator) for facts in drawn.facts]
        return {"scene": drawn.scene, "tokens": tokenize(tokenizer, captions, length)}

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
