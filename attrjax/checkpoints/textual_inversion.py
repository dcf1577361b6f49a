"""Textual inversion: learned words in and out, and into a tokenizer and its text tower (Gal et al. 2022).

A learned word of n vectors is n tokens, ``<word>``, ``<word>_1``, ..., as diffusers loads it;
``expand_prompt`` writes all of them where a prompt has the first.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from numpy.typing import DTypeLike

from attrjax.checkpoints.exchange import read_exchange_file, write_exchange_file

Tree = dict
Vectors = Float[Array, "n d"]

FILE_NAME = "learned_embeds.safetensors"
SDXL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_TABLE = "text_model/embeddings/token_embedding/embedding"


def load_textual_inversion(path: str | Path, token: str | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Read a learned word.

    Args:
        path: a ``.safetensors`` file, or a directory with ``learned_embeds.safetensors``. It holds either
            ``{"<word>": [n, D] or [D]}`` or SDXL's ``{"clip_l": [n, D], "clip_g": [n, D']}``, which has no
            word in it.
        token: the word; overrides the file's.

    Returns:
        {component: {token: vectors [n, D] in float32}}, with the components ``text_encoder`` and for SDXL
        ``text_encoder_2``.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file holds something else, or no word is known.
    """
    file, tensors, _ = read_exchange_file(path, (FILE_NAME,))
    if set(tensors) == set(SDXL_KEYS.values()):
        if token is None:
            raise ValueError(f"{file} names no token (SDXL's files do not): give one, such as token='<word>'")
        found = {component: {token: tensors[key]} for component, key in SDXL_KEYS.items()}
    elif len(tensors) == 1:
        found = {"text_encoder": {token or name: tensor for name, tensor in tensors.items()}}
    else:
        keys = ", ".join(sorted(tensors)[:6])
        raise ValueError(f"{file} must hold one word, or clip_l and clip_g, not {keys or 'nothing'}")
    return {
        component: {name: _rows(file, name, tensor) for name, tensor in words.items()}
        for component, words in found.items()
    }


def save_textual_inversion(
    path: str | Path, token: str, vectors: Mapping[str, Vectors], *, dtype: DTypeLike = np.float32
) -> Path:
    """Write a learned word to a file that diffusers' ``load_textual_inversion`` reads.

    Args:
        path: a ``.safetensors`` file, or a directory for ``learned_embeds.safetensors``.
        token: the word, such as ``<cat-toy>``.
        vectors: {"text_encoder": [n, D]}, and "text_encoder_2" too for SDXL, whose files hold no word.
        dtype: of the stored vectors.

    Returns:
        the file's path.

    Raises:
        ValueError: where ``vectors`` are of other components.
    """
    if set(vectors) == set(SDXL_KEYS):
        tensors = {SDXL_KEYS[component]: rows for component, rows in vectors.items()}
    elif set(vectors) == {"text_encoder"}:
        tensors = {token: vectors["text_encoder"]}
    else:
        raise ValueError(
            f"a textual inversion is of text_encoder, or with text_encoder_2, not {sorted(vectors)}"
        )
    return write_exchange_file(path, FILE_NAME, {k: np.asarray(v, dtype) for k, v in tensors.items()})


def add_tokens(
    tokenizer: Any, params: Tree, words: Mapping[str, Vectors]
) -> tuple[Any, Tree, dict[str, list[int]]]:
    """A tokenizer and a text tower that know learned words.

    The new ids follow the end token's. A tower that finds the end of a prompt by the largest id
    (``eos_token_id`` 2 in its config, in torch as here) then pools such a prompt at the learned word.

    Args:
        tokenizer: a transformers tokenizer; it is not changed.
        params: the text tower's parameters.
        words: {token: vectors [n, D]}.

    Returns:
        the extended tokenizer; the parameters with a longer table of token embeddings (a tower takes them
        after ``module.clone(vocab_size=rows)``, see ``vocabulary_size``); the ids of each word, in vector
        order.

    Raises:
        ValueError: for a token that the vocabulary already has, vectors of another width than the tower's, or
            a tower that is shorter than the tokenizer.
    """
    flat = flatten_dict(params, sep="/")
    table = flat[_TABLE]
    size = len(tokenizer)
    if table.shape[0] < size:
        raise ValueError(f"the tokenizer has {size} tokens, the text tower only {table.shape[0]}")
    names, rows = [], []
    for token, vectors in words.items():
        if vectors.shape[-1] != table.shape[-1]:
            raise ValueError(f"{token} has {vectors.shape[-1]} channels, the text tower {table.shape[-1]}")
        names += [token, *(f"{token}_{i}" for i in range(1, len(vectors)))]
        rows += list(vectors)
    vocabulary = tokenizer.get_vocab()
    known = [name for i, name in enumerate(names) if name in vocabulary or name in names[:i]]
    if known:
        raise ValueError(f"the vocabulary already has {', '.join(known)}: choose another token")
    tokenizer = copy.deepcopy(tokenizer)
    for name in names:
        tokenizer.add_tokens(name)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    grown = jnp.zeros((max(table.shape[0], max(ids.values()) + 1), table.shape[1]), table.dtype)
    grown = grown.at[: table.shape[0]].set(table)
    flat[_TABLE] = grown.at[jnp.array(list(ids.values()))].set(jnp.stack(rows).astype(table.dtype))
    of_word = {t: [ids[t], *(ids[f"{t}_{i}"] for i in range(1, len(v)))] for t, v in words.items()}
    return tokenizer, unflatten_dict(flat, sep="/"), of_word


def vocabulary_size(params: Tree) -> int:
    """Rows of a text tower's table of token embeddings."""
    return flatten_dict(params, sep="/")[_TABLE].shape[0]


def with_words(pipeline: Any, words: Mapping[str, Mapping[str, Any]]) -> Any:
    """A pipeline whose tokenizers and text towers know learned words.

    Args:
        pipeline: of ``checkpoints.pipeline``; it is not changed.
        words: {component: {word: vectors [n, D]}}, as ``load_textual_inversion`` reads them.

    Raises:
        ValueError: the base does not have a component, or as ``add_tokens``.
    """
    for component, vectors in words.items():
        tokenizer_name = component.replace("text_encoder", "tokenizer")
        tower, tokenizer = getattr(pipeline, component), getattr(pipeline, tokenizer_name)
        if tower is None:
            raise ValueError(
                f"the words {', '.join(vectors)} are for a base with {component}, which this one has not"
            )
        tokenizer, params, _ = add_tokens(tokenizer, tower.params, vectors)
        rows = vocabulary_size(params)
        tower = tower._replace(
            module=tower.module.clone(vocab_size=rows),
            params=params,
            config=tower.config | {"vocab_size": rows},
        )
        pipeline = pipeline._replace(**{component: tower, tokenizer_name: tokenizer})
    return pipeline


def expand_prompt(prompt: str, tokenizer: Any) -> str:
    """A prompt with ``<word>`` replaced by ``<word> <word>_1 ...`` for every learned word of several
    vectors.
    """
    added = tokenizer.get_added_vocab()
    for token in added:
        names = [token]
        while f"{token}_{len(names)}" in added:
            names.append(f"{token}_{len(names)}")
        if len(names) > 1:
            # A vector that the user wrote out is not the start of the word.
            replacement = " ".join(names).replace("\\", r"\\")
            prompt = re.sub(rf"{re.escape(token)}(?!_\d)", replacement, prompt)
    return prompt


def _rows(file: Path, token: str, tensor: np.ndarray) -> np.ndarray:
    rows = np.atleast_2d(tensor.astype(np.float32))
    if rows.ndim != 2:
        raise ValueError(f"{file}: {token} has the shape {list(tensor.shape)}, not [n, D]")
    return rows
