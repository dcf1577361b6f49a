"""What the autoencoder and its helpers promise, beyond parity with diffusers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.models.vae import AutoencoderKL, DiagonalGaussian, scale_latents, tiled_decode, unscale_latents
from tests import cases, full_size, towers

SMALL = "two_blocks"


def test_full_size_has_the_published_number_of_parameters():
    assert sum(math.prod(shape) for shape in full_size.shapes("vae").values()) == 83_653_863


def test_samples_have_the_mean_and_variance_of_the_distribution():
    gaussian = DiagonalGaussian(jnp.full((64, 32, 32, 1), 3.0), jnp.full((64, 32, 32, 1), jnp.log(0.25)))
    draws = gaussian.sample(jax.random.key(0))
    assert abs(draws.mean() - 3.0) < 0.01
    assert abs(draws.var() - 0.25) < 0.01
    np.testing.assert_array_equal(gaussian.mode(), gaussian.mean)
    assert not np.array_equal(draws, gaussian.sample(jax.random.key(1)))


def test_kl_is_the_mean_log_ratio_of_densities():
    gaussian = DiagonalGaussian(jnp.full((1, 1, 1, 1), 0.7), jnp.full((1, 1, 1, 1), -1.2))
    x = 0.7 + np.exp(-0.6) * np.linspace(-12, 12, 200_001)
    p = np.exp(-0.5 * ((x - 0.7) / np.exp(-0.6)) ** 2) / np.exp(-0.6) / np.sqrt(2 * np.pi)
    with np.errstate(divide="ignore"):
        ratio = np.log(p) + 0.5 * x**2 + 0.5 * np.log(2 * np.pi)
    expected = np.sum(p * ratio) * (x[1] - x[0])
    np.testing.assert_allclose(gaussian.kl(), [expected], rtol=1e-5)


def test_log_variance_stays_in_range():
    module, params = towers.module_and_params("vae", SMALL)
    wild = jax.tree.map(lambda x: 1e4 * x, params["quant_conv"])
    pictures = towers.vae_inputs(SMALL)["pictures"]
    logvar = towers.apply(module, params | {"quant_conv": wild}, pictures, method="encode").logvar
    assert (logvar.min(), logvar.max()) == (-30, 20)


@pytest.mark.parametrize("shift", [None, 0.1159])
def test_scaling_has_an_inverse_and_shifts_before_it_scales(shift):
    z = towers.normal(0, 2, 4, 4, 4)
    scaled = scale_latents(z, 0.18215, shift)
    np.testing.assert_allclose(scaled, (z - (shift or 0)) * 0.18215, rtol=1e-6)
    np.testing.assert_allclose(unscale_latents(scaled, 0.18215, shift), z, atol=1e-6)


def test_bfloat16_is_close_and_keeps_float32_parameters_and_results():
    module, params = towers.module_and_params("vae", SMALL)
    low, inputs = module.clone(dtype=jnp.bfloat16), towers.vae_inputs(SMALL)
    initialized = jax.eval_shape(low.init, jax.random.key(0), inputs["pictures"])["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initialized)} == {jnp.dtype("float32")}
    for method, key in (("encode", "pictures"), ("decode", "latents")):
        exact = towers.apply(module, params, inputs[key], method=method)
        rough = towers.apply(low, params, inputs[key], method=method)
        for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
            assert a.dtype == jnp.float32
            assert 1e-5 < cases.relative_error(a, b) < 0.05


def test_remat_changes_no_gradient_and_recomputes():
    pictures = towers.normal(0, 1, 8, 8, 3)
    module = AutoencoderKL(block_out_channels=(8,), layers_per_block=1, norm_num_groups=2)
    params = cases.deterministic_params(module, pictures)

    def gradient(module):
        return jax.jit(jax.grad(lambda p: towers.apply(module, p, pictures, method="encode").kl().mean()))

    plain, remat = gradient(module), gradient(module.clone(remat=True))
    for a, b in zip(jax.tree.leaves(remat(params)), jax.tree.leaves(plain(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    work = [str(jax.make_jaxpr(f)(params)).count("= conv_general_dilated") for f in (plain, remat)]
    assert work[1] > work[0]


def test_wrong_channels_are_refused():
    module, params = towers.module_and_params("vae", SMALL)
    with pytest.raises(ValueError, match="pictures of 3 channels"):
        towers.apply(module, params, jnp.zeros((1, 16, 16, 4)), method="encode")
    with pytest.raises(ValueError, match="latents of 4 channels"):
        towers.apply(module, params, jnp.zeros((1, 4, 16, 16)), method="decode")


def upsample(z):
    """A local, shift-equivariant decoder: every latent pixel becomes a square of eight by eight."""
    return jnp.repeat(jnp.repeat(z, 8, axis=1), 8, axis=2)


@pytest.mark.parametrize("tile, overlap", [(8, 2), (8, 0), (8, 7), (5, 1), (16, 4)])
@pytest.mark.parametrize("height, width", [(20, 13), (8, 31), (3, 20), (9, 9)])
def test_tiles_of_a_local_decoder_give_the_plain_picture(tile, overlap, height, width):
    z = towers.normal(0, 2, height, width, 3)
    shapes = set()

    def decode(part):
        shapes.add(part.shape)
        return upsample(part)

    tiled = tiled_decode(decode, z, tile=tile, overlap=overlap)
    np.testing.assert_allclose(tiled, upsample(z), atol=1e-5)
    assert shapes == {(2, min(tile, height), min(tile, width), 3)}


def test_tiles_differ_from_the_plain_picture_only_as_far_as_a_border_is_wrong_and_weighs():
    """A blur sees zeros beyond a tile: an error one latent pixel deep, where the ramp is low."""

    def blur(z):
        kernel = jnp.ones((3, 3, 1, 1)) / 9
        dimensions = ("NHWC", "HWIO", "NHWC")
        return upsample(jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=dimensions))

    z = jnp.ones((1, 40, 28, 1))
    error = np.abs(tiled_decode(blur, z, tile=16, overlap=4) - blur(z))
    border = 1 - 4 / 9  # what a corner of a tile lacks, the worst case
    assert 0 < error.max() < border * 2 * 1 / 4  # 1 of the 4 latent pixels of the ramp, along two directions


def test_no_seam_shows_where_tiles_differ_in_tone():
    """With tiles of different brightness the picture passes from one to the next over the whole overlap."""

    def toned(z):
        return jnp.broadcast_to(z.mean(axis=(1, 2), keepdims=True), (1, 8 * z.shape[1], 8 * z.shape[2], 1))

    z = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 40)[None, None, :, None], (1, 16, 40, 1))
    row = np.asarray(tiled_decode(toned, z, tile=16, overlap=4))[0, 0, :, 0]
    tones = np.asarray([z[0, 0, start : start + 16, 0].mean() for start in (0, 12, 24)])
    assert row[0] == pytest.approx(tones[0]) and row[-1] == pytest.approx(tones[-1])
    assert np.abs(np.diff(row)).max() < 1.01 * np.diff(tones).max() / (4 * 8)
    assert np.diff(row).min() > -1e-6


def test_one_tile_that_covers_the_picture_is_the_plain_decode():
    module, params = towers.module_and_params("vae", SMALL)
    z = towers.vae_inputs(SMALL)["latents"]
    decode = jax.jit(lambda z: towers.apply(module, params, z, method="decode"))
    np.testing.assert_array_equal(tiled_decode(decode, z, tile=6), decode(z))


def test_tiles_compile_once():
    module = AutoencoderKL(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2)
    params = cases.deterministic_params(module, np.zeros((1, 8, 8, 3), np.float32))
    decode = jax.jit(lambda z: towers.apply(module, params, z, method="decode"))
    picture = tiled_decode(decode, towers.normal(0, 1, 20, 9, 4), tile=8, overlap=2)
    assert picture.shape == (1, 40, 18, 3)
    assert np.isfinite(picture).all()
    assert decode._cache_size() == 1


@pytest.mark.parametrize("overlap", [-1, 8])
def test_impossible_overlap_is_refused(overlap):
    with pytest.raises(ValueError, match=r"\[0, 8\)"):
        tiled_decode(upsample, jnp.zeros((1, 20, 20, 4)), tile=8, overlap=overlap)
