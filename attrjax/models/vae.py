"""The Stable Diffusion autoencoder (``AutoencoderKL``) over [B, H, W, C], and helpers for its latents.

The network is the first stage of Rombach et al. 2022 (arXiv:2112.10752, section 3.1). Its modules and options
have the names of checkpoints in diffusers layout.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from attrjax.models.attention import dot_product_attention
from attrjax.models.layers import Conv, GroupNorm, Linear

EPSILON = 1e-6  # of every norm in this network; the UNet's is 1e-5


class DiagonalGaussian(NamedTuple):
    """A normal distribution over latents with independent components.

    Attributes:
        mean, logvar: [B, h, w, c] in float32; the log of the variance lies in [-30, 20].
    """

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "b h w c"]:
        """One draw per component, reparameterized, so that gradients reach the encoder."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def mode(self) -> Float[Array, "b h w c"]:
        """The most likely latents, which are the mean."""
        return self.mean

    def kl(self) -> Float[Array, " b"]:
        """Divergence to the standard normal in nats, summed over the components of each picture."""
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar
        return 0.5 * terms.sum(axis=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """Convolutional autoencoder between pictures [B, H, W, 3] in [-1, 1] and latents [B, H/f, W/f, c].

    The factor f is 2^(len(block_out_channels) - 1), 8 in Stable Diffusion.

    Attributes:
        in_channels, out_channels: channels of the pictures that go in and come out.
        latent_channels: c.
        block_out_channels: width of each resolution, from the finest.
        layers_per_block: residual blocks per resolution of the encoder; the decoder has one more.
        norm_num_groups: groups of every norm; each width must split into them.
        use_quant_conv, use_post_quant_conv: 1x1 convolutions after the encoder and before the decoder.
        mid_block_add_attention: single-head self-attention at the coarsest resolution.
        dtype, param_dtype: compute and parameter types; norms and results are float32 whatever ``dtype`` is.
        attention_implementation: passed on to ``dot_product_attention``.
        remat: recompute each block in the backward pass and do not store its activations.

    ``encode`` and ``decode`` know nothing of the scaling factor: see ``scale_latents``. A call of the module
    encodes, takes the mode and decodes, which touches every parameter: initialize with it.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None
    remat: bool = False

    def setup(self):
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tower: dict[str, Any] = {
            "block_out_channels": self.block_out_channels,
            "norm_num_groups": self.norm_num_groups,
            "mid_block_add_attention": self.mid_block_add_attention,
            "attention_implementation": self.attention_implementation,
            "remat": self.remat,
        } | types
        self.encoder = Encoder(2 * self.latent_channels, layers_per_block=self.layers_per_block, **tower)
        self.decoder = Decoder(self.out_channels, layers_per_block=self.layers_per_block + 1, **tower)
        if self.use_quant_conv:
            self.quant_conv = Conv(2 * self.latent_channels, kernel_size=1, padding=0, **types)
        if self.use_post_quant_conv:
            self.post_quant_conv = Conv(self.latent_channels, kernel_size=1, padding=0, **types)

    def encode(self, x: Float[Array, "b H W i"]) -> DiagonalGaussian:
        """The distribution of a picture's latents, unscaled.

        Raises:
            ValueError: the pictures do not have ``in_channels`` channels.
        """
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"pictures of {self.in_channels} channels expected, [B, H, W, C]; got {x.shape}")
        moments = self.encoder(x.astype(self.dtype))
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W o"]:
        """Pictures of unscaled latents, about in [-1, 1] but not clipped.

        Raises:
            ValueError: the latents do not have ``latent_channels`` channels.
        """
        if z.shape[-1] != self.latent_channels:
            raise ValueError(
                f"latents of {self.latent_channels} channels expected, [B, h, w, c]; got {z.shape}"
            )
        z = z.astype(self.dtype)
        if self.use_post_quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)

    def __call__(self, x: Float[Array, "b H W i"]) -> Float[Array, "b H W o"]:
        return self.decode(self.encode(x).mode())


class Encoder(nn.Module):
    """Pictures to moments: residual blocks that halve the resolution after every width but the last."""

    features: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    mid_block_add_attention: bool
    attention_implementation: str | None
    remat: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b H W i"]) -> Float[Array, "b h w o"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = nn.remat(ResnetStack) if self.remat else ResnetStack
        middle = nn.remat(MidBlock) if self.remat else MidBlock
        widths = self.block_out_channels
        x = Conv(widths[0], name="conv_in", **types)(x)
        for i, width in enumerate(widths):
            resample = "down" if i < len(widths) - 1 else None
            x = block(
                width, self.layers_per_block, self.norm_num_groups, resample, name=f"down_blocks_{i}", **types
            )(x)
        x = middle(
            self.norm_num_groups,
            self.mid_block_add_attention,
            self.attention_implementation,
            name="mid_block",
            **types,
        )(x)
        x = GroupNorm(self.norm_num_groups, EPSILON, name="conv_norm_out", **types)(x)
        return Conv(self.features, name="conv_out", **types)(jax.nn.silu(x))


class Decoder(nn.Module):
    """Latents to pictures: residual blocks that double the resolution after every width but the finest."""

    features: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    mid_block_add_attention: bool
    attention_implementation: str | None
    remat: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W o"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = nn.remat(ResnetStack) if self.remat else ResnetStack
        middle = nn.remat(MidBlock) if self.remat else MidBlock
        widths = self.block_out_channels[::-1]
        x = Conv(widths[0], name="conv_in", **types)(z)
        x = middle(
            self.norm_num_groups,
            self.mid_block_add_attention,
            self.attention_implementation,
            name="mid_block",
            **types,
        )(x)
        for i, width in enumerate(widths):
            resample = "up" if i < len(widths) - 1 else None
            x = block(
                width, self.layers_per_block, self.norm_num_groups, resample, name=f"up_blocks_{i}", **types
            )(x)
        x = GroupNorm(self.norm_num_groups, EPSILON, name="conv_norm_out", **types)(x)
        return Conv(self.features, name="conv_out", **types)(jax.nn.silu(x))


class ResnetStack(nn.Module):
    """Residual blocks, then a change of resolution: "down" halves it, "up" doubles it, None keeps it."""

    features: int
    layers: int
    norm_num_groups: int
    resample: str | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in range(self.layers):
            x = ResnetBlock(self.features, self.norm_num_groups, name=f"resnets_{i}", **types)(x)
        if self.resample == "down":
            x = Downsample(self.features, name="downsamplers_0", **types)(x)
        elif self.resample == "up":
            x = Upsample(self.features, name="upsamplers_0", **types)(x)
        return x


class Downsample(nn.Module):
    """Strided convolution that is padded below and to the right only, as the original model is."""

    features: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(self.features, strides=2, padding=((0, 1), (0, 1)), name="conv", **types)(x)


class Upsample(nn.Module):
    """Every pixel repeated twice in both directions, then a convolution."""

    features: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return Conv(self.features, name="conv", dtype=self.dtype, param_dtype=self.param_dtype)(x)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on x where the width changes."""

    features: int
    norm_num_groups: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = jax.nn.silu(GroupNorm(self.norm_num_groups, EPSILON, name="norm1", **types)(x))
        y = Conv(self.features, name="conv1", **types)(y)
        y = jax.nn.silu(GroupNorm(self.norm_num_groups, EPSILON, name="norm2", **types)(y))
        y = Conv(self.features, name="conv2", **types)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, padding=0, name="conv_shortcut", **types)(x)
        return x + y


class MidBlock(nn.Module):
    """Residual block, optional self-attention, residual block, at the coarsest resolution."""

    norm_num_groups: int
    add_attention: bool
    attention_implementation: str | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = ResnetBlock(x.shape[-1], self.norm_num_groups, name="resnets_0", **types)(x)
        if self.add_attention:
            x = PixelAttention(
                self.norm_num_groups, self.attention_implementation, name="attentions_0", **types
            )(x)
        return ResnetBlock(x.shape[-1], self.norm_num_groups, name="resnets_1", **types)(x)


class PixelAttention(nn.Module):
    """Every pixel attends to every pixel with one head as wide as the features, plus the input."""

    norm_num_groups: int
    implementation: str | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b, h, w, c = x.shape
        y = GroupNorm(self.norm_num_groups, EPSILON, name="group_norm", **types)(x).reshape(b, h * w, c)
        q, k, v = (
            Linear(c, name=name, **types)(y).reshape(b, h * w, 1, c) for name in ("to_q", "to_k", "to_v")
        )
        y = dot_product_attention(q, k, v, implementation=self.implementation)
        return x + Linear(c, name="to_out_0", **types)(y.reshape(b, h, w, c))


def scale_latents(z: Array, scaling_factor: float, shift_factor: float | None = None) -> Array:
    """(z - shift) * scale: from what ``encode`` gives to the unit variance that the diffusion model sees."""
    return (z - (shift_factor or 0.0)) * scaling_factor


def unscale_latents(z: Array, scaling_factor: float, shift_factor: float | None = None) -> Array:
    """z / scale + shift: the inverse of ``scale_latents``, before ``decode``."""
    return z / scaling_factor + (shift_factor or 0.0)


def tiled_decode(
    decode: Callable[[Float[Array, "b t u c"]], Float[Array, "b T U o"]],
    z: Float[Array, "b h w c"],
    *,
    tile: int = 64,
    overlap: int | None = None,
) -> Float[Array, "b H W o"]:
    """Decode latents in overlapping tiles that are blended linearly, in the memory of one tile.

    All tiles have one shape (they are spread evenly and may overlap more than asked), so a jitted ``decode``
    compiles once. The decoder's norms and attention see one tile at a time, so tiles differ slightly in tone;
    the blend hides that, the better the larger the overlap. Latents that fit in a tile give ``decode(z)``.

    Args:
        decode: maps latents to pictures that are a whole number of times larger in each direction.
        z: unscaled latents.
        tile: side of a tile, in latent pixels.
        overlap: the least overlap of neighbouring tiles, in latent pixels; None for a quarter of ``tile``.

    Raises:
        ValueError: the overlap is not in [0, tile).
    """
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ValueError(f"the overlap of tiles must be in [0, tile) = [0, {tile}), got {overlap}")
    batch, height, width, channels = z.shape
    if height <= tile and width <= tile:
        return decode(z)
    rows, columns = _tile_starts(height, tile, overlap), _tile_starts(width, tile, overlap)
    size = (batch, min(tile, height), min(tile, width), channels)
    picture: Array | None = None
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            part = decode(jax.lax.dynamic_slice(z, (0, top, left, 0), size))
            if picture is None:
                factor_h, factor_w = part.shape[1] // size[1], part.shape[2] // size[2]
                shape = (batch, height * factor_h, width * factor_w, part.shape[-1])
                picture = jnp.zeros(shape, part.dtype)
                row_weights = _blend_weights(rows, size[1], factor_h)
                column_weights = _blend_weights(columns, size[2], factor_w)
            weights = row_weights[i][:, None, None] * column_weights[j][None, :, None]
            corner = (0, top * factor_h, left * factor_w, 0)
            sofar = jax.lax.dynamic_slice(picture, corner, part.shape)
            part = sofar + part * weights.astype(part.dtype)
            picture = jax.lax.dynamic_update_slice(picture, part, corner)
    assert picture is not None  # there is at least one tile
    return picture


def _tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the fewest tiles begin that cover a line, spread evenly from its first to its last pixel."""
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile - overlap)) + 1
    return [i * (length - tile) // (count - 1) for i in range(count)]


def _blend_weights(starts: list[int], tile: int, factor: int) -> Float[np.ndarray, "n t"]:
    """Weights of each tile along a line of pixels: ramps over what neighbours share, with a sum of one."""
    size = tile * factor
    centres = np.arange(size) + 0.5
    weights = np.ones((len(starts), size))
    for i, (left, right) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        shared = (left + tile - right) * factor
        if shared:
            weights[i] *= np.clip((size - centres) / shared, 0, 1)
            weights[i + 1] *= np.clip(centres / shared, 0, 1)
    total = np.zeros((starts[-1] + tile) * factor)
    for start, line in zip(starts, weights, strict=True):
        total[start * factor : start * factor + size] += line
    return np.stack(
        [
            line / total[start * factor : start * factor + size]
            for start, line in zip(starts, weights, strict=True)
        ]
    )
