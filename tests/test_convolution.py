"""Every form of a convolution computes the same convolution, and is taken where it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.models import convolution
from attrjax.models.convolution import choose_form, conv2d, prepare, winograd_kernel

SAME = ((1, 1), (1, 1))


def _case(shape, features, kernel_size=3):
    keys = jax.random.split(jax.random.key(sum(shape) + features), 2)
    x = jax.random.normal(keys[0], shape)
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, shape[-1], features))
    return x, kernel


def _exact(x, kernel, strides=1, padding=SAME):
    """The definition, in float64."""
    x, kernel = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(kernel)
    height, width = ((n - k) // strides + 1 for n, k in zip(x.shape[1:3], kernel.shape, strict=False))
    y = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            taps = x[:, i : i + strides * height : strides, j : j + strides * width : strides]
            y = y + taps[:, :height, :width] @ kernel[i, j]
    return y


def _exact_gradients(x, kernel, dy):
    """Of sum(dy * y) for a 3x3 kernel with one pixel of padding."""
    height, width = x.shape[1:3]
    padded = np.pad(np.float64(x), ((0, 0), *SAME, (0, 0)))
    dkernel = [
        [np.einsum("bhwi,bhwo->io", padded[:, i : i + height, j : j + width], dy) for j in range(3)]
        for i in range(3)
    ]
    turned = np.float64(kernel)[::-1, ::-1].swapaxes(2, 3)
    return _exact(dy, turned), np.array(dkernel)


def _error(got, want):
    return np.abs(np.float64(got) - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
    "shape", [(2, 16, 24, 32), (1, 17, 30, 48), (3, 21, 19, 32), (1, 1, 400, 32), (1, 9, 45, 320)]
)
@pytest.mark.parametrize("features", [32, 80])
def test_winograd_is_the_convolution(shape, features):
    x, kernel = _case(shape, features)
    form = choose_form(shape, kernel.shape, x.dtype, 1, SAME, False)
    assert form == "winograd"
    assert _error(conv2d(x, kernel, padding=SAME), _exact(x, kernel)) < 2e-6


def test_prepared_kernels_change_nothing():
    x, kernel = _case((2, 16, 16, 32), 64)
    prepared = winograd_kernel(kernel)
    np.testing.assert_allclose(
        conv2d(x, kernel, padding=SAME, prepared=prepared), conv2d(x, kernel, padding=SAME), atol=1e-5
    )
    few = x[:, :4, :8]
    assert choose_form(few.shape, kernel.shape, x.dtype, 1, SAME, True) == "winograd"
    assert choose_form(few.shape, kernel.shape, x.dtype, 1, SAME, False) == "columns"
    assert _error(conv2d(few, kernel, padding=SAME, prepared=prepared), _exact(few, kernel)) < 2e-6


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [(3, 1, SAME), (3, 2, SAME), (3, 2, ((0, 1), (0, 1))), (1, 1, ((0, 0), (0, 0)))],
)
def test_columns_are_the_convolution(size, strides, padding):
    x, kernel = _case((2, 10, 9, 32), 40, size)
    assert choose_form(x.shape, kernel.shape, x.dtype, strides, padding, False) == "columns"
    got = conv2d(x, kernel, strides=strides, padding=padding)
    assert _error(got, _exact(x, kernel, strides, padding)) < 1e-6


@pytest.mark.parametrize("shape", [(1, 32, 64, 4), (1, 64, 64, 32)])
def test_strided_and_thin_convolutions_are_left_to_xla(shape):
    x, kernel = _case(shape, 32)
    strides = 1 if shape[-1] == 4 else 2
    x = jnp.concatenate([x, x])
    assert choose_form(x.shape, kernel.shape, x.dtype, strides, SAME, True) == "direct"
    ignored = jnp.full((24, *kernel.shape[2:]), jnp.nan)
    got = conv2d(x, kernel, strides=strides, padding=SAME, prepared=ignored)
    assert _error(got, _exact(x, kernel, strides)) < 1e-6


def test_large_pictures_of_few_channels_are_left_to_xla():
    def form(side, channels):
        return choose_form((1, side, side, channels), (3, 3, channels, channels), jnp.float32, 1, SAME, True)

    assert [form(64, 64), form(64, 512), form(128, 64), form(128, 512)] == [
        "winograd",
        "winograd",
        "direct",
        "winograd",
    ]


def test_half_precision_and_accelerators_are_left_to_xla(monkeypatch):
    x, kernel = _case((2, 16, 16, 32), 32)
    assert choose_form(x.shape, kernel.shape, jnp.bfloat16, 1, SAME, True) == "direct"
    got = conv2d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), padding=SAME)
    assert got.dtype == jnp.bfloat16
    assert _error(got, _exact(x, kernel)) < 2e-2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_form(x.shape, kernel.shape, jnp.float32, 1, SAME, True) == "direct"


def test_bands_of_a_large_picture_join_without_a_seam(monkeypatch):
    x, kernel = _case((2, 37, 22, 32), 32)
    monkeypatch.setattr(convolution, "BAND", 200)
    assert _error(conv2d(x, kernel, padding=SAME), _exact(x, kernel)) < 2e-6
    dx = jax.vjp(lambda x: conv2d(x, kernel, padding=SAME), x)[1](x)[0]
    assert _error(dx, _exact_gradients(x, kernel, np.float64(x))[0]) < 2e-6


@pytest.mark.parametrize("shape", [(2, 9, 30, 32), (1, 33, 35, 32), (1, 6, 6, 32)])
@pytest.mark.parametrize("large", [False, True])
def test_gradients(shape, large, monkeypatch):
    if large:
        monkeypatch.setattr(convolution, "KEPT_UP_TO", 0)
    x, kernel = _case(shape, 48)
    dy = jax.random.normal(jax.random.key(7), (*shape[:-1], 48))
    want = _exact_gradients(x, kernel, np.float64(dy))
    for prepared in (None, winograd_kernel(kernel)):
        got = jax.vjp(lambda x, k, p=prepared: conv2d(x, k, padding=SAME, prepared=p), x, kernel)[1](dy)
        assert _error(got[0], want[0]) < 2e-6
        assert _error(got[1], want[1]) < 1e-5


def test_transforms_of_large_kernels_are_not_kept_for_the_backward_pass(monkeypatch):
    x = jnp.ones((1, 16, 24, 64))
    kernels = [jnp.ones((3, 3, 64, 64)) for _ in range(6)]

    def workspace(kept_up_to):
        monkeypatch.setattr(convolution, "KEPT_UP_TO", kept_up_to)

        def loss(x, kernels):
            for kernel in kernels:
                x = jnp.tanh(conv2d(x, kernel, padding=SAME))
            return jnp.sum(x)

        compiled = jax.jit(jax.grad(loss)).lower(x, kernels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    transform = 24 * 64 * 64 * 4
    # Of six one is in use at a time, and in the backward pass a second one.
    assert workspace(kernels[0].size) - workspace(0) > 3 * transform


def test_a_row_that_is_not_finite_does_not_reach_the_others(monkeypatch):
    monkeypatch.setattr(convolution, "KEPT_UP_TO", 0)
    x, kernel = _case((2, 16, 24, 32), 32)
    for value in (jnp.nan, jnp.inf):
        got, pull = jax.vjp(lambda x: conv2d(x, kernel, padding=SAME), x.at[0].set(value))
        assert not np.isfinite(got[0]).any() and _error(got[1], _exact(x, kernel)[1]) < 2e-6
        assert np.isfinite(pull(got.at[0].set(value))[0][1]).all()


@pytest.mark.parametrize("large", [False, True])
def test_second_derivatives(large, monkeypatch):
    if large:
        monkeypatch.setattr(convolution, "KEPT_UP_TO", 0)
    x, kernel = _case((1, 20, 20, 32), 32)

    def penalty(kernel, convolve):
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(0.1 * convolve(x, kernel))))(x) ** 2)

    got = jax.grad(penalty)(kernel, lambda x, k: conv2d(x, k, padding=SAME))
    want = jax.grad(penalty)(kernel, lambda x, k: convolution._direct(x, k, 1, SAME))
    assert _error(got, np.float64(want)) < 1e-4


def test_a_frozen_kernel_costs_no_gradient():
    x, kernel = _case((1, 32, 40, 32), 32)

    def flops(argnums):
        gradient = jax.grad(lambda x, k: jnp.sum(conv2d(x, k, padding=SAME) ** 2), argnums)
        return jax.jit(gradient).lower(x, kernel).compile().cost_analysis()["flops"]

    assert flops(0) < 0.8 * flops((0, 1))


@pytest.mark.parametrize("form", ["columns", "winograd"])
def test_a_batch_of_kernels(form):
    x, kernel = _case((2, 4, 8, 32) if form == "columns" else (2, 16, 16, 32), 32)
    kernels, xs = jnp.stack([kernel, 2 * kernel + 1]), jnp.stack([x, x**2])
    for got_x, axes in ((x, (None, 0)), (xs, (0, 0))):
        got = jax.vmap(lambda x, k: conv2d(x, k, padding=SAME), axes)(got_x, kernels)
        for i in range(2):
            one = got_x if axes[0] is None else got_x[i]
            assert choose_form(one.shape, kernel.shape, x.dtype, 1, SAME, False) == form
            assert _error(got[i], _exact(one, kernels[i])) < 2e-6

    def loss(k, x):
        return jnp.sum(conv2d(x, k, padding=SAME) ** 2)

    gradients = jax.vmap(jax.grad(loss), (0, None))(kernels, x)
    np.testing.assert_allclose(gradients[1], jax.grad(loss)(kernels[1], x), rtol=1e-4, atol=1e-2)


def test_prepare_keeps_the_kernels_that_can_use_it():
    kernel = jnp.ones((3, 3, 32, 64))
    params = {
        "conv_in": {"kernel": jnp.ones((3, 3, 4, 32)), "bias": jnp.ones(32)},
        "down_blocks_0": {
            "resnets_0": {
                "conv1": {"kernel": kernel, "bias": jnp.ones(64)},
                "norm1": {"scale": jnp.ones(32)},
            },
            "downsamplers_0": {"conv": {"kernel": kernel}},
            "attentions_0": {"proj_in": {"kernel": jnp.ones((1, 1, 32, 32))}},
        },
    }
    got = prepare(params)
    assert jax.tree.map(jnp.shape, got) == {
        "down_blocks_0": {"resnets_0": {"conv1": {"kernel": (24, 32, 64)}}}
    }
    np.testing.assert_array_equal(
        got["down_blocks_0"]["resnets_0"]["conv1"]["kernel"], winograd_kernel(kernel)
    )
