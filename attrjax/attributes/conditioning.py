"""From a reference to the context that the UNet reads: encoder, filter, fusion, text encoder."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from attrjax.attributes.filters import FILTERS, patch_weight
from attrjax.attributes.fusion import CrossFusion, PlaceholderFusion, placed
from attrjax.checkpoints.attribute import placeholder_error, warn_of_word
from attrjax.checkpoints.pipeline import Component, Pipeline
from attrjax.checkpoints.textual_inversion import add_tokens
from attrjax.models.clip_text import token_embeddings
from attrjax.models.clip_vision import CLIPVisionModel, patch_states, preprocess

Tree = Any
FUSIONS = ("placeholder", "cross")  # how what a filter finds enters a prompt


class Word(NamedTuple):
    """A placeholder that a tokenizer knows.

    Attributes:
        text: as it stands in prompts.
        ids: of its K tokens.
        tokenizer: the base's, with the word.
        origin: embedding of the word that it begins as, [D].
    """

    text: str
    ids: tuple[int, ...]
    tokenizer: Any
    origin: Float[np.ndarray, " d"]


def new_word(pipeline: Pipeline, text: str, initial: str, count: int, fusion: str) -> Word:
    """A placeholder, which begins as another word.

    Args:
        pipeline: the base.
        text: the placeholder.
        initial: a word of the base; of several tokens it is their mean.
        count: of a filter's tokens. The word has as many where they stand in its place, and is one token
            where the encoded prompt reads them.
        fusion: one of ``FUSIONS``.

    Raises:
        ValueError: the placeholder is an ordinary word or no word, or ``initial`` is none.
    """
    count = 1 if fusion == "cross" else count
    if error := placeholder_error(text, pipeline.tokenizer):
        raise ValueError(error)
    warn_of_word(text)
    origin = mean_embedding(pipeline, initial)
    params = pipeline.text_encoder.params
    tokenizer, _, words = add_tokens(pipeline.tokenizer, params, {text: jnp.tile(origin, (count, 1))})
    return Word(text, tuple(words[text]), tokenizer, origin)


def mean_embedding(pipeline: Pipeline, initial: str) -> Float[np.ndarray, " d"]:
    """The embedding of a word of the base; of several tokens it is their mean.

    Raises:
        ValueError: it is no word.
    """
    ids = pipeline.tokenizer(initial, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"initial={initial!r} must be a word that the placeholder begins as, such as object")
    embeddings = token_embeddings(pipeline.text_encoder.params, jnp.asarray(ids))
    return np.asarray(embeddings, np.float32).mean(0)


def make_filter(kind: str, pipeline: Pipeline, num_tokens: int) -> nn.Module:
    """A filter of ``FILTERS`` in the width of the base's text encoder.

    Raises:
        ValueError: there is no such filter.
    """
    if kind not in FILTERS:
        raise ValueError(f"filter={kind!r} must be one of {', '.join(FILTERS)}")
    return FILTERS[kind](pipeline.text_encoder.config["hidden_size"], num_tokens)


def see(
    encoder: Component, pictures: Float[Array, "b h w 3"], masks: Float[Array, "b h w"]
) -> tuple[Float[Array, "b n c"], Float[Array, "b n"]]:
    """What a filter reads of pictures: features of their patches, and how much of each is foreground.

    The features are the states before the last layer, as IP-Adapter Plus reads them.

    Args:
        encoder: the base's image encoder.
        pictures: in [-1, 1], square.
        masks: in [0, 1].
    """
    assert isinstance(encoder.module, CLIPVisionModel)
    return _seen(encoder.params, encoder.module, pictures, masks)


# Each of these is one program wherever it is called from, and not one for each of its operations.
@functools.partial(jax.jit, static_argnames="module")
def _seen(
    params: Tree, module: CLIPVisionModel, pictures: Float[Array, "b h w 3"], masks: Float[Array, "b h w"]
) -> tuple[Float[Array, "b n c"], Float[Array, "b n"]]:
    seen: Any = module.apply({"params": params}, preprocess((pictures + 1) / 2, module.image_size))
    return patch_states(seen), patch_weight(masks, module.image_size // module.patch_size)


@functools.partial(jax.jit, static_argnames=("filter_", "fusion"))
def attribute_vectors(
    params: dict[str, Tree],
    filter_: nn.Module,
    origin: Float[Array, " d"],
    states: Float[Array, "b n c"],
    weight: Float[Array, "b n"],
    fusion: str,
) -> Float[Array, "b k d"]:
    """What is seen of an attribute: the placeholder's embeddings, or tokens for ``CrossFusion``.

    Args:
        params: ``filter`` and ``fusion``.
        filter_: of ``make_filter``.
        origin: of the word.
        states, weight: of ``see``.
        fusion: one of ``FUSIONS``.
    """
    tokens: Any = filter_.apply({"params": params["filter"]}, states, weight)
    if fusion == "cross":
        return tokens
    fused: Any = PlaceholderFusion().apply({"params": params["fusion"]}, tokens, origin)
    return fused


def context_of(
    text: Component,
    frozen: Tree,
    ids: Int[Array, "b t"],
    places: Int[Array, "b t"],
    vectors: Float[Array, "b k d"],
    params: Tree,
    origin: Float[Array, " d"],
    fusion: str,
) -> Float[Array, "b t d"]:
    """What the UNet reads of prompts with an attribute in them: the text encoder's states.

    Args:
        text: the base's text encoder; its parameters are ``frozen``.
        frozen: they.
        ids: tokens; those of the placeholder may be outside the table.
        places: of ``fusion.places_of``.
        vectors: of ``attribute_vectors``.
        params: of the fusion.
        origin: of the word.
        fusion: one of ``FUSIONS``.
    """
    word = jnp.broadcast_to(origin, (len(vectors), 1, origin.shape[0])) if fusion == "cross" else vectors
    embeds = placed(token_embeddings(frozen, jnp.where(places >= 0, 0, ids)), places, word)
    encoded: Any = text.module.apply({"params": frozen}, ids, inputs_embeds=embeds)
    context = encoded.last_hidden_state
    return read_across(params, context, vectors, jnp.any(places >= 0, 1)) if fusion == "cross" else context


def read_across(
    params: Tree,
    context: Float[Array, "b t d"],
    tokens: Float[Array, "b k d"],
    named: Bool[Array, " b"],
    strength: float = 1.0,
) -> Float[Array, "b t d"]:
    """``CrossFusion`` of the prompts that name an attribute; the others stay as they are.

    Args:
        params: of the fusion.
        context: encoded prompts.
        tokens: of the attribute.
        named: whether its placeholder is in them.
        strength: of the attribute.
    """
    fused: Any = CrossFusion().apply({"params": params}, context, tokens, strength)
    return jnp.where(named[:, None, None], fused, context)


@functools.partial(jax.jit, static_argnames=("filter_", "fusion"))
def init_conditioning(
    key: Array, filter_: nn.Module, states: Float[Array, "b n c"], weight: Float[Array, "b n"], fusion: str
) -> dict[str, Tree]:
    """Parameters of filter and fusion to begin with."""
    of_filter, of_fusion = jax.random.split(key)
    tokens, params = filter_.init_with_output(of_filter, states, weight)
    if fusion == "cross":
        begun = CrossFusion().init(of_fusion, tokens, tokens)
    else:
        begun = PlaceholderFusion().init(of_fusion, tokens, tokens[0, 0])
    return {"filter": params["params"], "fusion": begun["params"]}
