"""Noise schedules as plain values, read from a diffusers `scheduler_config.json`.

A config file names a scheduler class and may leave options out; what an absent option means depends on the
class. The sampler that is asked for therefore decides how a file is read: its class's defaults fill the gaps
of the file, whatever class wrote it. An option that would change the picture and is not implemented is an
error, never ignored.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

MAX_TIMESTEP = 1000  # above the highest timestep of Stable Diffusion's schedules

# The short names that `samplers.SAMPLERS` uses, and the diffusers class whose behaviour each one has.
SCHEDULER_CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
}

_SHARED_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_CLIPPING_DEFAULTS = {
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_SIGMA_DEFAULTS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "final_sigmas_type": "zero",
}

# Every option of each class with the value that an absent key stands for.
CLASS_DEFAULTS = {
    "DDIMScheduler": _SHARED_DEFAULTS
    | _CLIPPING_DEFAULTS
    | {"timestep_spacing": "leading", "rescale_betas_zero_snr": False, "set_alpha_to_one": True},
    "DDPMScheduler": _SHARED_DEFAULTS
    | _CLIPPING_DEFAULTS
    | {"timestep_spacing": "leading", "rescale_betas_zero_snr": False, "variance_type": "fixed_small"},
    "PNDMScheduler": _SHARED_DEFAULTS
    | {"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
    "EulerDiscreteScheduler": _SHARED_DEFAULTS
    | _SIGMA_DEFAULTS
    | {
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": False,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "sigma_min": None,
        "sigma_max": None,
    },
    "EulerAncestralDiscreteScheduler": _SHARED_DEFAULTS
    | {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
    "DPMSolverMultistepScheduler": _SHARED_DEFAULTS
    | _SIGMA_DEFAULTS
    | {
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": False,
        "solver_order": 2,
        "solver_type": "midpoint",
        "algorithm_type": "dpmsolver++",
        "lower_order_final": True,
        "euler_at_final": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
}

# Options with a closed list of values. Options that are not here take any number (or list of numbers).
_SUPPORTED = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "thresholding": (False,),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero", "sigma_min"),
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    "solver_order": (1, 2),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", None),
    "skip_prk_steps": (True,),
}
_REMEDY = {
    "skip_prk_steps": "only the PLMS form is implemented: set it to true, as Stable Diffusion 1.x does",
    "solver_order": "set it to 2, or choose another --config.sampler",
}

# Options that diffusers drops in silence when they carry over to a class that lacks them.
_WARNED = {
    "rescale_betas_zero_snr",
    "thresholding",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
}

# The pipelines of diffusers that repair steps_offset and clip_sample upon loading.
_REPAIRING_PIPELINES = {
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
}

# Options of diffusers schedulers that have no sampler here. Files of theirs may be used with another sampler.
_OTHER_CLASSES_OPTIONS = {
    "disable_corrector",
    "invert_sigmas",
    "original_inference_steps",
    "predict_x0",
    "rho",
    "shift_terminal",
    "sigma_data",
    "sigma_schedule",
    "solver_p",
    "stochastic_sampling",
    "timestep_scaling",
}


class Schedule(NamedTuple):
    """What a sampler and a loss need to know of a noise schedule. Build it with `schedule_from_config`.

    Attributes:
        sampler: the short name (a key of `SCHEDULER_CLASSES`) for which the config was read.
        alphas_cumprod: [T] float32 in [0, 1], decreasing: the share of signal variance at each training
            timestep.
        prediction_type: what the network's output is: "epsilon", "v_prediction" or "sample".
        timestep_spacing: "leading", "linspace" or "trailing" (Lin et al. 2023, table 2).
        steps_offset: added to the timesteps of leading spacing.
        final_alpha_cumprod: the signal variance beyond timestep 0 (DDIM, PNDM).
        zero_terminal_snr: whether the last training timestep holds noise only.
        clip_range: predicted clean latents are clipped to [-clip_range, clip_range]; None for no clipping.
        use_karras_sigmas: noise levels as in Karras et al. 2022, eq. 5 (Euler, DPM-Solver++).
        sigma_min, sigma_max: ends of the Karras noise levels; None for those of the schedule.
        final_sigmas_type: "zero", or "sigma_min" to stop at the lowest training noise level.
        round_karras_timesteps: whether DPM-Solver++ rounds the timesteps of Karras noise levels.
        lambda_min_clipped: DPM-Solver++ skips timesteps with a log-SNR/2 below this.
        solver_order, solver_type, lower_order_final, euler_at_final: the variant of DPM-Solver++.
        variance_type: DDPM's posterior variance.
    """

    sampler: str
    alphas_cumprod: np.ndarray
    prediction_type: str
    timestep_spacing: str
    steps_offset: int
    final_alpha_cumprod: float
    zero_terminal_snr: bool
    clip_range: float | None
    use_karras_sigmas: bool
    sigma_min: float | None
    sigma_max: float | None
    final_sigmas_type: str
    round_karras_timesteps: bool
    lambda_min_clipped: float
    solver_order: int
    solver_type: str
    lower_order_final: bool
    euler_at_final: bool
    variance_type: str | None

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels that the network was trained on."""
        return len(self.alphas_cumprod)


def sampler_for(config: Mapping[str, Any]) -> str:
    """The short name of the sampler that a `scheduler_config.json` asks for.

    Raises:
        ValueError: the file names no class, or one that has no sampler here.
    """
    name = config.get("_class_name")
    if name == "DPMSolverMultistepScheduler" and config.get("use_karras_sigmas"):
        return "dpmpp_2m_karras"
    for sampler, class_name in SCHEDULER_CLASSES.items():
        if class_name == name:
            return sampler
    raise ValueError(
        f"scheduler_config.json names the scheduler {name!r}, which has no sampler here (known: "
        f"{', '.join(sorted(set(SCHEDULER_CLASSES.values())))}); choose one with --config.sampler="
        f"{'|'.join(SCHEDULER_CLASSES)}"
    )


def schedule_from_config(
    config: Mapping[str, Any], sampler: str | None = None, *, pipeline: str | None = None
) -> Schedule:
    """Reads a `scheduler_config.json` as the scheduler class behind `sampler` would.

    Equal to diffusers' `TheClass.from_config(config)`: options in the file carry over to the class where it
    has them, absent ones take the class's default.

    Args:
        config: the file's content.
        sampler: a key of `SCHEDULER_CLASSES`; None for the one that belongs to the file's own class.
            "dpmpp_2m_karras" switches `use_karras_sigmas` on, whatever the file says.
        pipeline: `_class_name` of `model_index.json`, if known. diffusers' pipelines for Stable Diffusion 1
            and 2 force `steps_offset=1` and `clip_sample=False` upon loading; with their name given, so does
            this function.

    Raises:
        ValueError: an unknown sampler, an option that is unknown, or one with a value that is not
            implemented.
    """
    own_sampler = sampler_for(config) if sampler is None else sampler
    if own_sampler not in SCHEDULER_CLASSES:
        raise ValueError(f"unknown sampler {own_sampler!r}; choose one of {', '.join(SCHEDULER_CLASSES)}")
    class_name = SCHEDULER_CLASSES[own_sampler]
    given = _explicit_options(config, class_name, pipeline)
    defaults = CLASS_DEFAULTS[class_name]
    options = {key: given.get(key, default) for key, default in defaults.items()}
    if own_sampler == "dpmpp_2m_karras":
        options["use_karras_sigmas"] = True
    _refuse_unsupported(options, class_name)
    for key in sorted(_WARNED & set(given) - set(defaults)):
        if given[key]:
            logging.warning(
                "%s has no option %s: %r has no effect (as in diffusers)", class_name, key, given[key]
            )

    zero_snr = bool(options.get("rescale_betas_zero_snr", False))
    alphas_cumprod = _alphas_cumprod(options, zero_snr)
    to_one = options.get("set_alpha_to_one", True)
    return Schedule(
        sampler=own_sampler,
        alphas_cumprod=alphas_cumprod,
        prediction_type=options["prediction_type"],
        timestep_spacing=options["timestep_spacing"],
        steps_offset=int(options["steps_offset"]),
        final_alpha_cumprod=1.0 if to_one else float(alphas_cumprod[0]),
        zero_terminal_snr=zero_snr,
        clip_range=float(options["clip_sample_range"]) if options.get("clip_sample") else None,
        use_karras_sigmas=bool(options.get("use_karras_sigmas")),
        sigma_min=given.get("sigma_min"),
        sigma_max=given.get("sigma_max"),
        final_sigmas_type=options.get("final_sigmas_type", "zero"),
        round_karras_timesteps=options["beta_schedule"] != "squaredcos_cap_v2",
        lambda_min_clipped=float(options.get("lambda_min_clipped", -math.inf)),
        solver_order=options.get("solver_order", 2),
        solver_type="heun" if options.get("solver_type") == "heun" else "midpoint",
        lower_order_final=bool(options.get("lower_order_final", True)),
        euler_at_final=bool(options.get("euler_at_final", False)),
        variance_type=options.get("variance_type"),
    )


def _explicit_options(config: Mapping[str, Any], class_name: str, pipeline: str | None) -> dict[str, Any]:
    """The options that the file itself sets, after the repairs that the pipeline class makes upon loading."""
    implied = config.get("_use_default_values", ())
    given = {key: value for key, value in config.items() if key[0] != "_" and key not in implied}
    known = _OTHER_CLASSES_OPTIONS.union(*CLASS_DEFAULTS.values())
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"scheduler_config.json has unknown options: {', '.join(unknown)}; "
            "remove them if they do not matter"
        )
    if pipeline not in _REPAIRING_PIPELINES:
        return given
    same_class = config.get("_class_name", class_name) == class_name
    if "steps_offset" in given or same_class:
        given["steps_offset"] = 1
    if "clip_sample" in given or same_class:
        given["clip_sample"] = False
    return given


def _refuse_unsupported(options: Mapping[str, Any], class_name: str) -> None:
    for key, allowed in _SUPPORTED.items():
        if key == "beta_schedule" and options["trained_betas"] is not None:
            continue
        if key in options and options[key] not in allowed:
            supported = ", ".join(repr(value) for value in allowed if value is not None)
            remedy = _REMEDY.get(key, "change it in scheduler_config.json or choose another --config.sampler")
            raise ValueError(
                f"{class_name}: the option {key}={options[key]!r} is not supported (supported: {supported}); "
                f"{remedy}"
            )
    if class_name == "PNDMScheduler" and options["prediction_type"] == "sample":
        raise ValueError(
            "PNDMScheduler: the option prediction_type='sample' is not supported; "
            "choose another --config.sampler"
        )


def _alphas_cumprod(options: Mapping[str, Any], zero_snr: bool) -> np.ndarray:
    betas = _betas(options)
    if zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    return _cumprod(np.float32(1) - betas)


def _betas(options: Mapping[str, Any]) -> np.ndarray:
    """[T] float32. Rounded at the same places as torch does, so that the two agree to the last bit."""
    if options["trained_betas"] is not None:
        betas = np.asarray(options["trained_betas"], np.float32)
        if betas.shape != (options["num_train_timesteps"],):
            raise ValueError(
                f"trained_betas has shape {betas.shape} but num_train_timesteps is "
                f"{options['num_train_timesteps']}; scheduler_config.json must give a beta for each timestep"
            )
        return betas
    start, end, count = options["beta_start"], options["beta_end"], options["num_train_timesteps"]
    if options["beta_schedule"] == "linear":
        return _linspace(start, end, count)
    if options["beta_schedule"] == "scaled_linear":
        return _linspace(start**0.5, end**0.5, count) ** 2

    # Nichol & Dhariwal 2021, eq. 17, with their cap on beta.
    edges = np.arange(count + 1) / count
    alpha_bar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas [T] that leave no signal at the last timestep (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return np.float32(1) - alphas


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """float32 linspace that counts from both ends to the middle with a float32 step."""
    start32, end32 = np.float32(start), np.float32(end)
    step = np.float64((end32 - start32) / np.float32(max(count - 1, 1)))
    i = np.arange(count)
    up, down = np.float64(start32) + step * i, np.float64(end32) - step * (count - 1 - i)
    return np.where(i < count // 2, up, down).astype(np.float32)


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    """float32 cumulative product with a float64 accumulator."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)
