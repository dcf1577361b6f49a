"""Reading scheduler configs: defaults, refusals, and what the numbers must satisfy."""

import json

import numpy as np
import pytest

from attrjax.diffusion.samplers import SAMPLERS
from attrjax.diffusion.schedule import SCHEDULER_CLASSES, sampler_for, schedule_from_config
from attrjax.diffusion.steps import add_noise, initial_noise_scale, plan, start_index
from tests.diffusion_cases import BARE, SD15, SDXL


def test_every_sampler_has_a_class_and_a_function():
    assert set(SAMPLERS) == set(SCHEDULER_CLASSES)


@pytest.mark.parametrize("sampler", SCHEDULER_CLASSES)
def test_sampler_for_finds_the_class(sampler):
    config = {"_class_name": SCHEDULER_CLASSES[sampler], "use_karras_sigmas": sampler == "dpmpp_2m_karras"}
    assert sampler_for(config) == sampler


@pytest.mark.parametrize("config", [{"_class_name": "LCMScheduler"}, {}], ids=["other", "none"])
def test_sampler_for_refuses_other_classes_with_the_remedy(config):
    with pytest.raises(ValueError, match=r"PNDMScheduler.*--config.sampler=ddim\|"):
        sampler_for(config)


def test_another_sampler_than_the_files_class_fills_gaps_with_its_own_defaults():
    config = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1}
    assert schedule_from_config(config).timestep_spacing == "linspace"
    ddim = schedule_from_config(config, "ddim")
    assert (ddim.timestep_spacing, ddim.steps_offset, ddim.clip_range) == ("leading", 1, 1.0)
    listed = config | {"timestep_spacing": "trailing", "_use_default_values": ["timestep_spacing"]}
    assert schedule_from_config(listed, "ddim").timestep_spacing == "leading"


def test_a_file_of_an_unknown_class_can_be_used_with_a_chosen_sampler():
    config = SD15 | {"_class_name": "UniPCMultistepScheduler", "solver_p": None, "predict_x0": True}
    assert schedule_from_config(config, "ddim").steps_offset == 1


def test_karras_sampler_switches_karras_noise_levels_on():
    assert schedule_from_config(SD15, "dpmpp_2m_karras").use_karras_sigmas
    assert not schedule_from_config(SD15, "dpmpp_2m").use_karras_sigmas


def test_stable_diffusion_pipelines_repair_old_files():
    old = {"_class_name": "DDIMScheduler"}
    repaired = schedule_from_config(old, pipeline="StableDiffusionPipeline")
    assert (repaired.steps_offset, repaired.clip_range) == (1, None)
    as_it_is = schedule_from_config(old, pipeline="StableDiffusionXLPipeline")
    assert (as_it_is.steps_offset, as_it_is.clip_range) == (0, 1.0)


REFUSED = [
    ("ddim", {"thresholding": True}),
    ("ddim", {"beta_schedule": "sigmoid"}),
    ("ddim", {"prediction_type": "flow_prediction"}),
    ("ddim", {"timestep_spacing": "quadratic"}),
    ("euler", {"use_beta_sigmas": True}),
    ("euler", {"use_exponential_sigmas": True}),
    ("euler", {"interpolation_type": "log_linear"}),
    ("euler", {"timestep_type": "continuous"}),
    ("euler", {"final_sigmas_type": "one"}),
    ("dpmpp_2m", {"use_lu_lambdas": True}),
    ("dpmpp_2m", {"use_flow_sigmas": True}),
    ("dpmpp_2m", {"use_dynamic_shifting": True}),
    ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++"}),
    ("dpmpp_2m", {"solver_order": 3}),
    ("ddpm", {"variance_type": "learned_range"}),
    ("ddpm", {"trained_betas": [0.1, 0.2]}),
    ("pndm", {"skip_prk_steps": False}),
    ("pndm", {"prediction_type": "sample"}),
    ("ddim", {"wobble": 3}),
]


@pytest.mark.parametrize(("sampler", "option"), REFUSED, ids=str)
def test_unsupported_options_are_refused_by_name(sampler, option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"{name}.*(change|choose|set it|remove|must)"):
        schedule_from_config(SD15 | option, sampler)


def test_pndm_without_its_plms_flag_is_refused():
    with pytest.raises(ValueError, match="skip_prk_steps=False.*PLMS"):
        schedule_from_config(BARE, "pndm")


def test_an_option_that_the_class_lacks_is_reported(caplog):
    with caplog.at_level("WARNING"):
        schedule_from_config(SDXL | {"use_karras_sigmas": True}, "euler_ancestral")
    assert "EulerAncestralDiscreteScheduler has no option use_karras_sigmas" in caplog.text


def test_unknown_sampler_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown sampler 'heun'.*dpmpp_2m_karras"):
        schedule_from_config(SD15, "heun")


def test_config_may_come_straight_from_json():
    text = json.dumps(SD15 | {"lambda_min_clipped": -float("inf")})
    assert schedule_from_config(json.loads(text), "dpmpp_2m").lambda_min_clipped == -np.inf


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr(betas):
    plain = schedule_from_config(BARE | {"beta_schedule": betas}).alphas_cumprod
    zero = schedule_from_config(
        BARE | {"beta_schedule": betas, "rescale_betas_zero_snr": True}
    ).alphas_cumprod
    assert zero[-1] == 0
    np.testing.assert_allclose(zero[0], plain[0], rtol=1e-6)
    assert np.all(np.diff(zero) < 0) and np.all(np.diff(plain) < 0)


def test_table_2_of_lin_et_al():
    """The paper's example: 10 of 1000 steps, timesteps counted from 1 there."""
    spaced = {
        spacing: plan(schedule_from_config(BARE | {"timestep_spacing": spacing}), 10).timesteps + 1
        for spacing in ("leading", "linspace", "trailing")
    }
    assert spaced["leading"].tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert spaced["linspace"].tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert spaced["trailing"].tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]


@pytest.mark.parametrize("sampler", SCHEDULER_CLASSES)
def test_trailing_spacing_never_leaves_the_schedule(sampler):
    schedule = schedule_from_config(SD15 | {"timestep_spacing": "trailing"}, sampler)
    extra = 1 if sampler == "pndm" else 0
    for count in (61, 103, 457):
        timesteps = plan(schedule, count).timesteps
        assert len(timesteps) == count + extra
        assert timesteps.min() >= 0 and timesteps.max() <= 999


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras"])
def test_noise_levels_fall_to_zero(sampler):
    sigmas = plan(schedule_from_config(SD15, sampler), 12).sigmas
    assert len(sigmas) == 13 and sigmas[-1] == 0
    assert np.all(np.diff(sigmas) < 0)


def test_karras_noise_levels_are_evenly_spaced_in_their_seventh_root():
    schedule = schedule_from_config(SDXL | {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0})
    roots = plan(schedule, 9).sigmas[:-1] ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (0.1 ** (1 / 7) - 10 ** (1 / 7)) / 8, rtol=1e-6)


def test_initial_scale_of_euler_includes_the_picture_with_leading_spacing_only():
    leading, linspace = (
        schedule_from_config(SDXL | {"timestep_spacing": spacing}) for spacing in ("leading", "linspace")
    )
    sigma = plan(leading, 10).sigmas[0]
    assert initial_noise_scale(leading, 10) == pytest.approx(np.sqrt(sigma**2 + 1))
    assert initial_noise_scale(linspace, 10) == plan(linspace, 10).sigmas[0]
    assert initial_noise_scale(schedule_from_config(SD15), 10) == 1


@pytest.mark.parametrize("count", [0, -3, 1001])
def test_impossible_numbers_of_steps(count):
    with pytest.raises(ValueError, match=f"steps={count} is outside 1..1000"):
        plan(schedule_from_config(BARE), count)


def test_offset_past_the_end_is_refused():
    with pytest.raises(ValueError, match="timestep 1000.*use fewer steps"):
        plan(schedule_from_config(SD15), 1000)


def test_start_index():
    assert start_index(1.0, 50) == 0
    assert start_index(0.75, 50) == 13
    assert start_index(0.5, 7) == 4
    for strength in (0.0, -1.0, 1.1):
        with pytest.raises(ValueError, match="outside"):
            start_index(strength, 50)
    with pytest.raises(ValueError, match="no step"):
        start_index(0.01, 50)


def test_added_noise_has_the_variance_of_its_evaluation():
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
    for sampler in SCHEDULER_CLASSES:
        schedule = schedule_from_config(SD15, sampler)
        signal = float(add_noise(ones, zeros, schedule, steps=10, start=4)[0])
        noise = float(add_noise(zeros, ones, schedule, steps=10, start=4)[0])
        expected = 1 if sampler.startswith("euler") else signal**2 + noise**2
        assert expected == pytest.approx(1, rel=1e-6)
        if sampler.startswith("euler"):
            assert (signal, noise) == (1, pytest.approx(plan(schedule, 10).sigmas[4]))
    with pytest.raises(ValueError, match=r"start=10 is outside 0..9"):
        add_noise(ones, zeros, schedule_from_config(SD15, "ddim"), steps=10, start=10)
