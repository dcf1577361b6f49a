"""Attribute filters: from a picture's patch features to tokens that carry one attribute of it.

Shape is where things are, appearance is what is there, anywhere. So the shape filter sees no channel's mean
or scale over the picture, and the appearance filter sees no order of patches: what a filter is not to pass
on, it cannot pass on, as far as that can be built in. What is left to learning is texture that looks like
structure to the encoder, and outlines that colour a patch.

All filters are called as ``filter(states, weight)``:

* ``states`` [B, N, C]: features of the patches, ``models.clip_vision.patch_states``.
* ``weight`` [B, N] in [0, 1]: how much of each patch is foreground (``patch_weight``). Features of patches
  without foreground do not reach the output.

and return tokens [B, K, D] in the width of the text encoder's embeddings.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attrjax.models.layers import LayerNorm, Linear

# A channel whose variance over the foreground is less than this carries nothing.
CONSTANT = 1e-12


class MLPFilter(nn.Module):
    """The filter that OSTAF's code has (github.com/wangyePHD/SigStyle, filter.py): two layers and a norm.

    It reads the mean of the foreground's features, and nothing keeps the other attribute out of it.

    Attributes:
        features: D, of a token.
        num_tokens: K.
        dtype, param_dtype: compute and parameter types.
    """

    features: int
    num_tokens: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "b n c"], weight: Float[Array, "b n"]) -> Float[Array, "b k d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mean, _ = foreground_statistics(states, weight)
        x = nn.relu(Linear(self.features, name="hidden", **types)(mean))
        x = Linear(self.num_tokens * self.features, name="out", **types)(x)
        return LayerNorm(name="norm", **types)(x.reshape(-1, self.num_tokens, self.features))


class ShapeFilter(nn.Module):
    """Where the features differ, not what they are.

    Every channel is normalized over the foreground to mean 0 and variance 1 (the instance normalization by
    which style is removed from features, Huang & Belongie 2017, equation 5), so that the output does not
    change when a channel is shifted, or scaled by a positive number, over the whole picture. Positions are
    added, and learned queries read all patches; those of the background say only that they are empty.

    Attributes:
        features: D, of a token.
        num_tokens: K.
        width, num_heads, depth: of the queries, and how often they read.
        dtype, param_dtype: compute and parameter types.
    """

    features: int
    num_tokens: int = 4
    width: int = 128
    num_heads: int = 4
    depth: int = 2
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "b n c"], weight: Float[Array, "b n"]) -> Float[Array, "b k d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mean, variance = foreground_statistics(states, weight)
        inverse = jnp.where(variance > CONSTANT, jax.lax.rsqrt(jnp.maximum(variance, CONSTANT)), 0)
        normal = weight[..., None] * (states.astype(jnp.float32) - mean[:, None]) * inverse[:, None]
        init = nn.initializers.normal(0.5)
        positions = self.param("positions", init, (states.shape[1], self.width), self.param_dtype)
        filled = self.param("filled", init, (self.width,), self.param_dtype)
        x = Linear(self.width, name="read", **types)(normal.astype(self.dtype))
        x = (
            x
            + positions.astype(self.dtype)
            + weight[..., None].astype(self.dtype) * filled.astype(self.dtype)
        )
        x = LayerNorm(name="norm_in", **types)(x)
        return Pool(
            self.features, self.num_tokens, self.width, self.num_heads, self.depth, name="pool", **types
        )(x, jnp.ones_like(weight))


class AppearanceFilter(nn.Module):
    """What the features are, not where.

    It adds no positions, and all that crosses patches is a weighted mean: the output does not change when
    patches, with their weights, change places. Mean and spread of every channel (the statistics that carry
    style: Gatys et al. 2016; Huang & Belongie 2017) are read beside what learned queries find.

    Attributes: as of ``ShapeFilter``.
    """

    features: int
    num_tokens: int = 4
    width: int = 128
    num_heads: int = 4
    depth: int = 2
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "b n c"], weight: Float[Array, "b n"]) -> Float[Array, "b k d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mean, variance = foreground_statistics(states, weight)
        statistics = jnp.concatenate([mean, jnp.sqrt(variance + CONSTANT)], -1).astype(self.dtype)
        x = Linear(self.width, name="read", **types)(states.astype(self.dtype))
        x = LayerNorm(name="norm_in", **types)(x)
        tokens = Pool(
            self.features, self.num_tokens, self.width, self.num_heads, self.depth, name="pool", **types
        )(x, weight)
        whole = Linear(self.num_tokens * self.features, name="statistics", **types)(
            nn.gelu(Linear(self.width, name="statistics_in", **types)(statistics))
        )
        tokens = tokens + whole.reshape(tokens.shape)
        return LayerNorm(name="norm_out", **types)(tokens)


class Pool(nn.Module):
    """Learned queries that read a set of weighted states (the Perceiver resampler of Flamingo, made small).

    A state of weight w counts in the softmax as w states would: its logit is raised by log w, and one of
    weight 0 is not read.

    Attributes: as of ``ShapeFilter``.
    """

    features: int
    num_tokens: int
    width: int
    num_heads: int
    depth: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "b n c"], weight: Float[Array, "b n"]) -> Float[Array, "b k d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.normal(1.0)
        queries = self.param("queries", init, (self.num_tokens, self.width), self.param_dtype)
        x = jnp.broadcast_to(queries.astype(self.dtype), (states.shape[0], *queries.shape))
        heads = (self.num_heads, self.width // self.num_heads)
        bias = jnp.log(jnp.maximum(weight, 1e-9)).astype(jnp.float32)[:, None, None]
        for i in range(self.depth):
            normed = LayerNorm(name=f"norm{i}", **types)(x)
            q, k, v = (
                Linear(self.width, use_bias=False, name=f"{name}{i}", **types)(of).reshape(
                    *of.shape[:2], *heads
                )
                for name, of in (("to_q", normed), ("to_k", states), ("to_v", states))
            )
            logits = jnp.einsum("bknh,bsnh->bnks", q, k).astype(jnp.float32) / heads[1] ** 0.5
            share = jax.nn.softmax(logits + bias, -1).astype(self.dtype)
            read = jnp.einsum("bnks,bsnh->bknh", share, v).reshape(x.shape)
            x = x + Linear(self.width, use_bias=False, name=f"to_out{i}", **types)(read)
            y = nn.gelu(
                Linear(2 * self.width, name=f"ff_in{i}", **types)(LayerNorm(name=f"ff_norm{i}", **types)(x))
            )
            x = x + Linear(self.width, name=f"ff_out{i}", **types)(y)
        return LayerNorm(name="norm_out", **types)(Linear(self.features, name="out", **types)(x))


FILTERS = {"mlp": MLPFilter, "shape": ShapeFilter, "appearance": AppearanceFilter}


def foreground_statistics(
    states: Float[Array, "b n c"], weight: Float[Array, "b n"]
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Mean and variance of every channel over the foreground, in float32; 0 where there is none."""
    states = states.astype(jnp.float32)
    share = (weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-6))[..., None].astype(jnp.float32)
    mean = (share * states).sum(1)
    return mean, (share * (states - mean[:, None]) ** 2).sum(1)


def patch_weight(mask: Float[Array, "b h w"], side: int) -> Float[Array, "b n"]:
    """How much of each of side x side patches, row by row, is foreground.

    Args:
        mask: in [0, 1], of the picture that the encoder sees.
        side: patches along a side; it need not divide the mask's.
    """
    shape = (mask.shape[0], side, side)
    small = jax.image.resize(mask.astype(jnp.float32), shape, "linear", antialias=True)
    return jnp.clip(small, 0, 1).reshape(mask.shape[0], -1)
