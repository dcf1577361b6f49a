"""What samplers guarantee whatever the model: exactness, one scan, types, randomness, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from attrjax.diffusion.course import begin, course_of, follow, padded
from attrjax.diffusion.samplers import METHODS, SAMPLERS, ddim, ddim_invert, is_stochastic
from attrjax.diffusion.schedule import schedule_from_config
from attrjax.diffusion.steps import add_noise, alpha_cumprod_at, plan
from tests.diffusion_cases import BATCH_SHAPE, SD15, inputs
from tests.diffusion_runs import toy

GIVEN = inputs(9)
STOCHASTIC = {"ddpm": {}, "euler_ancestral": {}, "ddim": {"eta": 0.8}}


def schedule_for(sampler, **options):
    return schedule_from_config(SD15 | options, sampler)


def primitives(jaxpr):
    """All primitives of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


def oracle(schedule, clean):
    """The perfect model for a single known picture: its noise is whatever is left of x."""

    def denoise(x, t, i):
        del i  # not needed
        alpha = jnp.interp(t, jnp.arange(1000.0), jnp.asarray(schedule.alphas_cumprod))
        return (x - jnp.sqrt(alpha) * clean) / jnp.sqrt(1 - alpha)

    return denoise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_scan(sampler):
    schedule = schedule_for(sampler)

    def run(latents, key):
        return SAMPLERS[sampler](toy, latents, schedule, steps=5, key=key)

    found = list(primitives(jax.make_jaxpr(run)(GIVEN["latents"], jax.random.key(0)).jaxpr))
    assert found.count("scan") == 1
    assert "while" not in found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_jit_gives_the_same_latents(sampler):
    schedule = schedule_for(sampler)

    def run(latents, noise):
        return SAMPLERS[sampler](toy, latents, schedule, steps=4, noise=noise)

    arguments = (GIVEN["latents"], GIVEN["noise"][:4])
    np.testing.assert_allclose(jax.jit(run)(*arguments), run(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_program_makes_runs_of_any_length_and_beginning_whole_or_in_parts(sampler):
    schedule, method = schedule_for(sampler), METHODS[sampler]
    stochastic = is_stochastic(sampler, 0.0)

    @jax.jit
    def run(state, course, window, noise):
        return follow(method.step(toy, schedule.clip_range), state, course, window=window, noise=noise)[0]

    noise = np.zeros((64, *BATCH_SHAPE), np.float32)
    noise[:9] = GIVEN["noise"][:9]
    for steps, start, parts in ((5, 0, 1), (8, 0, 2), (8, 3, 1)):
        clean = GIVEN["clean"] if start else None
        options = {"steps": steps, "start": start}
        evaluations = len(plan(schedule, steps).timesteps)
        expected = SAMPLERS[sampler](
            toy, GIVEN["latents"], schedule, clean=clean, noise=noise[:evaluations], **options
        )
        course = padded(course_of(schedule, from_clean=start > 0, **options))
        state = method.state(begin(course, GIVEN["latents"], clean))
        for rows in np.array_split(np.arange(evaluations - start), parts):
            window = np.int32([rows[0], rows[-1] + 1])
            state = run(state, course, window, noise if stochastic else None)
        np.testing.assert_allclose(state[0], expected, rtol=1e-5, atol=1e-5)
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    "sampler", ["ddim", "ddpm", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras"]
)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_perfect_model_ends_at_its_picture(sampler, steps):
    schedule = schedule_for(sampler, set_alpha_to_one=True, timestep_spacing="trailing")
    clean = jnp.asarray(GIVEN["clean"])
    out = SAMPLERS[sampler](
        oracle(schedule, clean), GIVEN["latents"], schedule, steps=steps, noise=GIVEN["noise"][:steps]
    )
    # Karras noise levels fall between training timesteps, where this model is a little off.
    np.testing.assert_allclose(out, clean, atol=0.05 if sampler == "dpmpp_2m_karras" else 2e-3)


def test_one_ddim_step_by_hand():
    schedule = schedule_for("ddim", set_alpha_to_one=True)
    x, alpha = GIVEN["latents"], float(schedule.alphas_cumprod[1])
    output = np.asarray(toy(x, np.float32(1), 0))
    expected = (x - np.sqrt(1 - alpha) * output) / np.sqrt(alpha)
    np.testing.assert_allclose(ddim(toy, x, schedule, steps=1), expected, rtol=1e-5, atol=1e-6)


def test_v_and_sample_predictions_say_the_same_as_epsilon():
    """One model in three parametrisations runs through the same latents."""

    def denoise_as(prediction):
        def denoise(x, t, i):
            alpha = jnp.asarray(schedule_for("ddim").alphas_cumprod)[t.astype(int)]
            signal, noise = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
            eps = toy(x, t, i)
            x0 = (x - noise * eps) / signal
            return {"epsilon": eps, "v_prediction": signal * eps - noise * x0, "sample": x0}[prediction]

        return denoise

    # Whole timesteps in all samplers, so that alphas_cumprod can be looked up.
    leading = {"timestep_spacing": "leading"}
    for sampler in ("ddim", "euler", "dpmpp_2m"):
        runs = [
            SAMPLERS[sampler](
                denoise_as(p), GIVEN["latents"], schedule_for(sampler, prediction_type=p, **leading), steps=6
            )
            for p in ("epsilon", "v_prediction", "sample")
        ]
        np.testing.assert_allclose(runs[1], runs[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(runs[2], runs[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_stay_float32_with_a_bfloat16_model(sampler):
    seen = []

    def denoise(x, t, i):
        seen.append((x.dtype, t.dtype, i.dtype))
        return toy(x, t, i).astype(jnp.bfloat16)

    latents = GIVEN["latents"].astype(jnp.bfloat16)
    out, path = SAMPLERS[sampler](
        denoise, latents, schedule_for(sampler), steps=3, noise=GIVEN["noise"][:3], trajectory=True
    )
    assert out.dtype == path.dtype == jnp.float32
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("float32"), jnp.dtype("int32"))}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectory_ends_with_the_result_and_start_continues_it(sampler):
    schedule = schedule_for(sampler)
    options = {"steps": 6, "noise": GIVEN["noise"][:6]}
    out, path = SAMPLERS[sampler](toy, GIVEN["latents"], schedule, trajectory=True, **options)
    assert path.shape == (len(plan(schedule, 6).timesteps), *BATCH_SHAPE)
    np.testing.assert_array_equal(out, path[-1])
    if sampler in ("ddim", "ddpm", "euler", "euler_ancestral"):  # the others remember earlier outputs
        rest = SAMPLERS[sampler](toy, path[2], schedule, start=3, **options)
        np.testing.assert_allclose(rest, out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clean_latents_are_noised_for_the_start(sampler):
    schedule = schedule_for(sampler)
    options = {"steps": 6, "start": 2, "noise": GIVEN["noise"][:6]}
    noised = add_noise(GIVEN["clean"], GIVEN["latents"], schedule, steps=6, start=2)
    expected = SAMPLERS[sampler](toy, noised, schedule, **options)
    ours = SAMPLERS[sampler](toy, GIVEN["latents"], schedule, clean=GIVEN["clean"], **options)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC.items(), ids=STOCHASTIC)
def test_noise_comes_from_the_key_folded_with_the_evaluation(sampler, options):
    schedule, key = schedule_for(sampler), jax.random.key(11)
    drawn = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), BATCH_SHAPE) for i in range(5)])
    by_key, by_noise = (
        SAMPLERS[sampler](toy, GIVEN["latents"], schedule, steps=5, **options, **source)
        for source in ({"key": key}, {"noise": drawn})
    )
    np.testing.assert_allclose(by_key, by_noise, rtol=1e-5, atol=1e-6)
    other = SAMPLERS[sampler](toy, GIVEN["latents"], schedule, steps=5, key=jax.random.key(12), **options)
    assert float(jnp.abs(other - by_key).max()) > 0.01


@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC.items(), ids=STOCHASTIC)
def test_no_key_is_used_twice(sampler, options):
    schedule = schedule_for(sampler)

    @jax.jit
    def run(key):
        start, rest = jax.random.split(key)
        latents = jax.random.normal(start, BATCH_SHAPE)
        return SAMPLERS[sampler](toy, latents, schedule, steps=4, key=rest, **options)

    with jax.debug_key_reuse(True):
        assert np.all(np.isfinite(run(jax.random.key(0))))


@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC.items(), ids=STOCHASTIC)
def test_stochastic_samplers_need_a_source_of_noise(sampler, options):
    with pytest.raises(ValueError, match="pass key="):
        SAMPLERS[sampler](toy, GIVEN["latents"], schedule_for(sampler), steps=4, **options)
    with pytest.raises(ValueError, match=r"noise has shape \(3, .*needs \(4,"):
        SAMPLERS[sampler](
            toy, GIVEN["latents"], schedule_for(sampler), steps=4, noise=GIVEN["noise"][:3], **options
        )


def test_model_is_told_timestep_and_index_of_each_evaluation():
    schedule = schedule_for("pndm")
    told = []

    def denoise(x, t, i):
        jax.debug.callback(lambda t, i: told.append((float(t), int(i))), t, i)
        return x

    SAMPLERS["pndm"](denoise, GIVEN["latents"], schedule, steps=3).block_until_ready()
    jax.effects_barrier()
    assert told == [(667.0, 0), (334.0, 1), (334.0, 2), (1.0, 3)]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_inversion_and_sampling_are_inverse(spacing, prediction):
    schedule = schedule_for("ddim", timestep_spacing=spacing, prediction_type=prediction, steps_offset=0)

    def gentle(x, t, i):
        return 0.2 * toy(x, t, i)

    clean = GIVEN["clean"]
    errors = []
    for steps in (50, 200):
        inverted = ddim_invert(gentle, clean, schedule, steps=steps)
        assert float(jnp.abs(inverted - clean).max()) > 0.1
        errors.append(float(jnp.abs(ddim(gentle, inverted, schedule, steps=steps) - clean).max()))
    # Both are first-order methods: four times the steps, a quarter of the error.
    assert errors[1] < 0.05
    assert errors[1] < 0.35 * errors[0]


def test_inversion_refuses_linspace_and_a_sample_model_without_noise():
    with pytest.raises(ValueError, match="leading or trailing"):
        ddim_invert(toy, GIVEN["clean"], schedule_for("ddim", timestep_spacing="linspace"), steps=5)
    schedule = schedule_for("ddim", prediction_type="sample", set_alpha_to_one=True)
    with pytest.raises(ValueError, match="not finite"):
        ddim_invert(toy, GIVEN["clean"], schedule, steps=5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_epsilon_model_cannot_start_without_signal(sampler):
    schedule = schedule_for(sampler, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert alpha_cumprod_at(schedule, plan(schedule, 5).timesteps)[0] == 0
    with pytest.raises(ValueError, match="epsilon where no signal is left.*timestep_spacing"):
        SAMPLERS[sampler](toy, GIVEN["latents"], schedule, steps=5, key=jax.random.key(0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_schedule_read_for_another_sampler_is_refused(sampler):
    other = schedule_for("euler" if sampler != "euler" else "ddim")
    with pytest.raises(ValueError, match="read for .*schedule_from_config"):
        SAMPLERS[sampler](toy, GIVEN["latents"], other, steps=4)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="eta=1.5"):
        ddim(toy, GIVEN["latents"], schedule_for("ddim"), steps=4, eta=1.5)
    with pytest.raises(ValueError, match=r"start=4 is outside 0..3"):
        ddim(toy, GIVEN["latents"], schedule_for("ddim"), steps=4, start=4)


def test_clipping_bounds_the_predicted_picture():
    schedule = schedule_for("ddim", clip_sample=True, clip_sample_range=0.5, set_alpha_to_one=True)
    out = ddim(toy, 5 * GIVEN["latents"], schedule, steps=3)
    assert float(jnp.abs(out).max()) <= 0.5
