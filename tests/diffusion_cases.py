"""Sampling runs that are compared with torch diffusers: their configs, their inputs, and a toy denoiser.

Imports neither jax nor torch, so that the recording script, the live tests and the recorded tests share it.
"""

from typing import Any, NamedTuple

import numpy as np

BATCH_SHAPE = (2, 3, 2, 2)  # [B, h, w, c] here; the toy denoiser treats all axes alike but for the second

# As Stable Diffusion 1.5 ships it.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
# As Stable Diffusion XL ships it.
SDXL = SD15 | {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
BARE = {"_class_name": "DDPMScheduler"}


class Case(NamedTuple):
    """One run: a scheduler_config.json, the sampler's short name, and what is passed to it."""

    config: dict[str, Any]
    sampler: str
    steps: int = 6
    start: int = 0
    clean: bool = False
    eta: float = 0.0


def toy_denoiser(tanh, sin, roll):
    """A smooth, nonlinear model that mixes neighbours, in whichever library the three functions come from."""

    def denoise(x, t):
        return tanh(0.6 * x + 0.3 * roll(x, 1, 1) + sin(t / 150.0)) - 0.2 * x

    return denoise


def inputs(evaluations: int) -> dict[str, np.ndarray]:
    """Latents, clean latents and the noise of each evaluation, float32."""
    rng = np.random.default_rng(7)
    latents, clean = rng.standard_normal((2, *BATCH_SHAPE))
    noise = rng.standard_normal((evaluations, *BATCH_SHAPE))
    return {"latents": np.float32(latents), "clean": np.float32(clean), "noise": np.float32(noise)}


def cases() -> dict[str, Case]:
    """All runs by name."""
    found: dict[str, Case] = {}
    spacings = ("leading", "linspace", "trailing")
    predictions = ("epsilon", "v_prediction", "sample")
    samplers = ("ddim", "ddpm", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "pndm")
    zero_snr = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    for sampler in samplers:
        for prediction in predictions:
            if prediction == "sample" and sampler in ("euler_ancestral", "pndm"):
                continue  # not in diffusers
            for spacing in spacings:
                config = SD15 | {"timestep_spacing": spacing, "prediction_type": prediction}
                # 7 does not divide 1000; where it does, the three spacings are closer to each other.
                found[f"{sampler}-{spacing}-{prediction}"] = Case(config, sampler, 7)
        found[f"{sampler}-sd15"] = Case(SD15, sampler)
        found[f"{sampler}-sdxl"] = Case(SDXL, sampler)
        if sampler != "pndm":
            found[f"{sampler}-bare"] = Case(BARE, sampler)
            found[f"{sampler}-zero-snr"] = Case(SD15 | zero_snr, sampler)
        found[f"{sampler}-cosine"] = Case(SDXL | {"beta_schedule": "squaredcos_cap_v2"}, sampler)
        found[f"{sampler}-one-step"] = Case(SD15, sampler, 1)
        found[f"{sampler}-two-steps"] = Case(SD15, sampler, 2)
        for start in (0, 1, 2, 5):
            found[f"{sampler}-from-{start}"] = Case(SD15, sampler, start=start, clean=True)

    trained = [float(beta) for beta in np.linspace(0.01, 0.2, 30)]
    found |= {
        "ddim-eta-half": Case(SD15, "ddim", eta=0.5),
        "ddim-eta-one": Case(SD15 | {"set_alpha_to_one": True}, "ddim", eta=1.0),
        "ddim-clip": Case(SD15 | {"clip_sample": True, "clip_sample_range": 0.7}, "ddim", eta=0.3),
        "ddim-trained-betas": Case(SD15 | {"trained_betas": trained, "num_train_timesteps": 30}, "ddim"),
        "ddim-zero-snr-eta": Case(SD15 | zero_snr, "ddim", eta=0.9),
        "ddpm-clip": Case(SD15 | {"clip_sample": True, "clip_sample_range": 0.7}, "ddpm"),
        "ddpm-fixed-large": Case(SD15 | {"variance_type": "fixed_large"}, "ddpm"),
        "ddpm-fixed-small-log": Case(SD15 | {"variance_type": "fixed_small_log"}, "ddpm"),
        "pndm-to-one": Case(SD15 | {"set_alpha_to_one": True}, "pndm", 12),
        "euler-sigma-min": Case(SDXL | {"final_sigmas_type": "sigma_min"}, "euler"),
        "euler-karras": Case(SDXL | {"use_karras_sigmas": True}, "euler"),
        "euler-karras-linspace": Case(SD15 | {"use_karras_sigmas": True}, "euler"),
        "euler-karras-ends": Case(
            SDXL | {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9}, "euler"
        ),
        "dpmpp_2m-carried-ends": Case(SDXL | {"sigma_min": 0.1, "sigma_max": 9.0}, "dpmpp_2m_karras"),
        "dpmpp_2m-long": Case(SD15, "dpmpp_2m", 17),
        "dpmpp_2m-long-sigma-min": Case(SD15 | {"final_sigmas_type": "sigma_min"}, "dpmpp_2m", 17),
        "dpmpp_2m-sigma-min": Case(SD15 | {"final_sigmas_type": "sigma_min"}, "dpmpp_2m"),
        "dpmpp_2m-not-lower": Case(
            SD15 | {"final_sigmas_type": "sigma_min", "lower_order_final": False}, "dpmpp_2m"
        ),
        "dpmpp_2m-euler-last": Case(
            SD15 | {"final_sigmas_type": "sigma_min", "euler_at_final": True}, "dpmpp_2m", 17
        ),
        "dpmpp_2m-heun": Case(SD15 | {"solver_type": "heun"}, "dpmpp_2m"),
        "dpmpp_2m-order-1": Case(SD15 | {"solver_order": 1}, "dpmpp_2m"),
        "dpmpp_2m-lambda-min": Case(
            SD15 | {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, "dpmpp_2m"
        ),
        "dpmpp_2m-lambda-min-trailing": Case(
            SDXL
            | {
                "beta_schedule": "squaredcos_cap_v2",
                "lambda_min_clipped": -2,
                "timestep_spacing": "trailing",
            },
            "dpmpp_2m",
        ),
    }
    for spacing in ("leading", "trailing"):
        for prediction in predictions:
            config = SD15 | {"timestep_spacing": spacing, "prediction_type": prediction}
            found[f"ddim_invert-{spacing}-{prediction}"] = Case(config, "ddim_invert", 7)
    found["ddim_invert-to-one-clip"] = Case(
        SD15 | {"set_alpha_to_one": True, "clip_sample": True, "steps_offset": 0}, "ddim_invert"
    )
    return found
