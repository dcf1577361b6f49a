"""Losses and guidance: values by hand, and what masks, weights and ranges must and must not touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.diffusion import losses
from attrjax.diffusion.guidance import classifier_free, guide
from attrjax.diffusion.schedule import schedule_from_config
from tests.diffusion_cases import BARE

# alphas_cumprod 3/4, 1/2, 1/4: SNR 3, 1, 1/3.
THREE = BARE | {"num_train_timesteps": 3, "trained_betas": [1 / 4, 1 / 3, 1 / 2]}
SHAPE = (2, 3, 4)


def schedule_for(prediction="epsilon", **options):
    return schedule_from_config(THREE | {"prediction_type": prediction} | options)


def random(seed):
    return normal(seed, SHAPE)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_forward_process_by_hand():
    x = losses.diffuse(schedule_for(), jnp.full(SHAPE, 2.0), jnp.full(SHAPE, -1.0), jnp.asarray(2))
    np.testing.assert_allclose(x, 2 * 0.5 - np.sqrt(0.75), rtol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("epsilon", -1.0), ("sample", 2.0), ("v_prediction", -0.5 - 2 * np.sqrt(0.75))],
)
def test_targets_by_hand(prediction, expected):
    target = losses.target(
        schedule_for(prediction), jnp.full(SHAPE, 2.0), jnp.full(SHAPE, -1.0), jnp.asarray(2)
    )
    np.testing.assert_allclose(target, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("epsilon", [2 / 3, 1, 1]), ("v_prediction", [2 / 4, 1 / 2, 1 / 4]), ("sample", [2, 1, 1 / 3])],
)
def test_min_snr_weights_by_hand(prediction, expected):
    weights = losses.min_snr_weight(schedule_for(prediction), jnp.arange(3), gamma=2.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_min_snr_weights_where_there_is_no_signal():
    config = BARE | {"rescale_betas_zero_snr": True}
    last = jnp.asarray(999)
    assert losses.min_snr_weight(schedule_from_config(config), last, 5.0) == 1
    v = schedule_from_config(config | {"prediction_type": "v_prediction"})
    assert losses.min_snr_weight(v, last, 5.0) == 0


def test_min_snr_never_weighs_a_clean_prediction_by_more_than_gamma():
    schedule = schedule_from_config(BARE)
    t = jnp.arange(1000)
    weight_of_x0 = losses.min_snr_weight(schedule, t, 5.0) * losses.signal_to_noise(schedule, t)
    assert float(weight_of_x0.max()) == pytest.approx(5, rel=1e-5)
    assert float(losses.signal_to_noise(schedule, t).max()) > 1000


def test_loss_by_hand():
    zeros, t = jnp.zeros(SHAPE), jnp.asarray(0)
    noise = jnp.full(SHAPE, 3.0)
    assert losses.denoising_loss(schedule_for(), zeros, zeros, noise, t) == 9
    weighted = losses.denoising_loss(schedule_for(), zeros, zeros, noise, t, snr_gamma=2.0)
    assert float(weighted) == pytest.approx(9 * 2 / 3, rel=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_right_prediction_has_no_loss(prediction):
    schedule, t = schedule_for(prediction), jnp.asarray(1)
    clean, noise = random(0), random(1)
    output = losses.target(schedule, clean, noise, t)
    assert losses.denoising_loss(schedule, output, clean, noise, t, snr_gamma=5.0) == 0


def test_a_perfect_picture_weighs_the_same_in_every_parametrisation():
    """With min-SNR weights the epsilon, velocity and sample losses are one loss on the clean latents."""
    clean, noise, wrong, t = random(0), random(1), random(2), jnp.asarray(1)
    signal, spread = np.sqrt(0.5), np.sqrt(0.5)
    x = losses.diffuse(schedule_for(), clean, noise, t)
    eps = (x - signal * wrong) / spread
    outputs = {"epsilon": eps, "v_prediction": signal * eps - spread * wrong, "sample": wrong}
    found = [
        float(losses.denoising_loss(schedule_for(p), output, clean, noise, t, snr_gamma=0.7))
        for p, output in outputs.items()
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_mask_by_hand():
    error = jnp.stack([jnp.full((2, 3), 1.0), jnp.full((2, 3), 3.0)], -1).at[0, 0].set(10.0)
    mask = jnp.zeros((2, 3)).at[0, 0].set(1.0).at[1, 2].set(0.5)
    assert float(losses.masked_mean_square(error, mask)) == pytest.approx((100 + 0.5 * 5) / 1.5)


def test_mask_of_ones_is_no_mask():
    error = random(0)
    np.testing.assert_allclose(
        losses.masked_mean_square(error, jnp.ones(SHAPE[:2])), losses.masked_mean_square(error), rtol=1e-6
    )


def test_small_objects_count_as_much_as_large_ones():
    error = jnp.ones(SHAPE)
    for mask in (jnp.zeros(SHAPE[:2]).at[0, 0].set(1), jnp.ones(SHAPE[:2]), 0.3 * jnp.ones(SHAPE[:2])):
        assert float(losses.masked_mean_square(error, mask)) == pytest.approx(1)


def test_no_gradient_comes_from_outside_the_mask():
    mask = jnp.zeros(SHAPE[:2]).at[1, 1].set(1.0)
    gradient = jax.grad(
        lambda p: losses.denoising_loss(schedule_for(), p, random(0), random(1), jnp.asarray(1), mask=mask)
    )(random(2))
    assert np.all(np.asarray(gradient)[np.asarray(mask) == 0] == 0)
    assert np.all(np.asarray(gradient)[1, 1] != 0)


def test_an_empty_mask_gives_zero_loss_and_gradient():
    value, gradient = jax.value_and_grad(losses.masked_mean_square)(random(0), jnp.zeros(SHAPE[:2]))
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


def test_loss_is_computed_in_float32():
    prediction = random(0).astype(jnp.bfloat16)
    loss = losses.denoising_loss(schedule_for(), prediction, random(1), random(2), jnp.asarray(0))
    assert loss.dtype == jnp.float32
    exact = losses.denoising_loss(
        schedule_for(), prediction.astype(jnp.float32), random(1), random(2), jnp.asarray(0)
    )
    assert loss == exact


def test_timesteps_fill_their_range_and_nothing_else():
    keys = jax.random.split(jax.random.key(0), 2000)
    schedule = schedule_from_config(BARE)
    drawn = jax.vmap(lambda k: losses.draw_timestep(k, schedule, 200, 230))(keys)
    assert set(np.unique(drawn)) == set(range(200, 230))
    everywhere = np.asarray(jax.vmap(lambda k: losses.draw_timestep(k, schedule))(keys))
    assert everywhere.min() >= 0 and everywhere.max() <= 999
    assert np.mean(everywhere) == pytest.approx(499.5, abs=30)


def test_a_power_of_two_draws_half_of_the_timesteps_from_the_lowest_quarter():
    keys = jax.random.split(jax.random.key(0), 4000)
    schedule = schedule_from_config(BARE)
    drawn = np.asarray(jax.vmap(lambda k: losses.draw_timestep(k, schedule, 200, 600, 2.0))(keys))
    assert drawn.min() == 200 and 590 < drawn.max() < 600
    assert np.mean(drawn < 300) == pytest.approx(0.5, abs=0.03)
    small = jax.vmap(lambda k: losses.draw_timestep(k, schedule, 0, 1000, 1e-7))(keys)
    assert np.asarray(small).max() == 999  # and not 1000, where u ** power is rounded to 1
    with pytest.raises(ValueError, match="timestep_power=0"):
        losses.draw_timestep(jax.random.key(0), schedule, 0, 1000, 0)


@pytest.mark.parametrize("bounds", [(5, 5), (-1, 5), (0, 1001), (7, 3)])
def test_impossible_timestep_ranges(bounds):
    with pytest.raises(ValueError, match="timestep range"):
        losses.draw_timestep(jax.random.key(0), schedule_from_config(BARE), *bounds)


def test_offset_noise_is_one_number_for_each_channel():
    keys = jax.random.split(jax.random.key(5), 4000)
    plain, offset = (jax.vmap(lambda k, o=o: losses.draw_noise(k, (4, 4, 4), o))(keys) for o in (0.0, 0.5))
    difference = np.asarray(offset - plain)
    np.testing.assert_allclose(difference - difference[:, :1, :1], 0, atol=1e-5)
    assert len(np.unique(np.round(difference[0, 0, 0], 5))) == 4
    assert np.var(difference) == pytest.approx(0.5**2, rel=0.05)
    assert float(jnp.var(offset)) == pytest.approx(1 + 0.5**2, rel=0.03)


def test_one_example_with_no_key_used_twice():
    schedule = schedule_from_config(BARE)

    @jax.jit
    def losses_of(keys, clean):
        def one(key, clean):
            key_t, key_noise = jax.random.split(key)
            t = losses.draw_timestep(key_t, schedule, 0, 500)
            noise = losses.draw_noise(key_noise, clean.shape, 0.1)
            x = losses.diffuse(schedule, clean, noise, t)
            return losses.denoising_loss(schedule, 0.5 * x, clean, noise, t, snr_gamma=5.0)

        return jax.vmap(one)(keys, clean)

    with jax.debug_key_reuse(True):
        found = losses_of(jax.random.split(jax.random.key(0), 3), jnp.stack([random(0)] * 3))
    assert found.shape == (3,)
    assert len(np.unique(found)) == 3


def test_guidance_by_hand():
    both = jnp.concatenate([jnp.full((1, 2, 2, 1), 1.0), jnp.full((1, 2, 2, 1), 3.0)])
    np.testing.assert_allclose(guide(both, 1.0), 3)
    np.testing.assert_allclose(guide(both, 0.0), 1)
    np.testing.assert_allclose(guide(both, 7.5), 1 + 7.5 * 2)


def test_guidance_of_one_is_the_condition_to_the_last_bit():
    """Or a negative prompt would act where guidance does not."""
    both = normal(0, (4, 6, 6, 3)) * jnp.asarray([1e3, 1e3, 1.0, 1.0])[:, None, None, None]
    np.testing.assert_array_equal(jax.jit(guide)(both, jnp.float32(1)), both[2:])
    assert not np.array_equal(both[:2] + (both[2:] - both[:2]), both[2:])  # what it would be up to rounding


def test_full_rescale_restores_the_standard_deviation_of_the_condition():
    both = normal(0, (4, 6, 6, 3))
    rescaled = guide(both, 7.5, 1.0)
    np.testing.assert_allclose(rescaled.std((1, 2, 3)), both[2:].std((1, 2, 3)), rtol=1e-4)
    half = guide(both, 7.5, 0.5)
    np.testing.assert_allclose(half, (guide(both, 7.5) + rescaled) / 2, rtol=1e-4, atol=1e-5)


def test_guidance_can_differ_between_examples_and_be_traced():
    both = normal(0, (4, 3, 3, 2))
    scale = jnp.asarray([2.0, 9.0])
    each = [guide(both[jnp.asarray([n, n + 2])], float(scale[n]), 0.3)[0] for n in range(2)]
    np.testing.assert_allclose(jax.jit(guide)(both, scale, 0.3), jnp.stack(each), rtol=1e-5)


def test_classifier_free_doubles_the_batch_and_keeps_order():
    shift = jnp.asarray([0.0, 0.0, 1.0, 2.0])[:, None, None, None]

    def both(x, t, i):
        assert x.shape == (4, 2, 2, 3)
        return (x + shift + t + i).astype(jnp.bfloat16)

    x = jnp.zeros((2, 2, 2, 3))
    out = classifier_free(both, 3.0)(x, jnp.float32(4), jnp.int32(1))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[:, 0, 0, 0], [5 + 3 * 1, 5 + 3 * 2])


def test_guidance_acts_in_its_interval_and_elsewhere_the_condition_alone_counts():
    def both(x, t, i):
        return jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 1, 1, 1))

    denoise = jax.jit(classifier_free(both, 3.0, interval=(200, 800)))
    found = [float(denoise(jnp.zeros((1, 1, 1, 1)), t, 0)[0, 0, 0, 0]) for t in (199, 200, 799, 800)]
    assert found == [1, 3, 3, 1]


def test_the_losses_of_a_batch_are_drawn_and_masked_row_by_row():
    schedule, clean = schedule_from_config(BARE), jnp.zeros((6, 4, 4, 2))
    seen = {}

    def network(noisy, t):
        seen["t"], seen["noisy"] = np.asarray(t), np.asarray(noisy)
        return jnp.zeros_like(noisy)

    mask = jnp.ones((6, 4, 4)).at[0].set(0).at[1, 2:].set(0)
    found = losses.denoising_losses(
        schedule, network, clean, jax.random.key(0), timesteps=(200, 900), mask=mask
    )
    assert ((seen["t"] >= 200) & (seen["t"] < 900)).all() and len(set(seen["t"])) > 3
    # Of no signal what is seen is noise alone, scaled: it is the target, and the prediction is 0.
    noise = seen["noisy"] / np.sqrt(1 - np.asarray(schedule.alphas_cumprod)[seen["t"]])[:, None, None, None]
    assert found[0] == 0
    np.testing.assert_allclose(found[1], (noise[1, :2] ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(found[2:], (noise[2:] ** 2).mean((1, 2, 3)), rtol=1e-4)
    assert np.abs(noise[2] - noise[3]).min() > 0  # each has noise of its own
