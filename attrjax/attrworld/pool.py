"""A pool of rendered and encoded pictures that training draws from.

Where rendering and encoding cost about as much as a train step (a CPU), each picture is used several times,
with another caption, timestep and noise each time. The pool is a ring of chunks: every few steps the oldest
is replaced by a new one. Which pictures are in it depends on the step alone, so that a run that goes on sees
what an uninterrupted one would have seen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attrjax.attrworld.batches import rows_here
from attrjax.attrworld.captions import Facts, caption
from attrjax.attrworld.render import Scene
from attrjax.attrworld.scenes import draw_scenes, generator_of
from attrjax.data.prompts import tokenize

# What the data's key is folded with.
CHUNK, BATCH = range(2)


class Chunk(NamedTuple):
    """Encoded pictures: latents [m, h, w, c], and the facts of each."""

    latents: Float[np.ndarray, "m h w c"]
    facts: list[Facts]


def pooled_at(
    root: Key[Array, ""],
    encode: Callable[[Scene, Key[Array, ""]], Float[Array, "m h w c"]],
    tokenizer: Any,
    *,
    batch_size: int,
    chunk: int,
    chunks: int,
    reuse: float,
    empty: float,
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of latents [n, h, w, c] and tokens [n, T] of a caption of each.

    Args:
        root: of the data.
        encode: scenes and a key to latents.
        tokenizer: the base's.
        batch_size: rows of all processes together.
        chunk, chunks: pictures of a chunk, and how many chunks the pool holds when it is full.
        reuse: how often a picture is used on average.
        empty: share of captions that are left empty, for classifier-free guidance.

    Raises:
        ValueError: a number is out of its range.
    """
    rows, length = rows_here(batch_size), tokenizer.model_max_length
    if min(chunk, chunks) < 1 or reuse < 1 or not 0 <= empty <= 1:
        raise ValueError(f"{chunk=} and {chunks=} must be 1 or more, {reuse=} too, and {empty=} in [0, 1]")
    steps_for_a_chunk = max(1, round(chunk * reuse / rows))
    held: dict[int, Chunk] = {}

    def make(number: int) -> Chunk:
        key = jax.random.fold_in(jax.random.fold_in(root, CHUNK), number)
        key = jax.random.fold_in(key, jax.process_index())
        draw, noise = jax.random.split(key)
        drawn = draw_scenes(generator_of(draw), chunk)
        return Chunk(np.asarray(encode(drawn.scene, noise)), drawn.facts)

    def batch_at(step: int) -> dict[str, Any]:
        newest = step // steps_for_a_chunk
        wanted = range(max(0, newest - chunks + 1), newest + 1)
        for number in [number for number in held if number not in wanted]:
            del held[number]
        for number in wanted:
            if number not in held:
                held[number] = make(number)
        key = jax.random.fold_in(jax.random.fold_in(root, BATCH), step)
        generator = generator_of(jax.random.fold_in(key, jax.process_index()))
        numbers, places = generator.choice(list(wanted), rows), generator.integers(0, chunk, rows)
        taken = [(held[int(n)], int(i)) for n, i in zip(numbers, places, strict=True)]
        captions = [caption(one.facts[i], generator) for one, i in taken]
        captions = [
            "" if drop else text for drop, text in zip(generator.random(rows) < empty, captions, strict=True)
        ]
        tokens: Int[np.ndarray, "n t"] = tokenize(tokenizer, captions, length)
        return {"latents": np.stack([one.latents[i] for one, i in taken]), "tokens": tokens}

    return batch_at
