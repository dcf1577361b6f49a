"""The pre-norm transformer that CLIP's towers share (Radford et al. 2021, arXiv:2103.00020)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attrjax.models.attention import dot_product_attention
from attrjax.models.layers import LayerNorm, Linear


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """The exact GELU, which OpenCLIP's towers were trained with."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class CLIPEncoder(nn.Module):
    """A stack of transformer layers that keeps every state.

    Attributes:
        num_hidden_layers, num_attention_heads, intermediate_size: depth, heads, and width of the MLP.
        hidden_act: a key of ``ACTIVATIONS``.
        layer_norm_eps: epsilon of the norms.
        causal: whether a position sees only itself and those before it.
        dtype, param_dtype, attention_implementation, remat: as in ``vae.AutoencoderKL``.
    """

    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    causal: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    attention_implementation: str | None
    remat: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], ...]:
        """The input and the output of each layer: ``num_hidden_layers`` + 1 states.

        Raises:
            ValueError: the activation is unknown, or the width does not split into the heads.
        """
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not supported; known: {sorted(ACTIVATIONS)}")
        if x.shape[-1] % self.num_attention_heads:
            raise ValueError(f"a width of {x.shape[-1]} does not split into {self.num_attention_heads} heads")
        layer = nn.remat(CLIPEncoderLayer) if self.remat else CLIPEncoderLayer
        states = [x]
        for i in range(self.num_hidden_layers):
            block = layer(
                self.num_attention_heads,
                self.intermediate_size,
                self.hidden_act,
                self.layer_norm_eps,
                self.causal,
                self.dtype,
                self.param_dtype,
                self.attention_implementation,
                name=f"layers_{i}",
            )
            states.append(block(states[-1]))
        return tuple(states)


class CLIPEncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    causal: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    attention_implementation: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = LayerNorm(self.layer_norm_eps, name="layer_norm1", **types)(x)
        x = x + CLIPAttention(
            self.num_attention_heads, self.causal, self.attention_implementation, name="self_attn", **types
        )(y)
        y = LayerNorm(self.layer_norm_eps, name="layer_norm2", **types)(x)
        return x + CLIPMLP(self.intermediate_size, self.hidden_act, name="mlp", **types)(y)


class CLIPAttention(nn.Module):
    """Multi-head self-attention."""

    num_attention_heads: int
    causal: bool
    implementation: str | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, length, width = x.shape
        split = (batch, length, self.num_attention_heads, width // self.num_attention_heads)
        q, k, v = (
            Linear(width, name=name, **types)(x).reshape(split) for name in ("q_proj", "k_proj", "v_proj")
        )
        y = dot_product_attention(q, k, v, implementation=self.implementation, causal=self.causal)
        return Linear(width, name="out_proj", **types)(y.reshape(x.shape))


class CLIPMLP(nn.Module):
    """Two linear maps with an activation between them."""

    intermediate_size: int
    hidden_act: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Linear(self.intermediate_size, name="fc1", **types)(x)
        return Linear(x.shape[-1], name="fc2", **types)(ACTIVATIONS[self.hidden_act](y))
