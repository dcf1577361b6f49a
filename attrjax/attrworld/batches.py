"""Batches of the world for training: scenes from the host, rendered on the device.

Every process draws what all see in a step, which costs little, and keeps its own rows: what is learned does
not depend on how many processes there are.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from attrjax.attrworld import looks, shapes
from attrjax.attrworld.captions import Facts, caption
from attrjax.attrworld.render import Rendered, Scene, render
from attrjax.attrworld.scenes import BACKDROPS, LIGHTS, draw_grid, draw_scenes, generator_of
from attrjax.data.prompts import tokenize
from attrjax.parallel.mesh import own_rows

# What a run's root key is folded with, so that no two uses share random numbers.
DATA, NOISE, INIT = range(3)
# What captions tell, and what each of it may be in training; "" is none of them.
NAMES: Mapping[str, tuple[str, ...]] = {
    "shape": tuple(shapes.FAMILIES),
    "material": tuple(looks.FAMILIES),
    "backdrop": tuple(BACKDROPS),
    "light": tuple(LIGHTS),
    "view": ("level", "above"),
    "finish": ("matte", "glossy"),
}
_INDICES = {what: {name: i for i, name in enumerate(names)} for what, names in NAMES.items()}


def generator_at(root: Key[Array, ""], step: int) -> np.random.Generator:
    """The generator of what is drawn for a step, the same in all processes."""
    return generator_of(jax.random.fold_in(jax.random.fold_in(root, DATA), step))


def scenes_at(root: Key[Array, ""], batch_size: int) -> Callable[[int], Scene]:
    """``batch_at`` of ``training.train``: scenes alone.

    Args:
        root: the run's root key.
        batch_size: rows of all processes together.
    """
    check_rows(batch_size)
    return lambda step: own_rows(draw_scenes(generator_at(root, step), batch_size).scene)


def told_at(root: Key[Array, ""], batch_size: int, tokenizer: Any) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of captions of scenes at random, without the scenes: as ``captioned_at`` else.

    Args:
        root: the run's root key.
        batch_size: captions of all processes together.
        tokenizer: transformers'.
    """
    check_rows(batch_size)

    def batch_at(step: int) -> dict[str, Any]:
        generator = generator_at(root, step)
        return own_rows(_told(draw_scenes(generator, batch_size).facts, generator, tokenizer))

    return batch_at


def captioned_at(
    root: Key[Array, ""], rows: int, columns: int, tokenizer: Any
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of grids of scenes (``scenes.draw_grid``), with tokens [n, T] of a caption of each.

    T is the tokenizer's length. Each name of ``NAMES`` is an array of indices into what it may be, -1 for
    what has no name.

    Args:
        root: the run's root key.
        rows: shapes, of all processes together.
        columns: materials.
        tokenizer: transformers'.
    """
    check_rows(rows)

    def batch_at(step: int) -> dict[str, Any]:
        generator = generator_at(root, step)
        drawn = draw_grid(generator, rows, columns)
        return own_rows({"scene": drawn.scene, **_told(drawn.facts, generator, tokenizer)})

    return batch_at


def _told(facts: Sequence[Facts], generator: np.random.Generator, tokenizer: Any) -> dict[str, Any]:
    captions = [caption(one, generator) for one in facts]
    labels = {
        name: np.array([_INDICES[name].get(getattr(one, name), -1) for one in facts], np.int32)
        for name in NAMES
    }
    return {"tokens": tokenize(tokenizer, captions, tokenizer.model_max_length), **labels}


def slices(tree: Any, count: int) -> Iterator[Any]:
    """A tree of arrays with one leading axis, ``count`` rows at a time; the last may have fewer."""
    for first in range(0, len(jax.tree.leaves(tree)[0]), count):
        yield jax.tree.map(operator.itemgetter(slice(first, first + count)), tree)


def check_rows(batch_size: int) -> None:
    """Whether the processes can share a batch.

    Raises:
        ValueError: they cannot do so evenly.
    """
    count = jax.process_count()
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"batch_size={batch_size} must be a positive multiple of {count}, the processes")


def rows_here(batch_size: int) -> range:
    """The rows of a batch that this process contributes.

    Raises:
        ValueError: as ``check_rows``.
    """
    check_rows(batch_size)
    count = batch_size // jax.process_count()
    return range(count * jax.process_index(), count * (jax.process_index() + 1))


def rendered(scenes: Scene, size: int) -> Rendered:
    """Scenes with a leading axis, seen; pictures are in [-1, 1] as networks read them."""
    seen = jax.vmap(lambda scene: render(scene, size=size))(scenes)
    return seen._replace(picture=2 * seen.picture - 1)


def squared_error_to_psnr(error: Float[Array, ""]) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of a mean squared error of pictures in [-1, 1]."""
    return 10 * jax.numpy.log10(4.0 / error)
