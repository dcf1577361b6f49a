"""Fusion: attribute tokens and a prompt become the context that the UNet reads.

``PlaceholderFusion`` works before the text encoder: tokens become the embeddings of the placeholder word, and
the frozen encoder mixes them with the words around it. What it makes for one picture is a textual inversion.
``CrossFusion`` works behind it: the encoded prompt reads the tokens through a gate that begins closed.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attrjax.models.attention import dot_product_attention
from attrjax.models.layers import LayerNorm, Linear


class PlaceholderFusion(nn.Module):
    """Attribute tokens as embeddings of a placeholder: ``word + strength * scale * token``.

    That is a word that says what kind of thing is meant ("shape", "object"), and how this one differs (E4T,
    Gal et al. 2023, section 3; OSTAF adds a tenth). At strength 0 the prompt means that word.

    Attributes:
        scale: of the tokens to begin with; it is learned.
        param_dtype: of the scale.
    """

    scale: float = 0.1
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b k d"],
        word: Float[Array, " d"],
        strength: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b k d"]:
        """The placeholder's embeddings, to be ``placed`` in prompts.

        Args:
            tokens: of a filter.
            word: embedding of the word that tokens are added to.
            strength: 1 as trained, 0 for the word alone.
        """
        scale = self.param("scale", nn.initializers.constant(self.scale), (), self.param_dtype)
        return word + strength * scale * tokens


def placed(
    embeds: Float[Array, "b t d"], places: Int[Array, "b t"], vectors: Float[Array, "b k d"]
) -> Float[Array, "b t d"]:
    """Embeddings of prompts with a placeholder's in them.

    Args:
        embeds: of the prompts' tokens.
        places: of ``places_of``: which of the K vectors stands there, -1 for a word of the prompt.
        vectors: of the placeholder.
    """
    there = (places >= 0)[..., None]
    return jnp.where(there, jnp.take_along_axis(vectors, jnp.maximum(places, 0)[..., None], axis=1), embeds)


class CrossFusion(nn.Module):
    """The encoded prompt reads the attribute tokens: context + strength * tanh(gate) * attention.

    The gate begins at 0 (as that of Flamingo, Alayrac et al. 2022, section 2.2), so that an untrained fusion
    changes nothing.

    Attributes:
        num_heads: that share the context's width.
        dtype, param_dtype: compute and parameter types.
    """

    num_heads: int = 4
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "b t d"],
        tokens: Float[Array, "b k d"],
        strength: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b t d"]:
        """The context with the attribute; ``strength`` is 1 as trained and 0 for the context as it was."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = context.shape[-1]

        def project(x: Float[Array, "b s d"], name: str) -> Float[Array, "b s n h"]:
            y = Linear(width, use_bias=False, name=name, **types)(x)
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        x, states = LayerNorm(name="norm", **types)(context), LayerNorm(name="norm_tokens", **types)(tokens)
        read = dot_product_attention(project(x, "to_q"), project(states, "to_k"), project(states, "to_v"))
        read = Linear(width, use_bias=False, name="to_out", **types)(read.reshape(context.shape))
        gate = self.param("gate", nn.initializers.zeros, (), self.param_dtype)
        return context + (strength * jnp.tanh(gate) * read).astype(context.dtype)


def places_of(ids: Int[np.ndarray, "b t"], word: Sequence[int]) -> Int[np.ndarray, "b t"]:
    """Where in prompts a placeholder's tokens stand: the index of each among them, and -1 elsewhere.

    Args:
        ids: tokens of prompts in which every placeholder is written out.
        word: ids of the placeholder's tokens, in order.
    """
    places = np.full_like(ids, -1)
    for index, token in enumerate(word):
        places[ids == token] = index
    return places
