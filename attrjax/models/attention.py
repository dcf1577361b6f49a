"""Scaled dot-product attention."""

import jax
from jaxtyping import Array, Float


def dot_product_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    *,
    implementation: str | None = None,
    causal: bool = False,
) -> Float[Array, "b t n h"]:
    """softmax(q k^T / sqrt(h)) v, with the softmax in float32."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal)
