"""A learned attribute as one small safetensors file.

The file holds the embeddings of the attribute's placeholder word and what was changed in the UNet: whole
leaves, or low-rank factors; and, of an appearance whose pictures are painted, the reference's foreground. Its
header says which attribute it is, of which base, and how it was learned.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from attrjax.checkpoints.exchange import read_exchange_file, write_exchange_file
from attrjax.checkpoints.files import open_weights
from attrjax.checkpoints.pipeline import STEMS

FILE_NAME = "attribute.safetensors"
FORMAT = "attrjax attribute 1"
OTHER = {"shape": "appearance", "appearance": "shape"}
ATTRIBUTES = tuple(OTHER)
_FACTS = ("attribute", "word", "initial", "base")


class Attribute(NamedTuple):
    """What was learned of one picture.

    Attributes:
        attribute: one of ``ATTRIBUTES``.
        word: the placeholder that stands for it in prompts.
        initial: the word that it began as, which it is at strength 0.
        base: ``weights_digest`` of the base that it belongs to.
        vectors: embeddings of the placeholder's K tokens; with ``fusion``, tokens that prompts with the
            placeholder read when they are encoded.
        origin: embedding of ``initial``.
        other: embeddings of the reference's other attribute, for ``apply.other_word``; None where unknown.
        weights: {"/"-path: value} of the UNet's leaves that were tuned themselves.
        adapter: {"/"-path: value} of low-rank factors, as ``models.adapters`` has them.
        recipe: how it was learned, in JSON's terms.
        fusion: {"/"-path: value} of ``attributes.fusion.CrossFusion``; None where there is none.
        material: the reference's foreground, RGBA, which pictures are painted with; None where they are not.
    """

    attribute: str
    word: str
    initial: str
    base: str
    vectors: Float[np.ndarray, "k d"]
    origin: Float[np.ndarray, " d"]
    other: Float[np.ndarray, "k d"] | None
    weights: dict[str, np.ndarray]
    adapter: dict[str, np.ndarray]
    recipe: dict[str, Any]
    fusion: dict[str, np.ndarray] | None = None
    material: UInt8[np.ndarray, "h w 4"] | None = None


def as_stored(attribute: Attribute, *, dtype: Any = np.float16) -> Attribute:
    """An attribute with its numbers as ``load_attribute`` will read them.

    Args:
        attribute: what was learned.
        dtype: of the stored numbers.
    """

    def rounded(leaf: np.ndarray) -> np.ndarray:
        return np.asarray(leaf).astype(dtype).astype(np.float32)

    names = ("vectors", "origin", "other", "weights", "adapter", "fusion")
    return attribute._replace(**{name: jax.tree.map(rounded, getattr(attribute, name)) for name in names})


def save_attribute(path: str | Path, attribute: Attribute, *, dtype: Any = np.float16) -> Path:
    """Write an attribute to a ``.safetensors`` file, or to ``attribute.safetensors`` in a directory.

    Args:
        path: of the file or the directory.
        attribute: what was learned.
        dtype: of the stored numbers.

    Returns:
        the file's path.
    """
    tensors = {"vectors": attribute.vectors, "origin": attribute.origin}
    if attribute.other is not None:
        tensors["other"] = attribute.other
    tensors |= {f"unet/{name}": leaf for name, leaf in attribute.weights.items()}
    tensors |= {f"adapter/{name}": leaf for name, leaf in attribute.adapter.items()}
    tensors |= {f"fusion/{name}": leaf for name, leaf in (attribute.fusion or {}).items()}
    facts = {name: getattr(attribute, name) for name in _FACTS}
    header = {"attrjax": FORMAT, **facts, "recipe": json.dumps(attribute.recipe, sort_keys=True)}
    stored = {name: np.asarray(leaf).astype(dtype) for name, leaf in tensors.items()}
    if attribute.material is not None:
        stored["material"] = attribute.material
    return write_exchange_file(path, FILE_NAME, stored, header)


def load_attribute(path: str | Path) -> Attribute:
    """Read an attribute from its file, or from the directory of the run that learned it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, a pickle, or holds something else.
    """
    file, tensors, header = read_exchange_file(path, (FILE_NAME,))
    if header.get("attrjax") != FORMAT or not {"vectors", "origin"} <= tensors.keys():
        raise ValueError(
            f"{file} is no learned attribute; those are written by configs/shape.py and configs/appearance.py"
        )
    material = tensors.pop("material", None)
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    parts = {
        prefix: {name.removeprefix(prefix): leaf for name, leaf in wide.items() if name.startswith(prefix)}
        for prefix in ("unet/", "adapter/", "fusion/")
    }
    return Attribute(
        **{name: header[name] for name in _FACTS},
        vectors=wide["vectors"],
        origin=wide["origin"],
        other=wide.get("other"),
        weights=parts["unet/"],
        adapter=parts["adapter/"],
        recipe=json.loads(header["recipe"]),
        fusion=parts["fusion/"] or None,
        material=material,
    )


def weights_digest(
    base: str | Path, variant: str | None = None, parts: Sequence[str] = ("unet", "text_encoder")
) -> str:
    """SHA-256 of the weights of a base's parts, however they are divided into files."""
    total = hashlib.sha256()
    for name in parts:
        stored = open_weights(Path(base) / name, STEMS[name], variant)
        for key, tensor in sorted(stored.items()):
            view = np.ascontiguousarray(tensor.view())
            total.update(f"{name}/{key} {view.dtype} {view.shape}\n".encode())
            total.update(view.view(np.uint8).reshape(-1).data)
    return total.hexdigest()


def placeholder_error(word: str, tokenizer: Any) -> str | None:
    """Why a word cannot be a placeholder, or None where it can."""
    if not word or word != word.strip() or len(word.split()) != 1:
        return f"placeholder {word!r} must be one word without spaces, such as <shape>"
    known: Mapping[str, int] = tokenizer.get_vocab()
    if word in known or f"{word.lower()}</w>" in known:
        return f"placeholder {word!r} is an ordinary word of this base: take one like <{word}>"
    return None


@functools.cache  # of many references with one word it is said once
def warn_of_word(word: str) -> None:
    """Say so where a placeholder looks like a word that prompts may mean otherwise."""
    if word.isalpha():
        logging.warning(
            "placeholder %r is letters alone: in prompts it stands for what is learned, also where the word "
            "itself is meant; --config.placeholder='<%s>' could not be mistaken",
            *(word, word),
        )
