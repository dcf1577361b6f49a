"""Filters and fusion: what they cannot pass on, and what strength does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.attributes.filters import FILTERS, AppearanceFilter, ShapeFilter, patch_weight
from attrjax.attributes.fusion import CrossFusion, PlaceholderFusion, placed, places_of

N, C, D = 16, 12, 20


@pytest.fixture(scope="module")
def picture():
    generator = np.random.default_rng(0)
    states = generator.standard_normal((2, N, C)).astype(np.float32)
    weight = generator.uniform(0.2, 1, (2, N)).astype(np.float32)
    weight[:, :4] = 0  # backdrop
    return states, weight


def made(name, states, weight, **changes):
    filter_ = FILTERS[name](D, **changes)
    params = filter_.init(jax.random.key(1), states, weight)
    # Not at the initial values, where biases are zero and would hide what passes through them.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    return lambda *arguments: np.asarray(filter_.apply(params, *arguments))


@pytest.mark.parametrize("name", ["shape", "appearance"])
def test_tokens_have_the_width_of_the_text_encoder(picture, name):
    assert made(name, *picture, num_tokens=3)(*picture).shape == (2, 3, D)


def test_shape_does_not_change_when_channels_are_scaled_and_shifted(picture):
    states, weight = picture
    generator = np.random.default_rng(3)
    gain, offset = generator.uniform(0.05, 20, (2, 1, C)), generator.uniform(-5, 5, (2, 1, C))
    apply = made("shape", *picture)
    before, after = apply(states, weight), apply((gain * states + offset).astype(np.float32), weight)
    np.testing.assert_allclose(before, after, atol=2e-5)
    # The other filter passes these statistics on, so this test can fail.
    other = made("appearance", *picture)
    assert np.abs(other(states, weight) - other(gain * states + offset, weight)).max() > 0.1


def test_appearance_does_not_change_when_patches_change_places(picture):
    states, weight = picture
    order = np.random.default_rng(4).permutation(N)
    apply = made("appearance", *picture)
    np.testing.assert_allclose(apply(states, weight), apply(states[:, order], weight[:, order]), atol=2e-5)
    other = made("shape", *picture)
    assert np.abs(other(states, weight) - other(states[:, order], weight[:, order])).max() > 0.1


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_backdrop_does_not_reach_the_tokens(picture, name):
    states, weight = picture
    changed = np.where(weight[..., None] > 0, states, 100.0).astype(np.float32)
    apply = made(name, *picture)
    np.testing.assert_allclose(apply(states, weight), apply(changed, weight), atol=1e-5)
    assert np.abs(apply(states, weight) - apply(2 * states[:, ::-1], weight)).max() > 1e-3


def test_a_constant_channel_and_an_empty_mask_give_finite_tokens_and_gradients(picture):
    states, weight = picture
    flat = np.ones_like(states)
    for filter_ in (ShapeFilter(D), AppearanceFilter(D)):
        params = filter_.init(jax.random.key(0), states, weight)

        def total(params, states, weight, filter_=filter_):
            return jnp.sum(filter_.apply(params, states, weight) ** 2)

        for arguments in ((flat, weight), (states, np.zeros_like(weight))):
            values = jax.tree.leaves(jax.value_and_grad(total, (0, 1))(params, *arguments))
            assert all(np.isfinite(value).all() for value in values)


def test_patches_weigh_what_is_foreground_in_them():
    mask = np.zeros((1, 64, 64), np.float32)
    mask[0, :32, :16] = 1
    weight = np.asarray(patch_weight(mask, 4)).reshape(4, 4)
    np.testing.assert_allclose(weight[:, 0], [1, 0.9, 0.1, 0], atol=0.15)
    assert weight.sum() == pytest.approx(2, abs=0.05)


def test_a_placeholder_is_its_word_at_strength_zero_and_differs_by_the_token_at_one():
    generator = np.random.default_rng(5)
    embeds, tokens = generator.standard_normal((2, 6, D)), generator.standard_normal((2, 2, D))
    word = generator.standard_normal(D)
    places = np.array([[-1, 0, 1, -1, -1, -1], [-1, -1, -1, 0, 1, -1]])
    embeds, tokens, word = (np.asarray(x, np.float32) for x in (embeds, tokens, word))
    fusion = PlaceholderFusion(scale=0.5)
    params = fusion.init(jax.random.key(0), tokens, word)
    none, whole = (
        np.asarray(placed(embeds, places, fusion.apply(params, tokens, word, s))) for s in (0.0, 1.0)
    )
    np.testing.assert_allclose(none[0, 1], word, atol=1e-6)
    np.testing.assert_allclose(whole[0, 1:3], word + 0.5 * tokens[0], atol=1e-6)
    np.testing.assert_allclose(whole[1, 3:5], word + 0.5 * tokens[1], atol=1e-6)
    np.testing.assert_array_equal(whole[places < 0], embeds[places < 0])


def test_a_new_cross_fusion_changes_nothing_and_its_strength_scales_what_it_adds():
    generator = np.random.default_rng(6)
    context, tokens = (generator.standard_normal((2, n, D)).astype(np.float32) for n in (5, 3))
    fusion = CrossFusion(num_heads=4)
    params = fusion.init(jax.random.key(0), context, tokens)
    np.testing.assert_array_equal(fusion.apply(params, context, tokens), context)
    params["params"]["gate"] = jnp.float32(0.7)
    half, whole = (np.asarray(fusion.apply(params, context, tokens, s)) - context for s in (0.5, 1.0))
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(2 * half, whole, atol=1e-5)


def test_a_placeholders_tokens_are_found_in_order():
    ids = np.array([[7, 1, 9, 11, 10, 2, 8], [7, 9, 11, 10, 8, 8, 8]])
    expected = [[-1, -1, 0, 1, 2, -1, -1], [-1, 0, 1, 2, -1, -1, -1]]
    np.testing.assert_array_equal(places_of(ids, [9, 11, 10]), expected)
