"""Filters that a base has: which of them a run begins with, and what they recognize in a reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from attrjax.attributes.conditioning import attribute_vectors, make_filter, mean_embedding
from attrjax.checkpoints.attribute import OTHER
from attrjax.checkpoints.filter import DIRECTORY, SavedFilter, filter_digest, load_filter
from attrjax.checkpoints.pipeline import Pipeline

BASE, NONE = "base", "none"  # what ``filter_weights`` can be beside a file


def find_filter(config: Mapping[str, Any], base: Path) -> SavedFilter | None:
    """The filter that the config's run begins with; None where it begins anew.

    A base's own filter is used where it is of the config's kind.

    Raises:
        FileNotFoundError, ValueError: the file that is named cannot be read, or is of another base, attribute
            or kind.
    """
    choice, attribute = config["filter_weights"], config["attribute"]
    path = base / DIRECTORY / f"{attribute}.safetensors" if choice == BASE else Path(choice)
    if choice == NONE or (choice == BASE and not path.is_file()):
        return None
    saved = load_filter(path)
    wanted = {name: config[name] for name in ("attribute", "filter", "num_tokens", "initial")}
    differs = [name for name, value in wanted.items() if getattr(saved, name) != value]
    if differs and choice == BASE:
        logging.info("the filter is learned anew: that of %s differs in %s", base, ", ".join(differs))
        return None
    if differs:
        there = ", ".join(f"{name}={getattr(saved, name)!r}" for name in differs)
        raise ValueError(
            f"{path} is a filter with {there}: set these in the config, or --config.filter_weights=none"
        )
    _check(saved, path, base, config)
    return saved


def other_filter(config: Mapping[str, Any], base: Path) -> SavedFilter | None:
    """The base's own filter for the attribute that is not learned, where it has one."""
    path = base / DIRECTORY / f"{OTHER[config['attribute']]}.safetensors"
    if config["filter_weights"] == NONE or not path.is_file():
        return None
    saved = load_filter(path)
    _check(saved, path, base, config)
    return saved


def recognized(
    saved: SavedFilter, pipeline: Pipeline, states: Float[Array, "1 n c"], weight: Float[Array, "1 n"]
) -> Float[np.ndarray, "k d"]:
    """Embeddings of what a filter finds in a reference, as ``conditioning.see`` sees it."""
    vectors = attribute_vectors(
        saved.params,
        make_filter(saved.filter, pipeline, saved.num_tokens),
        jnp.asarray(mean_embedding(pipeline, saved.initial)),
        states,
        weight,
    )
    return np.asarray(vectors[0])


def _check(saved: SavedFilter, path: Path, base: Path, config: Mapping[str, Any]) -> None:
    digest = filter_digest(base, config["variant"] or None)
    if saved.base != digest:
        raise ValueError(
            f"{path} was trained on a base with the digest {saved.base[:12]}, and {base} has {digest[:12]}: "
            "train it again with configs/attrworld/filters.py, or --config.filter_weights=none"
        )
