"""The UNet of Stable Diffusion 1.x, 2.x and XL (diffusers' ``UNet2DConditionModel``) as one linen module,
NHWC.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attrjax.models.abstract import for_shapes
from attrjax.models.layers import Conv, GroupNorm
from attrjax.models.unet_blocks import (
    Conditioning,
    Downsample2D,
    ResnetBlock,
    TimestepEmbedding,
    Transformer2D,
    Upsample2D,
    timestep_embedding,
)

Ints = int | Sequence[int]
Bools = bool | Sequence[bool]


def per_block(value: Ints | Bools, blocks: int) -> tuple:
    """One value for each block: a scalar is repeated, a sequence must have that many entries."""
    if isinstance(value, int):
        return (value,) * blocks
    if len(value) != blocks:
        raise ValueError(f"{list(value)} has {len(value)} entries for {blocks} UNet blocks")
    return tuple(value)


class Stage(nn.Module):
    """ResNets, each followed by a transformer where ``entries`` has one for it.

    Down, middle and up blocks are this with something before or after; they are told apart by ``kind``.

    Attributes:
        kind: "down", "mid" or "up".
        features: output channels. layers: number of ResNets (in a middle block, of transformers between
            them).
        resample: whether the block ends with a downsampler or an upsampler.
        num_heads, use_linear_projection, only_cross_attention, upcast_attention: see ``Transformer2D``.
    """

    kind: str
    features: int
    layers: int
    resample: bool
    num_heads: int
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool
    only_cross_attention: bool
    upcast_attention: bool
    downsample_padding: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    attention_implementation: str | None
    remat: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b e"],
        entries: Sequence[Sequence[Conditioning]],
        skips: Sequence[Float[Array, "b h w _"]] = (),
        size: tuple[int, int] | None = None,
    ) -> tuple[Float[Array, "b h2 w2 f"], list[Float[Array, "b _h _w f"]]]:
        """Run the block.

        Args:
            x, time: features and the embedding of time.
            entries: for each transformer, what each of its blocks sees.
            skips: what an up block's ResNets read beside ``x``, in the order in which they run.
            size: height and width that an upsampler makes.

        Returns:
            the features, and the output of every layer, which is what the up blocks read.
        """
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        resnet_class = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        transformer_class = nn.remat(Transformer2D) if self.remat else Transformer2D

        def resnet(i: int, x: Array) -> Array:
            norms = (self.norm_num_groups, self.norm_eps)
            return resnet_class(self.features, *norms, name=f"resnets_{i}", **types)(x, time)

        def transformer(i: int, x: Array) -> Array:
            return transformer_class(
                self.num_heads,
                use_linear_projection=self.use_linear_projection,
                only_cross_attention=self.only_cross_attention,
                upcast_attention=self.upcast_attention,
                norm_num_groups=self.norm_num_groups,
                attention_implementation=self.attention_implementation,
                name=f"attentions_{i}",
                **types,
            )(x, entries[i])

        if self.kind == "mid":
            x = resnet(0, x)
            for i in range(self.layers):
                x = resnet(i + 1, transformer(i, x))
            return x, [x]

        outputs = []
        for i in range(self.layers):
            x = resnet(i, jnp.concatenate([x, skips[i]], axis=-1) if self.kind == "up" else x)
            if entries:
                x = transformer(i, x)
            outputs.append(x)
        if self.resample and self.kind == "down":
            x = Downsample2D(self.downsample_padding, name="downsamplers_0", **types)(x)
            outputs.append(x)
        if self.resample and self.kind == "up":
            x = Upsample2D(name="upsamplers_0", **types)(x, size)
        return x, outputs


class UNet2DCondition(nn.Module):
    """Noise predictor conditioned on time and on text.

    The attributes are the keys of diffusers' ``unet/config.json`` of the same name. ``attention_head_dim``
    is, as there, the *number* of heads (a misnomer that published files keep). ``addition_embed_type`` may be
    None or "text_time" (SDXL); ``num_class_embeds`` adds a table of noise levels (SD 2 upscaler).

    Further attributes:
        dtype, param_dtype: compute and parameter types; norms and softmax are in float32.
        attention_implementation: forces one of ``attention.dot_product_attention``'s implementations.
        remat: recompute ResNet and transformer blocks in the backward pass instead of storing their insides.
    """

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: Sequence[str] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: Sequence[str] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    layers_per_block: Ints = 2
    transformer_layers_per_block: Ints = 1
    attention_head_dim: Ints = 8
    only_cross_attention: Bools = False
    use_linear_projection: bool = False
    upcast_attention: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    addition_embed_type: str | None = None
    addition_time_embed_dim: int = 256
    num_class_embeds: int | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"] | Int[Array, " b"] | float,
        context: Float[Array, "b t d"] | Float[Array, "l b t d"],
        *,
        added_cond: dict[str, Array] | None = None,
        class_labels: Int[Array, " b"] | None = None,
        image_context: Float[Array, "b s e"] | Float[Array, "l b s e"] | None = None,
        image_scale: Float[Array, " l"] | float = 1.0,
    ) -> Float[Array, "b h w o"]:
        """Predict noise, velocity or sample, whatever the checkpoint was trained for.

        Args:
            sample: noisy latents.
            timesteps: 0 to the schedule's length, one each or one for all.
            context: encoded text, one for all cross-attention layers or one for each, in the order of
                ``cross_attention_names``.
            added_cond: SDXL's ``text_embeds`` [B, P] and ``time_ids`` [B, 6].
            class_labels: noise levels of the SD 2 upscaler.
            image_context: second context, for all or for each layer, read by ``to_k_ip`` and ``to_v_ip``.
            image_scale: its weight, for all or for each layer.

        Returns:
            the prediction in float32.

        Raises:
            ValueError: a per-layer argument does not have one entry for each cross-attention layer, or an
                input that the configuration calls for is missing.
        """
        blocks = len(self.block_out_channels)
        heads = per_block(self.attention_head_dim, blocks)
        layers = per_block(self.layers_per_block, blocks)
        only_cross = per_block(self.only_cross_attention, blocks)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def stage(kind: str, name: str, level: int, count: int, resample: bool) -> Stage:
            return Stage(
                kind,
                self.block_out_channels[level],
                count,
                resample,
                num_heads=heads[level],
                norm_num_groups=self.norm_num_groups,
                norm_eps=self.norm_eps,
                use_linear_projection=self.use_linear_projection,
                # As in diffusers, a middle block always attends to itself.
                only_cross_attention=only_cross[level] and kind != "mid",
                upcast_attention=self.upcast_attention,
                downsample_padding=self.downsample_padding,
                attention_implementation=self.attention_implementation,
                remat=self.remat,
                name=name,
                **types,
            )

        in_order = self._conditioning(context, image_context, image_scale)
        depths = transformer_depths(self)
        entries = {name: [[next(in_order) for _ in range(d)] for d in depths[name]] for name in depths}

        time = self._time(timesteps, sample.shape[0], added_cond, class_labels)
        if self.center_input_sample:
            sample = 2 * sample - 1
        x = Conv(self.block_out_channels[0], name="conv_in", **types)(sample)
        skips = [x]
        for i in range(blocks):
            name = f"down_blocks_{i}"
            x, outputs = stage("down", name, i, layers[i], i < blocks - 1)(x, time, entries[name])
            skips += outputs
        middle = entries["mid_block"]
        x, _ = stage("mid", "mid_block", blocks - 1, len(middle), False)(x, time, middle)
        for i in range(blocks):
            name, level = f"up_blocks_{i}", blocks - 1 - i
            count = layers[level] + 1
            skips, mine = skips[:-count], skips[: -count - 1 : -1]
            # The size of the next block's first skip is not twice this one's where a size was odd.
            size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
            x, _ = stage("up", name, level, count, i < blocks - 1)(x, time, entries[name], mine, size)
        x = jax.nn.silu(GroupNorm(self.norm_num_groups, self.norm_eps, name="conv_norm_out", **types)(x))
        return Conv(self.out_channels, name="conv_out", **types)(x).astype(jnp.float32)

    def _conditioning(
        self, context: Array, image_context: Array | None, image_scale: Array | float
    ) -> Iterator[Conditioning]:
        """What each cross-attention layer sees, in the order of ``cross_attention_names``."""
        layers = sum(sum(d) for d in transformer_depths(self).values())

        def spread(value: Any, name: str, shared_ndim: int) -> list:
            if value is None or jnp.ndim(value) == shared_ndim:
                return [value] * layers
            if len(value) != layers:
                raise ValueError(f"{name} has {len(value)} entries for {layers} cross-attention layers")
            return list(value)

        texts = spread(context, "context", 3)
        images = spread(image_context, "image_context", 3)
        scales = spread(image_scale, "image_scale", 0)
        return iter([Conditioning(*entry) for entry in zip(texts, images, scales, strict=True)])

    def _time(
        self,
        timesteps: Array | float,
        batch: int,
        added_cond: dict[str, Array] | None,
        class_labels: Array | None,
    ) -> Float[Array, "b e"]:
        """The embedding of time, and of what is added to it, that every ResNet block reads."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        sinusoid: dict[str, Any] = {"flip_sin_to_cos": self.flip_sin_to_cos, "freq_shift": self.freq_shift}
        features = 4 * self.block_out_channels[0]
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), (batch,))
        time = timestep_embedding(timesteps, self.block_out_channels[0], **sinusoid)
        time = TimestepEmbedding(features, name="time_embedding", **types)(time)
        if self.num_class_embeds is not None:
            if class_labels is None:
                raise ValueError("this UNet was trained with noise levels: pass class_labels [B]")
            table = nn.Embed(self.num_class_embeds, features, name="class_embedding", **types)
            time = time + table(class_labels)
        if self.addition_embed_type == "text_time":
            if added_cond is None:
                raise ValueError(
                    "this UNet reads pooled text and sizes: pass added_cond (text_embeds, time_ids)"
                )
            ids = added_cond["time_ids"]
            sizes = timestep_embedding(ids.reshape(-1), self.addition_time_embed_dim, **sinusoid)
            added = jnp.concatenate([added_cond["text_embeds"], sizes.reshape(batch, -1)], axis=-1)
            time = time + TimestepEmbedding(features, name="add_embedding", **types)(added)
        elif self.addition_embed_type is not None:
            raise ValueError(
                f"addition_embed_type {self.addition_embed_type!r} is not supported: text_time or None"
            )
        return time


def transformer_depths(unet: UNet2DCondition) -> dict[str, tuple[int, ...]]:
    """For each block, the number of transformer blocks in each of its attentions.

    Blocks are in the order in which torch diffusers registers them (down, up, mid): that order numbers the
    layers of IP-Adapter files and of ``unet.attn_processors``.

    Raises:
        ValueError: an unknown block type.
    """
    blocks = len(unet.block_out_channels)
    depth = per_block(unet.transformer_layers_per_block, blocks)
    layers = per_block(unet.layers_per_block, blocks)

    def of(kinds: Sequence[str], direction: str, i: int, level: int, count: int) -> tuple[int, ...]:
        if kinds[i] == f"{direction}Block2D":
            return ()
        if kinds[i] == f"CrossAttn{direction}Block2D":
            return (depth[level],) * count
        known = f"{direction}Block2D or CrossAttn{direction}Block2D"
        raise ValueError(f"block type {kinds[i]!r} is not supported: {known}")

    depths = {}
    for i in range(blocks):
        depths[f"down_blocks_{i}"] = of(unet.down_block_types, "Down", i, i, layers[i])
    for i in range(blocks):
        level = blocks - 1 - i
        depths[f"up_blocks_{i}"] = of(unet.up_block_types, "Up", i, level, layers[level] + 1)
    depths["mid_block"] = (depth[-1],)
    return depths


def cross_attention_names(unet: UNet2DCondition) -> list[str]:
    """Paths of the cross-attention layers, in the order in which per-layer contexts are given.

    16 layers in SD 1.x and 2.x, 70 in SDXL, ordered as torch diffusers' ``unet.attn_processors``.
    """
    return [
        f"{block}/attentions_{i}/transformer_blocks_{j}/attn2"
        for block, depths in transformer_depths(unet).items()
        for i, depth in enumerate(depths)
        for j in range(depth)
    ]


def abstract_params(
    unet: UNet2DCondition,
    *,
    cross_attention_dim: int,
    added_cond_dim: int | None = None,
    image_context_dim: int | None = None,
) -> dict:
    """Shapes and types of the UNet's parameters, without allocating them.

    Args:
        cross_attention_dim: width of the text context.
        added_cond_dim: diffusers' ``projection_class_embeddings_input_dim`` (SDXL: pooled text and six
            sizes).
        image_context_dim: width of the second context; None leaves ``to_k_ip`` and ``to_v_ip`` out.

    Returns:
        nested dict of ``jax.ShapeDtypeStruct``.
    """

    def init() -> dict:
        # The smallest picture that every level still divides.
        side = 2 ** (len(unet.block_out_channels) - 1)
        added = None
        if added_cond_dim is not None:
            pooled = added_cond_dim - 6 * unet.addition_time_embed_dim
            added = {"text_embeds": jnp.zeros((1, pooled)), "time_ids": jnp.zeros((1, 6))}
        image = None if image_context_dim is None else jnp.zeros((1, 1, image_context_dim))
        labels = None if unet.num_class_embeds is None else jnp.zeros((1,), jnp.int32)
        return unet.init(
            jax.random.key(0),
            jnp.zeros((1, side, side, unet.in_channels)),
            0.0,
            jnp.zeros((1, 1, cross_attention_dim)),
            added_cond=added,
            class_labels=labels,
            image_context=image,
        )["params"]

    with for_shapes():
        return jax.eval_shape(init)
