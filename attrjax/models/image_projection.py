"""From CLIP's view of a picture to the tokens of a UNet's image context (IP-Adapter, Ye et al. 2023)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attrjax.models.attention import dot_product_attention
from attrjax.models.layers import LayerNorm, Linear


class ImageProjection(nn.Module):
    """One linear map from the pooled image embedding to a few tokens, each normalized (IP-Adapter, section
    3.2).

    Attributes:
        features: width of a token, the UNet's cross-attention width.
        num_tokens: how many.
        dtype, param_dtype: compute and parameter types.
    """

    features: int
    num_tokens: int = 4
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_embeds: Float[Array, "b p"]) -> Float[Array, "b t d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tokens = Linear(self.num_tokens * self.features, name="proj", **types)(image_embeds)
        tokens = tokens.reshape(-1, self.num_tokens, self.features)
        return LayerNorm(name="norm", **types)(tokens)


class Resampler(nn.Module):
    """Learned queries that read all patch states (IP-Adapter Plus; the Perceiver Resampler of Flamingo).

    Attributes:
        features: width of an output token, the UNet's cross-attention width.
        num_tokens, width, depth: number and width of the queries, and how often they read.
        num_heads: of ``head_dim`` channels each.
        dtype, param_dtype: compute and parameter types.
    """

    features: int
    num_tokens: int = 16
    width: int = 768
    depth: int = 4
    num_heads: int = 12
    head_dim: int = 64
    ff_multiplier: int = 4
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "b n p"]) -> Float[Array, "b t d"]:
        """Tokens of the penultimate states of a CLIP vision tower, class token included."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.normal(self.width**-0.5)
        latents = self.param("latents", init, (1, self.num_tokens, self.width), self.param_dtype)
        queries = jnp.broadcast_to(latents.astype(self.dtype), (states.shape[0], *latents.shape[1:]))
        states = Linear(self.width, name="proj_in", **types)(states)
        for i in range(self.depth):
            block = ResamplerBlock(
                self.num_heads, self.head_dim, self.ff_multiplier, name=f"layers_{i}", **types
            )
            queries = block(queries, states)
        return LayerNorm(name="norm_out", **types)(Linear(self.features, name="proj_out", **types)(queries))


class ResamplerBlock(nn.Module):
    """Queries attend to the states and to each other, then a GELU network; both around residuals, no
    biases.
    """

    num_heads: int
    head_dim: int
    ff_multiplier: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "b t c"], states: Float[Array, "b n c"]
    ) -> Float[Array, "b t c"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = queries.shape[-1]

        def project(x: Array, name: str) -> Array:
            y = Linear(self.num_heads * self.head_dim, use_bias=False, name=name, **types)(x)
            return y.reshape(*y.shape[:2], self.num_heads, self.head_dim)

        normed = LayerNorm(name="norm2", **types)(queries)
        context = jnp.concatenate([LayerNorm(name="norm1", **types)(states), normed], axis=1)
        out = dot_product_attention(
            project(normed, "to_q"), project(context, "to_k"), project(context, "to_v")
        )
        out = out.reshape(*queries.shape[:2], -1)
        queries = queries + Linear(width, use_bias=False, name="to_out", **types)(out)
        y = LayerNorm(name="ff_norm", **types)(queries)
        y = Linear(self.ff_multiplier * width, use_bias=False, name="ff_in", **types)(y)
        y = jax.nn.gelu(y, approximate=False)
        return queries + Linear(width, use_bias=False, name="ff_out", **types)(y)
