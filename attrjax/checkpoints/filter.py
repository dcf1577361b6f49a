"""A trained attribute filter with its fusion: one small safetensors file in the base's own directory.

A base may have them as ``filters/shape.safetensors`` and ``filters/appearance.safetensors``. They belong to
its text encoder, UNet and image encoder, and say so.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from attrjax.checkpoints.attribute import weights_digest
from attrjax.checkpoints.exchange import read_exchange_file, write_exchange_file

DIRECTORY = "filters"
FORMAT = "attrjax filter 1"
_FACTS = ("attribute", "filter", "initial", "base", "fusion")


class SavedFilter(NamedTuple):
    """What was learned once for all pictures.

    Attributes:
        attribute: that the filter passes, shape or appearance.
        filter: its kind, a key of ``attributes.filters.FILTERS``.
        num_tokens: K.
        initial: words that tokens are added to.
        base: ``filter_digest`` of the base.
        params: trees ``filter`` and ``fusion``.
        fusion: how tokens enter prompts, one of ``attributes.conditioning.FUSIONS``.
    """

    attribute: str
    filter: str
    num_tokens: int
    initial: str
    base: str
    params: dict[str, Any]
    fusion: str = "placeholder"


def filter_digest(base: str | Path, variant: str | None = None) -> str:
    """SHA-256 of the weights of all that a filter was trained between."""
    return weights_digest(base, variant, ("unet", "text_encoder", "image_encoder"))


def save_filter(path: str | Path, saved: SavedFilter, *, dtype: Any = np.float16) -> Path:
    """Write a filter to a ``.safetensors`` file; ``dtype`` is of the stored numbers."""
    flat = flatten_dict(jax.device_get(saved.params), sep="/")
    tensors = {name: np.asarray(leaf).astype(dtype) for name, leaf in flat.items()}
    facts = {name: str(getattr(saved, name)) for name in (*_FACTS, "num_tokens")}
    return write_exchange_file(path, "filter.safetensors", tensors, {"attrjax": FORMAT, **facts})


def load_filter(path: str | Path) -> SavedFilter:
    """Read a filter from its file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, a pickle, or holds something else.
    """
    file, tensors, header = read_exchange_file(path, ("filter.safetensors",))
    if header.get("attrjax") != FORMAT:
        raise ValueError(f"{file} is no attribute filter; those are written by configs/attrworld/filters.py")
    params = unflatten_dict({name: leaf.astype(np.float32) for name, leaf in tensors.items()}, sep="/")
    header = {"fusion": "placeholder", **header}  # files of before there were two do not say it
    return SavedFilter(
        **{name: header[name] for name in _FACTS}, num_tokens=int(header["num_tokens"]), params=params
    )
