"""A learned attribute: one small safetensors file, and a base with it.

The file holds the embeddings of the attribute's placeholder word and what was changed in the UNet: whole
leaves, or low-rank factors. Its header says which attribute it is, of which base, and how it was learned.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from attrjax.checkpoints.exchange import read_exchange_file, write_exchange_file
from attrjax.checkpoints.files import open_weights
from attrjax.checkpoints.pipeline import STEMS, Pipeline
from attrjax.checkpoints.textual_inversion import with_words
from attrjax.models.adapters import bind, combine

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
        vectors: embeddings of the placeholder's K tokens.
        origin: embedding of ``initial``.
        other: embeddings of the reference's other attribute, for ``other_word``; None where it is not known.
        weights: {"/"-path: value} of the UNet's leaves that were tuned themselves.
        adapter: {"/"-path: value} of low-rank factors, as ``models.adapters`` has them.
        recipe: how it was learned, in JSON's terms.
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
    facts = {name: getattr(attribute, name) for name in _FACTS}
    header = {"attrjax": FORMAT, **facts, "recipe": json.dumps(attribute.recipe, sort_keys=True)}
    stored = {name: np.asarray(leaf).astype(dtype) for name, leaf in tensors.items()}
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
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    parts = {
        prefix: {name.removeprefix(prefix): leaf for name, leaf in wide.items() if name.startswith(prefix)}
        for prefix in ("unet/", "adapter/")
    }
    return Attribute(
        **{name: header[name] for name in _FACTS},
        vectors=wide["vectors"],
        origin=wide["origin"],
        other=wide.get("other"),
        weights=parts["unet/"],
        adapter=parts["adapter/"],
        recipe=json.loads(header["recipe"]),
    )


def apply_attributes(
    pipeline: Pipeline,
    attributes: Sequence[tuple[Attribute, float]],
    *,
    digest: str,
    force: bool = False,
) -> tuple[Pipeline, dict[str, Any]]:
    """A base that knows learned attributes, each at a strength.

    What was changed adds up: attributes that were learned in different parts of the UNet do not touch each
    other.

    Args:
        pipeline: the base.
        attributes: each with its strength; 1 is as it was learned, and at 0 its word is what it began as.
        digest: ``weights_digest`` of the base.
        force: apply what was learned on another base, where its shapes allow it.

    Returns:
        the base with longer vocabulary and changed weights, and bound adapters for ``generate``.

    Raises:
        ValueError: an attribute belongs to another base, two have one word, or shapes do not fit.
    """
    words = [attribute.word for attribute, _ in attributes]
    if len(set(words)) < len(words):
        raise ValueError(
            f"two attributes have the same word ({', '.join(words)}): learn one of them with another "
            "--config.placeholder"
        )
    flat = flatten_dict(pipeline.unet.params, sep="/")
    changed: dict[str, Any] = {}
    bound = []
    for attribute, strength in attributes:
        if attribute.base != digest and not force:
            raise ValueError(
                f"{attribute.word} was learned on a base with the digest {attribute.base[:12]}, and "
                f"{pipeline.path} has {digest[:12]}: use the base that it was learned on, or "
                "--config.force=True"
            )
        for name, leaf in attribute.weights.items():
            if name not in flat or flat[name].shape != leaf.shape:
                raise ValueError(f"{attribute.word} changes {name}, which this base has not in that shape")
            before = np.asarray(flat[name], np.float32)
            changed[name] = changed.get(name, before) + strength * (leaf - before)
        if attribute.adapter:
            tree = unflatten_dict(attribute.adapter, sep="/")
            bound.append(bind(tree, strength, network=pipeline.unet.params))
        vectors = attribute.origin + strength * (attribute.vectors - attribute.origin)
        known = {attribute.word: vectors}
        if attribute.other is not None:
            known[other_word(attribute.word, attribute.attribute)] = attribute.other
        pipeline = with_words(pipeline, {"text_encoder": known})
    flat |= {name: leaf.astype(flat[name].dtype) for name, leaf in changed.items()}
    unet = pipeline.unet._replace(params=unflatten_dict(flat, sep="/"))
    return pipeline._replace(unet=unet), {"unet": combine(bound)} if bound else {}


def other_word(word: str, attribute: str) -> str:
    """What stands for the other attribute of the reference: ``<shape:appearance>`` beside ``<shape>``.

    Args:
        word: the placeholder of what was learned.
        attribute: that was learned.
    """
    return f"<{word.strip('<>')}:{OTHER[attribute]}>"


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
