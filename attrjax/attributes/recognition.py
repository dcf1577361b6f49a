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


def find_filters(config: Mapping[str, Any], base: Path) -> tuple[SavedFilter | None, SavedFilter | None]:
    """The filter that the config's run begins with, and the base's own for the other attribute.

    The first is None where the run begins anew. A base's own is used where it is of the config's kind. The
    second is None where the base has none, or filters are not wanted. A base's own read its own image
    encoder: with another one, none is used.

    Raises:
        FileNotFoundError, ValueError: the file that is named cannot be read, or is of another base, attribute
            or kind.
    """
    choice, attribute = config["filter_weights"], config["attribute"]
    if choice == NONE or (choice == BASE and config["image_encoder"]):
        return None, None
    if config["image_encoder"]:
        raise ValueError(
            f"filter_weights={choice} reads what the base's own image encoder sees: leave out "
            "--config.image_encoder, or learn a filter anew with --config.filter_weights=none"
        )
    own, other = (base / DIRECTORY / f"{name}.safetensors" for name in (attribute, OTHER[attribute]))
    path = own if choice == BASE else Path(choice)
    found = {
        path: _chosen(path, config, choice == BASE) if choice != BASE or path.is_file() else None,
        other: load_filter(other) if other.is_file() else None,
    }
    if any(found.values()):
        digest = filter_digest(base, config["variant"] or None)
        for file, saved in found.items():
            if saved and saved.base != digest:
                raise ValueError(
                    f"{file} was trained on a base with the digest {saved.base[:12]}, and {base} has "
                    f"{digest[:12]}: train it again with configs/attrworld/filters.py, or "
                    "--config.filter_weights=none"
                )
    return found[path], found[other]


def _chosen(path: Path, config: Mapping[str, Any], own: bool) -> SavedFilter | None:
    """A filter of the config's kind; of another kind it is None where it is the base's own."""
    saved = load_filter(path)
    wanted = {name: config[name] for name in ("attribute", "filter", "num_tokens", "initial", "fusion")}
    differs = [name for name, value in wanted.items() if getattr(saved, name) != value]
    if differs and own:
        logging.info("the filter is learned anew: %s differs in %s", path, ", ".join(differs))
        return None
    if differs:
        there = ", ".join(f"{name}={getattr(saved, name)!r}" for name in differs)
        raise ValueError(
            f"{path} is a filter with {there}: set these in the config, or --config.filter_weights=none"
        )
    return saved


def recognized(
    saved: SavedFilter, pipeline: Pipeline, states: Float[Array, "1 n c"], weight: Float[Array, "1 n"]
) -> Float[np.ndarray, "k d"]:
    """What a filter finds in a reference, as ``see`` sees it, in the terms of ``attribute_vectors``."""
    vectors = attribute_vectors(
        saved.params,
        make_filter(saved.filter, pipeline, saved.num_tokens),
        jnp.asarray(mean_embedding(pipeline, saved.initial)),
        states,
        weight,
        saved.fusion,
    )
    return np.asarray(vectors[0])
