"""Linear, convolution and normalization layers that every network of the package is made of.

They differ from linen's own in three ways. Norms always compute in float32. Every ``Linear`` and ``Conv``
reads an optional ``adapters`` variable collection at its own path, so that low-rank changes of a frozen
network are an input of ``apply`` and not a second copy of it (``adapters.py`` builds that collection). And
3x3 convolutions on a CPU run as Winograd products (``convolution.py``).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attrjax.models.abstract import shapes_alone
from attrjax.models.convolution import conv2d


def param_of(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    """``module.param`` without its check of what is there already, which traces the initializer of every
    parameter each time that a network is traced: two fifths of what tracing SD 1.5's UNet takes.

    Raises:
        ValueError: what is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, nn.initializers.zeros if shapes_alone() else init, shape, dtype)
    value: Array = module.get_variable("params", name)
    if value.shape != shape:
        raise ValueError(f"{'/'.join(module.path)}/{name} must be of shape {shape}, not {value.shape}")
    return value


def _offset_kernel(kernel: Array, adapter: dict[str, Array] | None) -> Array:
    """W * (1 + U V^T) over the kernel seen as a matrix [everything else, out] (OSTAF's weight offsets)."""
    if adapter is None or "offset_u" not in adapter:
        return kernel
    change = adapter["offset_u"] @ adapter["offset_v"].T
    return kernel * (1 + change.reshape(kernel.shape).astype(kernel.dtype))


class Linear(nn.Module):
    """Affine map over the last axis.

    Attributes:
        features: output size.
        use_bias: whether a bias is added.
        dtype: compute type. param_dtype: type of the parameters.

    Parameters ``kernel`` [in, features] and ``bias`` [features]. The optional ``adapters`` collection may
    hold ``lora_down`` [in, r] with ``lora_up`` [r, features], and ``offset_u`` [in, r] with ``offset_v``
    [features, r].
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        shape = (x.shape[-1], self.features)
        kernel = param_of(self, "kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        adapter = adapter_of(self)
        x = x.astype(self.dtype)
        y = x @ _offset_kernel(kernel, adapter).astype(self.dtype)
        if self.use_bias:
            bias = param_of(self, "bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        if adapter is not None and "lora_down" in adapter:
            y = y + (x @ adapter["lora_down"].astype(self.dtype)) @ adapter["lora_up"].astype(self.dtype)
        return y


class Conv(nn.Module):
    """Two-dimensional convolution over [B, H, W, C].

    Attributes:
        features: output channels.
        kernel_size, strides: the same in both directions.
        padding: the same on all sides, or ((top, bottom), (left, right)).
        use_bias, dtype, param_dtype: as in ``Linear``.

    Parameters ``kernel`` [k, k, in, features] and ``bias`` [features]. The optional ``adapters`` collection
    may hold ``lora_down`` [k, k, in, r] with ``lora_up`` [1, 1, r, features], and ``offset_u`` [k*k*in, r]
    with ``offset_v`` [features, r]. The optional ``winograd`` collection holds ``kernel`` as
    ``convolution.winograd_kernel`` makes it, so that a loop over many calls transforms it once.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        k = self.kernel_size
        kernel = param_of(
            self,
            "kernel",
            nn.initializers.lecun_normal(),
            (k, k, x.shape[-1], self.features),
            self.param_dtype,
        )
        adapter = adapter_of(self)
        pad = ((self.padding, self.padding),) * 2 if isinstance(self.padding, int) else self.padding
        x = x.astype(self.dtype)
        changed = adapter is not None and "offset_u" in adapter
        prepared: Array | None = None
        if not changed and self.has_variable("winograd", "kernel"):
            prepared = self.get_variable("winograd", "kernel").astype(self.dtype)
        kernel = _offset_kernel(kernel, adapter).astype(self.dtype)
        y = conv2d(x, kernel, strides=self.strides, padding=pad, prepared=prepared)
        if self.use_bias:
            bias = param_of(self, "bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        if adapter is not None and "lora_down" in adapter:
            down = conv2d(x, adapter["lora_down"].astype(self.dtype), strides=self.strides, padding=pad)
            y = y + down @ adapter["lora_up"][0, 0].astype(self.dtype)
        return y


def adapter_of(module: nn.Module) -> dict[str, Array] | None:
    """The ``adapters`` leaves at a module's own path, or None where there are none."""
    found: dict[str, Array] = {}
    for name in ("lora_down", "lora_up", "offset_u", "offset_v"):
        if module.has_variable("adapters", name):
            found[name] = module.get_variable("adapters", name)
    return found or None


class GroupNorm(nn.Module):
    """Group normalization of [B, ..., C] in float32, with parameters ``scale`` and ``bias`` [C]."""

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{channels} channels do not split into {self.num_groups} norm groups")
        scale = param_of(self, "scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = param_of(self, "bias", nn.initializers.zeros, (channels,), self.param_dtype)
        batch, size = x.shape[0], channels // self.num_groups
        x32 = x.astype(jnp.float32)
        # Per-channel moments first: one pass that vectorizes over channels, then a tiny reduction over each
        # group.
        count = x.size // (batch * channels)
        sums = x32.reshape(batch, count, channels).sum(1).reshape(batch, self.num_groups, size).sum(-1)
        mean = sums / (count * size)
        mean_c = jnp.repeat(mean, size, axis=-1).reshape(batch, *(1,) * (x.ndim - 2), channels)
        centred = x32 - mean_c
        squares = jnp.square(centred).reshape(batch, count, channels).sum(1)
        variance = squares.reshape(batch, self.num_groups, size).sum(-1) / (count * size)
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        factor = jnp.repeat(inverse, size, axis=-1).reshape(mean_c.shape) * scale.astype(jnp.float32)
        return (centred * factor + bias.astype(jnp.float32)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis in float32, parameters ``scale`` and ``bias`` [C]."""

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        scale = param_of(self, "scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = param_of(self, "bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        out = centred * inverse * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return out.astype(self.dtype)
