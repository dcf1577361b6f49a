"""Pairs of pictures that share one attribute, from a TFDS data set.

Grain shuffles them, anew in every epoch, and gives any place of that order at once: a run that goes on reads
what it would have read, and of several processes each reads its own rows alone, which together are the same.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from PIL import Image

from attrjax.attributes.conditioning import Word
from attrjax.attributes.learner import HERE
from attrjax.attrworld.batches import DATA, rows_here
from attrjax.checkpoints.attribute import ATTRIBUTES
from attrjax.data.prompts import tokenize
from attrjax.prefetch import side_by_side

FIELDS = ("picture_a", "picture_b", "asked")
TRIES = 1000  # examples that are looked at for one that shares an attribute


class Shown(NamedTuple):
    """Pictures [n, h, w, 3] in [-1, 1] and masks [n, h, w] in [0, 1] of what is meant in them."""

    picture: Float[Array, "n h w 3"]
    mask: Float[Array, "n h w"]


class Pairs(NamedTuple):
    """A split of a data set.

    Attributes:
        path: of the data set.
        rows: its examples, a ``grain.MapDataset``.
        attributes: names of the label "attribute"; none where the examples have no such label.
    """

    path: Path
    rows: Any
    attributes: tuple[str, ...]


def open_pairs(directory: str, split: str) -> Pairs:
    """A split of a prepared data set with ``FIELDS``, in a format with random access (array_record).

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: TFDS or Grain is not installed, or the data set has no such split, no examples, lacks
            fields, has another "attribute" than a label, or a format without random access.
    """
    try:
        import grain
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError("config.dataset needs TFDS and Grain: pip install 'attrjax[tfds]'") from error
    path = Path(directory)
    if not (path / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no data set: name the directory with dataset_info.json, DATASET/CONFIG/VERSION"
        )
    builder = tfds.builder_from_directory(str(path))
    features = builder.info.features
    missing = [name for name in FIELDS if name not in features]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: pairs are to have {', '.join(FIELDS)}")
    if split not in builder.info.splits or not builder.info.splits[split].num_examples:
        known = ", ".join(name for name, one in builder.info.splits.items() if one.num_examples)
        raise ValueError(f"{path} has no examples in a split {split!r}, only in {known}")
    names: tuple[str, ...] = ()
    if "attribute" in features:
        names = tuple(getattr(features["attribute"], "names", None) or ())
        if not set(names) & set(ATTRIBUTES):
            raise ValueError(f"{path}: attribute must be a label with the classes {', '.join(ATTRIBUTES)}")
    try:
        return Pairs(path, grain.MapDataset.source(builder.as_data_source(split)), names)
    except NotImplementedError as error:
        raise ValueError(
            f"{path} has a format without random access: prepare it with file_format='array_record'"
        ) from error


def stored_at(
    root: Key[Array, ""], pairs: Pairs, batch_size: int, attribute: str, word: Word, length: int, size: int
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of pairs: as ``attrworld.sharing.sharing_at``, with pictures in the place of scenes.

    An epoch has each example once. Where one does not share the attribute, that in the same place of the next
    epoch's order is taken, or of the one behind it, so that rows of a batch do not take each other's.

    Args:
        root: the run's root key.
        pairs: that are read.
        batch_size: pairs of all processes together.
        attribute: that pairs are to share; others are passed over.
        word: what stands for it.
        length: of tokenized captions.
        size: of pictures, in pixels.
    """
    rows, count = rows_here(batch_size), len(pairs.rows)
    seed = int(jax.random.bits(jax.random.fold_in(root, DATA), dtype=jnp.uint32))
    order = pairs.rows.seed(seed).shuffle().repeat()

    def read(number: int) -> tuple[Any, ...]:
        for epoch in range(TRIES):
            row: Any = order[number + epoch * count]
            if not pairs.attributes or pairs.attributes[row["attribute"]] == attribute:
                return (
                    *_shown(row, "a", size),
                    *_shown(row, "b", size),
                    _text(row, "asked"),
                    _text(row, "told"),
                )
        raise ValueError(f"of {TRIES} pairs of {pairs.path} none share their {attribute}")

    def batch_at(step: int) -> dict[str, Any]:
        found = side_by_side(read, [step * batch_size + row for row in rows])
        *pictures, asked, told = zip(*found, strict=True)
        for caption in asked:
            if HERE not in caption:
                raise ValueError(f"the caption {caption!r} of {pairs.path} has no {HERE} for the {attribute}")
        seen, seen_mask, made, made_mask = (jnp.asarray(np.stack(one)) for one in pictures)
        return {
            "seen": Shown(seen, seen_mask),
            "made": Shown(made, made_mask),
            "asked": tokenize(word.tokenizer, [one.replace(HERE, word.text) for one in asked], length),
            "told": tokenize(word.tokenizer, told, length),
            "named": np.array([bool(one) for one in told], np.float32),
        }

    return batch_at


def _text(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name, b"")
    return found.decode() if isinstance(found, bytes) else str(found)


def _shown(row: Mapping[str, Any], which: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a pair and its mask in a size; where there is none all of the picture is meant."""
    picture, mask = row[f"picture_{which}"], row.get(f"mask_{which}")
    mask = np.full(picture.shape[:2], 255, np.uint8) if mask is None else mask[..., 0]
    resized = Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS)
    covered = Image.fromarray(mask).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32) / 127.5 - 1, np.asarray(covered, np.float32) / 255
