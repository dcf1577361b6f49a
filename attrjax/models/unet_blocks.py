"""The pieces of Stable Diffusion's UNet: time embedding, ResNet, transformer and resampling blocks, NHWC.

Modules and parameters carry the names of torch diffusers (``resnets.0`` is ``resnets_0``), because paths are
what partition rules, adapters and checkpoints are written in.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attrjax.models.attention import dot_product_attention
from attrjax.models.layers import Conv, GroupNorm, LayerNorm, Linear


class Conditioning(NamedTuple):
    """What one cross-attention layer sees.

    Attributes:
        text: [B, T, D] context.
        image: [B, S, D'] second context with key and value projections of its own, or None.
        image_scale: weight of the second attention's output (IP-Adapter, Ye et al. 2023, eq. 5), a scalar.
    """

    text: Float[Array, "b t d"]
    image: Float[Array, "b s e"] | None = None
    image_scale: Float[Array, ""] | float = 1.0


def timestep_embedding(
    timesteps: Float[Array, " n"], dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Float[Array, "n dim"]:
    """Sinusoidal embedding of timesteps (Vaswani et al. 2017, §3.5) as DDPM uses it, in float32.

    The frequencies are rounded at each step as torch does in float32: at t=999 one unit in the last place of
        a
    frequency is already 1e-4 of a period's argument.
    """
    half = dim // 2
    exponent = (
        np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    )
    angles = timesteps.astype(jnp.float32)[:, None] * np.exp(exponent)[None]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


class TimestepEmbedding(nn.Module):
    """Two-layer SiLU network from a sinusoidal embedding [B, D] to [B, features]."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b f"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Linear(self.features, name="linear_1", **types)(x)
        return Linear(self.features, name="linear_2", **types)(jax.nn.silu(x))


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a residual (He et al. 2016; DDPM's time bias in between).

    Attributes:
        features: output channels; a 1x1 ``conv_shortcut`` exists where they differ from the input's.
        norm_num_groups, norm_eps: of both norms.
    """

    features: int
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w f"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = GroupNorm(self.norm_num_groups, self.norm_eps, name="norm1", **types)(x)
        h = Conv(self.features, name="conv1", **types)(jax.nn.silu(h))
        if time is not None:
            h = h + Linear(self.features, name="time_emb_proj", **types)(jax.nn.silu(time))[:, None, None]
        h = GroupNorm(self.norm_num_groups, self.norm_eps, name="norm2", **types)(h)
        h = Conv(self.features, name="conv2", **types)(jax.nn.silu(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, padding=0, name="conv_shortcut", **types)(x)
        return x.astype(self.dtype) + h


class Attention(nn.Module):
    """Multi-head attention to itself or to a context, with an optional second, image context.

    Attributes:
        num_heads: heads; their size is channels / num_heads.
        upcast: run scores and softmax's products in float32 also when the compute type is shorter.
        implementation: forces one of ``attention.dot_product_attention``'s implementations.

    ``to_k_ip`` and ``to_v_ip`` exist where an image context was given at initialization; their output, times
    the scale, is added before ``to_out`` (decoupled cross-attention: IP-Adapter, Ye et al. 2023).
    """

    num_heads: int
    upcast: bool = False
    implementation: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], conditioning: Conditioning | None = None
    ) -> Float[Array, "b t c"]:
        channels = x.shape[-1]
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def project(inputs: Array, name: str) -> Array:
            y = Linear(channels, use_bias=False, name=name, **types)(inputs)
            y = y.reshape(*y.shape[:2], self.num_heads, channels // self.num_heads)
            return y.astype(jnp.float32) if self.upcast else y

        def attend(query: Array, key: Array, value: Array) -> Array:
            out = dot_product_attention(query, key, value, implementation=self.implementation)
            return out.reshape(x.shape).astype(self.dtype)

        source = x if conditioning is None else conditioning.text
        query = project(x, "to_q")
        out = attend(query, project(source, "to_k"), project(source, "to_v"))
        if conditioning is not None and conditioning.image is not None:
            image = conditioning.image
            extra = attend(query, project(image, "to_k_ip"), project(image, "to_v_ip"))
            out = out + jnp.asarray(conditioning.image_scale, self.dtype) * extra
        return Linear(channels, name="to_out_0", **types)(out)


class GEGLU(nn.Module):
    """Linear to twice the features, one half gated by the exact GELU of the other (Shazeer 2020)."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t f"]:
        y = Linear(2 * self.features, dtype=self.dtype, param_dtype=self.param_dtype, name="proj")(x)
        value, gate = jnp.split(y, 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the channels and back."""

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Linear(x.shape[-1], name="net_2", **types)(GEGLU(4 * x.shape[-1], name="net_0", **types)(x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalized first (Rombach et al. 2022, app.
    E.2.1).

    ``only_cross_attention`` lets the first attention read the text too, as the SD 2 upscaler does.
    """

    num_heads: int
    only_cross_attention: bool = False
    upcast_attention: bool = False
    attention_implementation: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], conditioning: Conditioning) -> Float[Array, "b t c"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = {
            "upcast": self.upcast_attention,
            "implementation": self.attention_implementation,
            **types,
        }
        first = Conditioning(conditioning.text) if self.only_cross_attention else None
        y = LayerNorm(name="norm1", **types)(x)
        x = x + Attention(self.num_heads, name="attn1", **attention)(y, first)
        y = LayerNorm(name="norm2", **types)(x)
        x = x + Attention(self.num_heads, name="attn2", **attention)(y, conditioning)
        return x + FeedForward(name="ff", **types)(LayerNorm(name="norm3", **types)(x))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of [B, h, w, C], around a residual.

    ``use_linear_projection`` only decides how ``proj_in`` and ``proj_out`` are stored: 1x1 convolutions (SD
    1.x) or linear maps (SD 2.x, SDXL). There is one entry of ``conditioning`` for each block.
    """

    num_heads: int
    use_linear_projection: bool = False
    only_cross_attention: bool = False
    upcast_attention: bool = False
    norm_num_groups: int = 32
    attention_implementation: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], conditioning: Sequence[Conditioning]
    ) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def projection(name: str) -> nn.Module:
            if self.use_linear_projection:
                return Linear(channels, name=name, **types)
            return Conv(channels, 1, padding=0, name=name, **types)

        y = GroupNorm(self.norm_num_groups, 1e-6, name="norm", **types)(x)
        y = projection("proj_in")(y).reshape(batch, height * width, channels)
        for i, entry in enumerate(conditioning):
            y = BasicTransformerBlock(
                self.num_heads,
                only_cross_attention=self.only_cross_attention,
                upcast_attention=self.upcast_attention,
                attention_implementation=self.attention_implementation,
                name=f"transformer_blocks_{i}",
                **types,
            )(y, entry)
        return x + projection("proj_out")(y.reshape(batch, height, width, channels))


class Downsample2D(nn.Module):
    """3x3 convolution of stride 2. ``padding`` 0 pads one pixel below and to the right, as the VAE does."""

    padding: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        padding = ((0, 1), (0, 1)) if self.padding == 0 else self.padding
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(x.shape[-1], strides=2, padding=padding, name="conv", **types)(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement to ``size`` (twice the input's where None) and a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        batch, height, width, channels = x.shape
        if size is None or size == (2 * height, 2 * width):
            x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
            x = x.reshape(batch, 2 * height, 2 * width, channels)
        else:
            rows, columns = (np.arange(n) * m // n for n, m in zip(size, (height, width), strict=True))
            x = x[:, rows][:, :, columns]
        return Conv(channels, name="conv", dtype=self.dtype, param_dtype=self.param_dtype)(x)
