"""What training pairs are made of: material continued, silhouettes, light, textures and backdrops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from attrjax.attributes.silhouettes import SILHOUETTES, draw_silhouette, relief
from attrjax.attributes.sources import PURE, continued, depth, nearest, pure
from attrjax.attributes.textures import CONTRAST, PATTERNS, draw_backdrop, draw_texture
from attrjax.attrworld.looks import COLOURS
from attrjax.attrworld.scenes import BACKDROPS
from tests.pair_cases import SIZE, box_of, references


@pytest.mark.parametrize("which", range(4))
def test_nearest_pixels_and_depths_are_those_of_scipy(which):
    inside = references()[1][which] > PURE
    assert (np.asarray(pure(references()[1][which])) == (references()[1][which] >= PURE)).all()
    grid = np.stack(np.mgrid[:SIZE, :SIZE], -1)
    found, deep = np.asarray(jax.jit(nearest)(inside)), np.asarray(jax.jit(depth)(inside))
    assert inside[found[..., 0], found[..., 1]].all()
    exact = ndimage.distance_transform_edt(~inside)
    distance = np.linalg.norm(found - grid, axis=-1)
    assert (np.abs(distance - exact) < 1e-4).mean() > 0.99 and np.abs(distance - exact).max() < 1
    framed = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    np.testing.assert_allclose(deep, framed, atol=1)
    assert (np.abs(deep - framed) < 1e-4).mean() > 0.99


def test_a_picture_goes_on_as_its_mirror_image():
    inside = np.zeros((40, 40), bool)
    inside[:, 10:20] = True
    picture = np.broadcast_to(np.arange(40.0)[None, :, None], (40, 40, 1)).astype(np.float32)
    filled = np.asarray(continued(picture, inside))[20, :, 0]
    np.testing.assert_array_equal(filled[10:20], np.arange(10, 20))
    np.testing.assert_array_equal(filled[20:29], np.arange(18, 9, -1))
    np.testing.assert_array_equal(filled[30:], 19)  # further than it is wide: the nearest
    np.testing.assert_array_equal(filled[1:10], np.arange(19, 10, -1))


@pytest.fixture(scope="module")
def silhouettes():
    draw = jax.jit(jax.vmap(lambda key: draw_silhouette(key, SIZE, SIZE)))
    return jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(2), 200)))


def test_silhouettes_are_whole_and_in_one_piece(silhouettes):
    masks, kinds = silhouettes
    edges = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], -1)
    assert edges.max() < 0.5 and set(kinds) == set(range(len(SILHOUETTES)))
    for mask, kind in zip(masks, kinds, strict=True):
        name = SILHOUETTES[kind]
        assert 0.04 < mask.mean() < 0.65
        assert ndimage.label(mask > 0.5, np.ones((3, 3)))[1] == 1
        assert ndimage.label(mask < 0.5)[1] == (2 if name == "ring" else 1)
        rows, columns = box_of(mask)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if name in ("ball", "ring"):
            assert abs(height - width) <= 1
        share = mask.sum() / (height * width)  # of its box
        if name == "ball":
            np.testing.assert_allclose(share, np.pi / 4, atol=0.04)
        if name == "star":
            assert share < 0.5


def test_a_relief_is_bright_where_light_comes_from(silhouettes):
    mask = references()[1][3]
    right = np.asarray(relief(mask, jnp.array([0.8, 0.0])))
    above = np.asarray(relief(mask, jnp.array([0.0, -0.8])))
    assert right[32, 50] > right[32, 14] + 0.3 and above[14, 32] > above[50, 32] + 0.3
    np.testing.assert_allclose([right[32, 32], above[32, 32]], 1, atol=0.35)
    np.testing.assert_allclose((right * mask).sum() / mask.sum(), 1, atol=0.05)


def test_textures_are_of_the_colours_that_they_are_said_to_be():
    draw = jax.jit(jax.vmap(lambda key: draw_texture(key, SIZE, SIZE)))
    textures, patterns, colours = map(np.asarray, draw(jax.random.split(jax.random.key(4), 120)))
    palette = np.array(list(COLOURS.values()))
    for texture, pattern, pair in zip(textures, patterns, colours, strict=True):
        away = np.linalg.norm(texture[..., None, :] - palette[pair], axis=-1).reshape(-1, 2)
        shares = [(away[:, 0] < 0.15).mean(), (away[:, 1] < 0.15).mean()]
        if PATTERNS[pattern] == "plain":
            assert shares[0] == 1 and np.ptp(texture, (0, 1)).max() == 0
        else:
            assert min(shares) > 0.12, (PATTERNS[pattern], shares)
            assert sum(shares) > 0.5


def test_backdrops_stand_out():
    draw = jax.jit(jax.vmap(lambda key, before: draw_backdrop(key, SIZE, SIZE, before)))
    before = np.random.default_rng(0).random((60, 3), np.float32)
    pictures, indices = map(np.asarray, draw(jax.random.split(jax.random.key(6), 60), before))
    means = pictures.mean((1, 2))
    assert np.linalg.norm(means - before, axis=1).min() > CONTRAST - 0.1
    named = np.array(list(BACKDROPS.values()))[indices]
    assert np.abs(means - named).max() < 0.05 and len(set(indices)) == len(BACKDROPS)
