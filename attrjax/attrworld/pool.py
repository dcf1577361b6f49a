"""A pool of rendered and encoded pictures that training draws from.

Where rendering and encoding cost about as much as a train step (a CPU), each picture is used several times,
with another caption, timestep and noise each time. The pool is a ring of chunks: every few steps the oldest
is replaced by a new one. Which pictures are in it depends on the step alone, so that a run that goes on sees
what an uninterrupted one would have seen. Each eighth of a batch's rows draws from its own eighth of every
chunk, and a process makes those that its rows draw from: what is learned does not depend on how many
processes there are, and up to eight make no picture twice.
"""

import math
import operator
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
PARTS = 8  # of a chunk and of a batch


class Chunk(NamedTuple):
    """Pictures: latents [m, h, w, c] of the parts that this process draws from, and the facts of all."""

    latents: dict[int, Float[np.ndarray, "m h w c"]]
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
    steps_for_a_chunk = max(1, round(chunk * reuse / batch_size))
    parts = math.gcd(PARTS, batch_size, chunk)
    size = chunk // parts
    part_of = np.arange(batch_size) * parts // batch_size
    own = slice(rows.start, rows.stop)
    held: dict[int, Chunk] = {}

    def make(number: int) -> Chunk:
        draw, noise = jax.random.split(jax.random.fold_in(jax.random.fold_in(root, CHUNK), number))
        drawn = draw_scenes(generator_of(draw), chunk)
        latents = {}
        for part in sorted(set(part_of[own].tolist())):
            some = operator.itemgetter(slice(part * size, (part + 1) * size))
            scenes = jax.tree.map(some, drawn.scene)
            latents[part] = np.asarray(encode(scenes, jax.random.fold_in(noise, part)))
        return Chunk(latents, drawn.facts)

    def batch_at(step: int) -> dict[str, Any]:
        newest = step // steps_for_a_chunk
        wanted = range(max(0, newest - chunks + 1), newest + 1)
        for number in [number for number in held if number not in wanted]:
            del held[number]
        for number in wanted:
            if number not in held:
                held[number] = make(number)
        generator = generator_of(jax.random.fold_in(jax.random.fold_in(root, BATCH), step))
        numbers, places = generator.choice(list(wanted), batch_size), generator.integers(0, size, batch_size)
        taken = [(held[int(n)], int(p), int(i)) for n, p, i in zip(numbers, part_of, places, strict=True)]
        captions = [caption(one.facts[part * size + i], generator) for one, part, i in taken]
        dropped = generator.random(batch_size) < empty
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)][own]
        tokens: Int[np.ndarray, "n t"] = tokenize(tokenizer, captions, length)
        return {"latents": np.stack([one.latents[part][i] for one, part, i in taken[own]]), "tokens": tokens}

    return batch_at
