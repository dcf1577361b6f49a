"""CLIP vision towers (ViT-B/32, L/14, H/14 and their kin) and the pictures they expect."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attrjax.models.clip_layers import CLIPEncoder
from attrjax.models.layers import Conv, LayerNorm, Linear

PIXEL_MEAN = (
    0.48145466,
    0.4578275,
    0.40821073,
)  # of red, green and blue in CLIP's training set, pixels in [0, 1]
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPVisionOutput(NamedTuple):
    """What a vision tower computes, in its compute dtype. Token 0 is the class token, then patches by row.

    Attributes:
        hidden_states: the normed embeddings and the output of each layer, L + 1 arrays [B, 1 + N, D].
        last_hidden_state: the last of them, [B, 1 + N, D], with no norm applied.
        pooled: its class token after the final norm, [B, D].
        image_embeds: ``pooled`` after the projection, [B, P]; None for a tower without one.
    """

    hidden_states: tuple[Float[Array, "b n d"], ...]
    last_hidden_state: Float[Array, "b n d"]
    pooled: Float[Array, "b d"]
    image_embeds: Float[Array, "b p"] | None


class CLIPVisionModel(nn.Module):
    """Vision transformer; argument names are those of ``image_encoder/config.json``.

    Attributes:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: the transformer's shape.
        image_size, patch_size: sides in pixels; N = (image_size // patch_size)^2 patches.
        num_channels: channels of the pictures.
        hidden_act: "quick_gelu" or "gelu".
        layer_norm_eps: epsilon of the norms.
        projection_dim: size of ``image_embeds``; None for a tower without a projection.
        dtype, param_dtype, attention_implementation, remat: as in ``vae.AutoencoderKL``.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None
    remat: bool = False

    def setup(self):
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.vision_model = VisionTransformer(
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.patch_size,
            self.hidden_act,
            self.layer_norm_eps,
            self.attention_implementation,
            self.remat,
            **types,
        )
        if self.projection_dim is not None:
            self.visual_projection = Linear(self.projection_dim, use_bias=False, **types)

    def __call__(self, pixels: Float[Array, "b h w c"]) -> CLIPVisionOutput:
        """Encode pictures that ``preprocess`` has made.

        Raises:
            ValueError: the pictures are not of ``image_size`` and ``num_channels``.
        """
        expected = (self.image_size, self.image_size, self.num_channels)
        if pixels.shape[1:] != expected:
            raise ValueError(
                f"the vision tower takes pictures [B, {expected}], got {pixels.shape}; see preprocess"
            )
        states, pooled = self.vision_model(pixels)
        embeds = None if self.projection_dim is None else self.visual_projection(pooled)
        return CLIPVisionOutput(states, states[-1], pooled, embeds)


class VisionTransformer(nn.Module):
    """Patch embeddings, encoder, and the norm of the class token."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    attention_implementation: str | None
    remat: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "b h w c"]
    ) -> tuple[tuple[Float[Array, "b n d"], ...], Float[Array, "b d"]]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = VisionEmbeddings(self.hidden_size, self.patch_size, name="embeddings", **types)(pixels)
        x = LayerNorm(self.layer_norm_eps, name="pre_layrnorm", **types)(x)  # spelt as in the checkpoints
        states = CLIPEncoder(
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            hidden_act=self.hidden_act,
            layer_norm_eps=self.layer_norm_eps,
            causal=False,
            attention_implementation=self.attention_implementation,
            remat=self.remat,
            name="encoder",
            **types,
        )(x)
        return states, LayerNorm(self.layer_norm_eps, name="post_layernorm", **types)(states[-1][:, 0])


class VisionEmbeddings(nn.Module):
    """The class token and one token per patch, plus learned positions."""

    hidden_size: int
    patch_size: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, size, width = pixels.shape[0], self.patch_size, self.hidden_size
        patches = Conv(
            width, kernel_size=size, strides=size, padding=0, use_bias=False, name="patch_embedding", **types
        )(pixels)
        token = self.param("class_embedding", nn.initializers.normal(0.02), (width,), self.param_dtype)
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, width))
        x = jnp.concatenate([token, patches.reshape(batch, -1, width)], axis=1)
        positions = nn.Embed(x.shape[1], width, name="position_embedding", **types)
        return x + positions(jnp.arange(x.shape[1]))


def patch_states(output: CLIPVisionOutput, layer: int = -2) -> Float[Array, "b n d"]:
    """States of the patches after a layer (0: the embeddings, -1: the last), without the class token."""
    return output.hidden_states[layer][:, 1:]


def preprocess(images: Float[Array, "b H W 3"], size: int = 224) -> Float[Array, "b s s 3"]:
    """Pictures in [0, 1] as CLIP's towers expect them: resized, cropped to the central square, normalized.

    The shorter side becomes ``size`` by antialiased bicubic interpolation. This is what transformers'
    ``CLIPImageProcessor`` does on PIL but for its rounding to 8 bits (less than two levels of 255, on noise),
    and it is differentiable.

    Args:
        images: red, green and blue in [0, 1].
        size: the tower's ``image_size``.
    """
    batch, height, width, channels = images.shape
    shorter = min(height, width)
    tall, wide = int(size * height / shorter), int(size * width / shorter)
    x = jax.image.resize(images, (batch, height, wide, channels), method="cubic", antialias=True)
    x = jnp.clip(x, 0, 1)  # the kernel overshoots at edges, and PIL clips after each direction
    x = jnp.clip(jax.image.resize(x, (batch, tall, wide, channels), method="cubic", antialias=True), 0, 1)
    top, left = (tall - size) // 2, (wide - size) // 2
    x = x[:, top : top + size, left : left + size]
    return (x - jnp.asarray(PIXEL_MEAN, x.dtype)) / jnp.asarray(PIXEL_STD, x.dtype)
