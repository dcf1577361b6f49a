"""Schedules, samplers, guidance and loss weights against torch diffusers, live."""

import inspect
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.training_utils import compute_snr

from attrjax.diffusion import losses, schedule, steps
from attrjax.diffusion.guidance import guide
from attrjax.diffusion.schedule import CLASS_DEFAULTS, SCHEDULER_CLASSES, schedule_from_config
from tests.diffusion_cases import BARE, SD15, SDXL, Case, cases, inputs
from tests.diffusion_runs import our_trajectory, worst_error
from tests.record_diffusion import MOST_EVALUATIONS, torch_scheduler, torch_trajectory

BETAS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 37},
    {"rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"},
]


@pytest.mark.parametrize("name", cases())
def test_trajectory(name):
    case = cases()[name]
    assert worst_error(our_trajectory(case, inputs(MOST_EVALUATIONS)), torch_trajectory(case)) < 1e-4


@pytest.mark.parametrize("steps_count", [20, 30, 50])
@pytest.mark.parametrize("sampler", SCHEDULER_CLASSES)
@pytest.mark.parametrize("config", [SD15, SDXL, BARE], ids=["sd15", "sdxl", "bare"])
def test_timesteps_and_noise_levels_of_usual_runs(config, sampler, steps_count):
    if sampler == "pndm" and config is BARE:
        pytest.raises(ValueError, schedule_from_config, config, sampler)
        return
    reference = torch_scheduler(Case(config, sampler))
    reference.set_timesteps(steps_count)
    timesteps, sigmas = steps.plan(schedule_from_config(config, sampler), steps_count)
    np.testing.assert_allclose(timesteps, reference.timesteps.numpy(), rtol=0, atol=2e-4)
    if sigmas.size:
        np.testing.assert_allclose(sigmas, reference.sigmas.numpy(), rtol=1e-5)


@pytest.mark.parametrize("options", BETAS, ids=str)
def test_alphas_cumprod(options):
    reference = diffusers.DDPMScheduler(**options).alphas_cumprod.numpy()
    ours = schedule_from_config(BARE | options).alphas_cumprod
    assert ours.dtype == np.float32
    # torch's float32 square root is not correctly rounded, and the rescaling takes roots.
    tolerance = 5e-6 if options.get("rescale_betas_zero_snr") else 1e-7
    np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", CLASS_DEFAULTS)
def test_defaults_are_those_of_the_class(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    reference = {key: p.default for key, p in parameters.items() if key != "self"}
    assert CLASS_DEFAULTS[name] == reference


def test_options_of_all_interchangeable_classes_are_known():
    known = schedule._OTHER_CLASSES_OPTIONS.union(*CLASS_DEFAULTS.values())
    for scheduler in KarrasDiffusionSchedulers:
        parameters = inspect.signature(getattr(diffusers, scheduler.name).__init__).parameters
        assert set(parameters) - {"self", "args", "kwargs"} <= known, scheduler.name


@pytest.mark.parametrize("sampler", [None, "ddim", "euler"])
@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": True, "steps_offset": 0},
        SD15,
    ],
    ids=str,
)
def test_repairs_of_the_stable_diffusion_pipeline(config, sampler):
    parts = ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")
    of_file = getattr(diffusers, config["_class_name"]).from_config(config)
    pipeline = diffusers.StableDiffusionPipeline(
        **dict.fromkeys(parts), scheduler=of_file, requires_safety_checker=False
    )
    used = pipeline.scheduler
    if sampler is not None and SCHEDULER_CLASSES[sampler] != config["_class_name"]:
        used = getattr(diffusers, SCHEDULER_CLASSES[sampler]).from_config(used.config)
    ours = schedule_from_config(config, sampler, pipeline="StableDiffusionPipeline")
    assert ours.steps_offset == used.config.steps_offset
    if isinstance(used, diffusers.DDIMScheduler):
        assert (ours.clip_range is not None) == used.config.clip_sample


@pytest.mark.parametrize("strength", [0.04, 0.3, 0.55, 0.8, 1.0])
@pytest.mark.parametrize("count", [7, 25, 50])
def test_start_index(strength, count):
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(count)
    pipeline = SimpleNamespace(scheduler=scheduler)
    _, left = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, count, strength, "cpu")
    if left == 0:
        with pytest.raises(ValueError, match="no step"):
            steps.start_index(strength, count)
    else:
        assert steps.start_index(strength, count) == count - left


def test_forward_process_and_velocity():
    given = inputs(1)
    reference = diffusers.DDPMScheduler.from_config(SD15)
    ours = schedule_from_config(SD15 | {"prediction_type": "v_prediction"}, "ddpm")
    t = np.array([3, 801])
    arguments = (torch.from_numpy(given["clean"]), torch.from_numpy(given["latents"]), torch.from_numpy(t))
    batch = (given["clean"], given["latents"], t)
    noised = jax.vmap(lambda *x: losses.diffuse(ours, *x))(*batch)
    np.testing.assert_allclose(noised, reference.add_noise(*arguments), rtol=1e-5, atol=1e-6)
    velocity = jax.vmap(lambda *x: losses.target(ours, *x))(*batch)
    np.testing.assert_allclose(velocity, reference.get_velocity(*arguments), rtol=1e-5, atol=1e-6)


def test_signal_to_noise():
    t = np.arange(0, 1000, 37)
    reference = compute_snr(diffusers.DDPMScheduler.from_config(SD15), torch.from_numpy(t))
    ours = losses.signal_to_noise(schedule_from_config(SD15, "ddpm"), jnp.asarray(t))
    np.testing.assert_allclose(ours, reference, rtol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance(rescale):
    rng = np.random.default_rng(0)
    both = np.float32(rng.standard_normal((6, 4, 5, 3)))
    without, given = torch.from_numpy(both).chunk(2)
    reference = without + 7.5 * (given - without)
    if rescale:
        reference = rescale_noise_cfg(reference, given, rescale)
    np.testing.assert_allclose(guide(jnp.asarray(both), 7.5, rescale), reference, rtol=1e-5, atol=1e-5)
