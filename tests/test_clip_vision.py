"""What the vision towers and their preprocessing promise, beyond parity with transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from attrjax.models.clip_vision import PIXEL_MEAN, PIXEL_STD, patch_states, preprocess
from tests import cases, full_size, towers


@pytest.mark.parametrize("name, count", [("b32", 87_849_216), ("l14", 303_966_208), ("h14", 632_076_800)])
def test_full_size_has_the_published_number_of_parameters(name, count):
    assert sum(math.prod(shape) for shape in full_size.shapes("vision", name).values()) == count


def test_patch_states_leave_the_class_token_out_and_count_layers_as_asked():
    module, params = towers.module_and_params("vision", "l14")
    pixels = towers.vision_inputs("l14")["pixels"]
    out = towers.apply(module, params, pixels)
    assert patch_states(out).shape == (2, 16, 24)
    np.testing.assert_array_equal(patch_states(out), patch_states(out, 2))
    np.testing.assert_array_equal(patch_states(out, -1), out.last_hidden_state[:, 1:])
    changed = pixels.copy()
    changed[:, 8:16, 16:24] += 1.0  # row 1, column 2 of the grid of 4 x 4
    embeddings = patch_states(towers.apply(module, params, changed), 0)
    moved = np.abs(embeddings - patch_states(out, 0)).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(moved), [1 * 4 + 2])


def test_a_tower_without_projection_has_no_image_embeds():
    module, params = towers.module_and_params("vision", "b32")
    pixels = towers.vision_inputs("b32")["pixels"]
    bare = module.clone(projection_dim=None)
    out = towers.apply(bare, {"vision_model": params["vision_model"]}, pixels)
    assert out.image_embeds is None
    np.testing.assert_array_equal(out.pooled, towers.apply(module, params, pixels).pooled)


def test_bfloat16_is_close_and_keeps_float32_parameters():
    module, params = towers.module_and_params("vision", "h14")
    low, pixels = module.clone(dtype=jnp.bfloat16), towers.vision_inputs("h14")["pixels"]
    initialized = jax.eval_shape(low.init, jax.random.key(0), pixels)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initialized)} == {jnp.dtype("float32")}
    exact, rough = towers.apply(module, params, pixels), towers.apply(low, params, pixels)
    for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.bfloat16
        assert 1e-5 < cases.relative_error(a, b) < 0.05


def test_pictures_of_another_size_are_refused():
    module, params = towers.module_and_params("vision", "b32")
    with pytest.raises(ValueError, match=r"\(32, 32, 3\)"):
        towers.apply(module, params, jnp.zeros((1, 48, 32, 3)))


@pytest.mark.parametrize("shape", [(96, 150), (301, 224), (64, 64), (40, 33)])
def test_preprocess_resizes_as_pil_does_within_rounding(shape):
    """PIL rounds to 8 bits after each direction: on noise, the worst case, less than two levels of 255."""
    picture = np.random.RandomState(12).randint(0, 256, (*shape, 3)).astype(np.uint8)
    height, width = (int(64 * side / min(shape)) for side in shape)
    resized = np.asarray(
        Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC), np.float32
    )
    top, left = (height - 64) // 2, (width - 64) // 2
    expected = resized[top : top + 64, left : left + 64]
    ours = preprocess(picture[None] / np.float32(255), 64)[0] * np.array(PIXEL_STD) + np.array(PIXEL_MEAN)
    levels = np.abs(np.asarray(ours) * 255 - expected)
    assert levels.max() < 2, levels.max()
    assert levels.mean() < 0.5


def test_preprocess_stays_in_range_and_passes_gradients():
    edges = jnp.asarray(np.random.RandomState(3).randint(0, 2, (1, 50, 70, 3)).astype(np.float32))
    pixels = preprocess(edges, 32) * np.array(PIXEL_STD) + np.array(PIXEL_MEAN)
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    gradient = jax.grad(lambda x: preprocess(x, 32).sum())(jnp.full((1, 50, 70, 3), 0.5))
    assert np.isfinite(gradient).all() and np.abs(gradient[:, :, 20:50]).min() > 0
