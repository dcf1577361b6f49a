"""Convolution over [B, H, W, C] in the form that is fastest for its shape and device.

* On accelerators, and wherever no rule below holds: XLA's own convolution.
* On a CPU in float32, few positions or a 1x1 kernel: one matrix product over patches ("columns").
* On a CPU in float32, 3x3 kernels over many positions: Winograd's minimal filtering F(2x4, 3x3) (Lavin & Gray
  2015, arXiv:1509.09308). Each tile of 2x4 outputs takes 24 products per pair of channels instead of 72, and
  the products of all tiles are 24 matrix products, which is what a CPU does best. The interpolation points
  are 0, 1, -1 and infinity along the height and 0, ±sqrt(1/2), ±sqrt(2) and infinity along the width, where
  the usual 0, ±1, ±2 lose more to rounding (Barabasz et al. 2020, arXiv:1803.10986, on the choice of points).
  The largest error is about 1.5e-6 of the largest output, three times that of the direct sum.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from attrjax.models.abstract import shapes_alone

Padding = tuple[tuple[int, int], tuple[int, int]]

# All limits below were measured on two Zen 4 cores (float32, 320 to 2560 channels).
# Fewer channels leave matrix products too thin to pay for the transforms around them.
MIN_CHANNELS = 32
# Output positions (batch * height * width) up to which patches in one matrix product beat XLA's convolution.
COLUMNS_UP_TO = 1024
# Positions from which Winograd pays with a kernel that was transformed before, and with one that is
# transformed on each call: that costs 33 reads and writes per pair of channels, whatever the number of
# positions that share it.
PREPARED_FROM = 64
UNPREPARED_FROM = 384
# Positions up to which Winograd's intermediates, three times the size of input and output, stay in cache.
# With more, moving them costs what products of fewer than WIDE channels save.
CACHED_UP_TO = 2**13
WIDE = 256
# Positions from which the kernel's gradient is made of Winograd products too.
GRADIENT_FROM = 1024
# Elements of a kernel up to which its transform is kept from a step's forward pass for the backward one. A
# larger one is transformed again: at SD 1.5's size all of them together are 5 GiB, several pictures' worth
# of activations.
KEPT_UP_TO = 2**20
# Positions in one set of products: larger pictures go through it in bands of rows, so that intermediates, six
# times the size of the input, do not set the peak memory.
BAND = 2**15

_A, _B = math.sqrt(0.5), math.sqrt(2.0)
# Kernel transforms: a kernel's polynomial at each interpolation point over the product of its distances to
# the others.
_G_HEIGHT = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G_WIDTH = np.array(
    [[1, 0, 0]]
    + [[c, c * p, c * p * p] for c, p in ((-2 / 3, _A), (-2 / 3, -_A), (1 / 6, _B), (1 / 6, -_B))]
    + [[0, 0, 1]]
)
_G = np.kron(_G_HEIGHT, _G_WIDTH)  # [24, 9]
# Where each interpolation point's inverse stands in those orders.
_TURN_HEIGHT = (3, 1, 2, 0)
_TURN_WIDTH = (5, 3, 4, 1, 2, 0)


def conv2d(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    *,
    strides: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
    prepared: Float[Array, "24 i o"] | None = None,
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of a batch of pictures with a kernel, both in one dtype.

    ``padding`` is ((top, bottom), (left, right)). ``prepared`` is ``winograd_kernel(kernel)``, for callers
    that use one kernel many times. It is a cache and no more: the gradient belongs to ``kernel``, and calls
    that do not run as Winograd products ignore it.
    """
    if shapes_alone():
        return _direct(x, kernel, strides, padding)
    form = choose_form(x.shape, kernel.shape, x.dtype, strides, padding, prepared is not None)
    if form == "winograd":
        if prepared is None and kernel.size <= KEPT_UP_TO:
            prepared = winograd_kernel(kernel)
        return _winograd(x, kernel, prepared)
    if form == "columns":
        return _columns(x, kernel, strides, padding)
    return _direct(x, kernel, strides, padding)


def choose_form(x_shape, kernel_shape, dtype, strides: int, padding: Padding, prepared: bool) -> str:
    """One of "direct", "columns" and "winograd" for a convolution on the default backend."""
    kh, kw, *channels = kernel_shape
    if jax.default_backend() != "cpu" or dtype != jnp.float32 or min(channels) < MIN_CHANNELS:
        return "direct"
    height, width = (
        (size + sum(pad) - k) // strides + 1
        for size, pad, k in zip(x_shape[1:3], padding, (kh, kw), strict=True)
    )
    positions = x_shape[0] * height * width
    same = (kh, kw, strides, padding) == (3, 3, 1, ((1, 1), (1, 1)))
    worth = positions <= CACHED_UP_TO or min(channels) >= WIDE
    if same and worth and positions >= (PREPARED_FROM if prepared else UNPREPARED_FROM):
        return "winograd"
    if (kh, kw) == (1, 1) or positions <= COLUMNS_UP_TO:
        return "columns"
    return "direct"


def winograd_kernel(kernel: Float[Array, "3 3 i o"]) -> Float[Array, "24 i o"]:
    """G_height kernel G_width^T for each pair of channels: a convolution is a product in this domain."""
    flat = kernel.reshape(9, -1)
    return (jnp.asarray(_G, kernel.dtype) @ flat).reshape(24, *kernel.shape[2:])


def prepare(params: dict) -> dict:
    """The "winograd" collection of a network: each 3x3 kernel that can use it, transformed once.

    It holds 2.7 times the bytes of those kernels. Left out are kernels with few channels and those of
    ``downsamplers``, which are strided.
    """

    def wanted(path, leaf):
        strided = any(part.startswith("downsamplers") for part in path)
        square = path[-1] == "kernel" and leaf.ndim == 4 and leaf.shape[:2] == (3, 3)
        return square and not strided and min(leaf.shape[2:]) >= MIN_CHANNELS

    flat = flatten_dict(params)
    kept = {
        path: winograd_kernel(leaf.astype(jnp.float32)) for path, leaf in flat.items() if wanted(path, leaf)
    }
    return unflatten_dict(kept)


def _direct(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _columns(x, kernel, strides, padding):
    kh, kw, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (x.shape[1] - kh) // strides + 1, (x.shape[2] - kw) // strides + 1
    rows, columns = (strides * (height - 1) + 1, strides * (width - 1) + 1)
    patches = [x[:, i : i + rows : strides, j : j + columns : strides] for i in range(kh) for j in range(kw)]
    taps = patches[0] if len(patches) == 1 else jnp.concatenate(patches, -1)
    y = taps.reshape(-1, kh * kw * channels) @ kernel.reshape(-1, features)
    return y.reshape(x.shape[0], height, width, features)


@jax.custom_vjp
def _winograd(x, kernel, prepared):
    # Of a kernel that is prepared only the gradient is of interest.
    return _in_bands(x, _prepared_for(x, kernel) if prepared is None else prepared, flipped=False)


def _winograd_forward(x, kernel, prepared):
    return _winograd(x, kernel, prepared), (x, kernel, prepared)


def _winograd_backward(saved, dy):
    x, kernel, prepared = saved
    dx = _in_bands(dy, _prepared_for(dy, kernel) if prepared is None else prepared, flipped=True)
    positions = math.prod(x.shape[:3])
    if GRADIENT_FROM <= positions <= BAND:
        tiles = lax.dot_general(_spread(x), _spread_gradient(dy), (((1,), (1,)), ((0,), (0,))))
        dkernel = (jnp.asarray(_G.T, x.dtype) @ tiles.reshape(24, -1)).reshape(kernel.shape)
    else:
        plain = _columns if positions < GRADIENT_FROM else _direct
        dkernel = jax.vjp(lambda k: plain(x, k, 1, ((1, 1), (1, 1))), kernel)[1](dy)[0]
    return dx, dkernel, None


def _prepared_for(x, kernel):
    """A kernel's transform that is made when ``x`` is there, and anew for each x.

    XLA for CPUs makes what waits for nothing as early as it can, and all that is alike once, whatever
    barriers there are: every kernel's transform would be held from a step's beginning to its end.
    """
    # Of x's value nothing is used: a row that is not finite must not reach the others.
    there = jnp.isfinite(x[0, 0, 0, 0]).astype(kernel.dtype)
    return winograd_kernel(kernel + 0 * there)


# Plain autodiff of the tiling scatters every tile back one tap at a time. This rule makes the input's
# gradient one more convolution over the same prepared kernel, and the kernel's gradient 24 more matrix
# products.
_winograd.defvjp(_winograd_forward, _winograd_backward)


def _in_bands(x, prepared, flipped):
    batch, height, width, channels = x.shape
    if batch * height * width <= BAND:
        return _correlate(_pad_to_tiles(x), prepared, flipped)[:, :height, :width]
    rows = 2 * max(1, BAND // (2 * width))
    bands = -(-height // rows)
    padded = _pad_to_tiles(jnp.pad(x, ((0, 0), (0, bands * rows - height), (0, 0), (0, 0))))

    def one(index):
        start = (index // bands, index % bands * rows, 0, 0)
        band = lax.dynamic_slice(padded, start, (1, rows + 2, *padded.shape[2:]))
        return _correlate(band, prepared, flipped)[0]

    y = lax.map(one, jnp.arange(batch * bands))
    return y.reshape(batch, bands * rows, *y.shape[2:])[:, :height, :width]


def _pad_to_tiles(x):
    """One pixel around the picture, and more below and to the right to fill the last 2x4 tiles."""
    return jnp.pad(x, ((0, 0), (1, 1 + -x.shape[1] % 2), (1, 1 + -x.shape[2] % 4), (0, 0)))


def _correlate(padded, prepared, flipped):
    """Valid correlation with the prepared kernel, or with that kernel turned by 180° and transposed.

    Turning a kernel reverses its polynomial, g(p) -> p^2 g(1/p). The points are closed under p -> 1/p, so the
    turned kernel in this domain is the prepared one reordered (0 <-> infinity, sqrt(1/2) <-> sqrt(2)) and
    rescaled.
    """
    batch, height, width, _ = padded.shape
    h, w = (height - 2) // 2, (width - 2) // 4
    tiles = _spread_padded(padded)
    if flipped:
        scales = (1, -0.5, -0.5, -2, -2, 1)
        tiles = [[tiles[a][b] * s for b, s in zip(_TURN_WIDTH, scales, strict=True)] for a in _TURN_HEIGHT]
    tiles = _stack(tiles)
    product = lax.dot_general(tiles, prepared, (((2,), (2 if flipped else 1,)), ((0,), (0,))))
    product = product.reshape(4, 6, batch, h, w, -1)
    a_order, b_order = (_TURN_HEIGHT, _TURN_WIDTH) if flipped else (range(4), range(6))
    columns = [_gather_2([product[a, b] for a in a_order]) for b in b_order]
    rows = [jnp.stack(_gather_4([column[i] for column in columns]), axis=3) for i in range(2)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * h, 4 * w, -1)


def _spread(x):
    return _stack(_spread_padded(_pad_to_tiles(x)))


def _spread_padded(padded):
    """B^T d B of all 4x6 patches d with steps 2 and 4: a 4x6 list of [b, h/2, w/4, i]."""
    h, w = (padded.shape[1] - 2) // 2, (padded.shape[2] - 2) // 4
    d = [[padded[:, i : i + 2 * h - 1 : 2, j : j + 4 * w - 3 : 4] for j in range(6)] for i in range(4)]
    rows = [_spread_4(row) for row in d]
    return [list(row) for row in zip(*(_spread_2(column) for column in zip(*rows, strict=True)), strict=True)]


def _spread_gradient(dy):
    """A dy A^T of all 2x4 tiles, the transpose of what gathers an output: [24, tiles, o]."""
    height, width = dy.shape[1:3]
    dy = jnp.pad(dy, ((0, 0), (0, height % 2), (0, -width % 4), (0, 0)))
    d = [[dy[:, i::2, j::4] for j in range(4)] for i in range(2)]
    rows = [_ungather_4(row) for row in d]
    return _stack(zip(*(_ungather_2(column) for column in zip(*rows, strict=True)), strict=True))


def _stack(tiles):
    tiles = jnp.stack([tile for row in tiles for tile in row])
    return tiles.reshape(24, -1, tiles.shape[-1])


def _spread_2(d):
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _spread_4(d):
    even_a, odd_a = d[4] - 2 * d[2], _A * (d[3] - 2 * d[1])
    even_b, odd_b = d[4] - 0.5 * d[2], _B * (d[3] - 0.5 * d[1])
    first, last = d[0] - 2.5 * d[2] + d[4], d[1] - 2.5 * d[3] + d[5]
    return first, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, last


def _gather_2(m):
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _gather_4(m):
    even_a, odd_a, even_b, odd_b = m[1] + m[2], _A * (m[1] - m[2]), m[3] + m[4], _B * (m[3] - m[4])
    return m[0] + even_a + even_b, odd_a + odd_b, 0.5 * even_a + 2 * even_b, 0.5 * odd_a + 2 * odd_b + m[5]


def _ungather_2(y):
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _ungather_4(y):
    even_a, odd_a = y[0] + 0.5 * y[2], _A * (y[1] + 0.5 * y[3])
    even_b, odd_b = y[0] + 2 * y[2], _B * (y[1] + 2 * y[3])
    return y[0], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y[3]
