"""Where a sampling run goes: its timesteps, noise levels and start, and what a prediction says of x.

All of it is float64 numpy that depends on the schedule and the (static) number of steps, never on latents.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attrjax.diffusion.schedule import Schedule

# A terminal SNR of exactly zero is an infinite sigma; diffusers puts the last alphas_cumprod here instead.
_SMALLEST_ALPHA_CUMPROD = np.float32(2**-24)


class Plan(NamedTuple):
    """The model evaluations of one sampling run, in order.

    Attributes:
        timesteps: [n] float64, what the network is told at each evaluation. n is the number of steps, but one
            more for PNDM, which evaluates its second timestep twice.
        sigmas: [n + 1] float64, noise standard deviation over signal before each evaluation and after the
            last; empty for the samplers that work on `alphas_cumprod` (DDIM, DDPM, PNDM).
    """

    timesteps: np.ndarray
    sigmas: np.ndarray


def plan(schedule: Schedule, steps: int) -> Plan:
    """Timesteps and noise levels of a run of `steps` steps, as the class behind `schedule.sampler` sets them.

    One difference: for some numbers of steps (61, 103, ...) diffusers' trailing spacing appends, by a
    rounding error, an extra evaluation at timestep -1. Here there are never more than `steps`. (Fewer only
    where `lambda_min_clipped` cuts trailing spacing short.)

    Raises:
        ValueError: steps outside 1..T, or a steps_offset that leads past the last training timestep.
    """
    train_steps = schedule.num_train_timesteps
    if not 1 <= steps <= train_steps:
        raise ValueError(
            f"steps={steps} is outside 1..{train_steps}, the schedule's number of training timesteps"
        )
    if schedule.sampler.startswith("dpmpp"):
        return _dpm_plan(schedule, steps)
    timesteps = _spaced(schedule, steps, train_steps)
    if schedule.sampler.startswith("euler"):
        return _euler_plan(schedule, timesteps)
    timesteps = np.round(timesteps)
    if timesteps[0] >= train_steps:
        raise ValueError(
            f"{steps} steps with steps_offset={schedule.steps_offset} lead to timestep {timesteps[0]:.0f}, "
            f"past the last one of the schedule ({train_steps - 1}); use fewer steps"
        )
    if schedule.sampler == "pndm" and steps > 1:
        timesteps = np.concatenate([timesteps[:2], timesteps[1:]])
    return Plan(timesteps, np.empty(0))


def _spaced(schedule: Schedule, steps: int, end: int) -> np.ndarray:
    """[steps] descending. Lin et al. 2023, table 2."""
    train_steps = schedule.num_train_timesteps
    if schedule.timestep_spacing == "linspace":
        return np.linspace(0, end - 1, steps)[::-1]
    if schedule.timestep_spacing == "leading":
        return (np.arange(steps) * (end // steps))[::-1] + float(schedule.steps_offset)
    return np.round(end - np.arange(steps) * (train_steps / steps)) - 1


def _train_sigmas(schedule: Schedule) -> np.ndarray:
    """[T] float32, increasing with the timestep."""
    alphas_cumprod = schedule.alphas_cumprod
    if schedule.zero_terminal_snr:
        alphas_cumprod = np.append(alphas_cumprod[:-1], _SMALLEST_ALPHA_CUMPROD)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _euler_plan(schedule: Schedule, timesteps: np.ndarray) -> Plan:
    train_sigmas = _train_sigmas(schedule)
    # Euler does not round: with linspace spacing it evaluates between training timesteps.
    timesteps = timesteps.astype(np.float32)
    sigmas = np.interp(timesteps, np.arange(len(train_sigmas)), train_sigmas)
    if schedule.use_karras_sigmas:
        sigmas = _karras_sigmas(schedule, sigmas[-1], sigmas[0], len(timesteps))
        timesteps = _timesteps_of(sigmas, train_sigmas)
    return Plan(timesteps.astype(np.float64), np.append(sigmas, _last_sigma(schedule, train_sigmas)))


def _dpm_plan(schedule: Schedule, steps: int) -> Plan:
    train_sigmas = _train_sigmas(schedule)
    # lambda = log(alpha / sigma) falls with the timestep; everything past `end` lies below the threshold.
    end = int(np.sum(-np.log(train_sigmas) >= schedule.lambda_min_clipped))
    if schedule.use_karras_sigmas:
        sigmas = _karras_sigmas(schedule, train_sigmas[0], train_sigmas[-1], steps)
        timesteps = _timesteps_of(sigmas, train_sigmas)
        timesteps = np.round(timesteps) if schedule.round_karras_timesteps else np.floor(timesteps)
    else:
        if schedule.timestep_spacing == "trailing":
            timesteps = _spaced(schedule, steps, end)
            timesteps = timesteps[timesteps >= 0]
        else:
            # One more point than steps, and the last one, where nothing is left to do, is dropped.
            timesteps = np.round(_spaced(schedule, steps + 1, end)[:-1])
        sigmas = np.interp(timesteps, np.arange(len(train_sigmas)), train_sigmas)
    return Plan(timesteps, np.append(sigmas, _last_sigma(schedule, train_sigmas)))


def _last_sigma(schedule: Schedule, train_sigmas: np.ndarray) -> float:
    return 0.0 if schedule.final_sigmas_type == "zero" else float(train_sigmas[0])


def _karras_sigmas(schedule: Schedule, lowest: float, highest: float, steps: int) -> np.ndarray:
    """[steps] descending noise levels of Karras et al. 2022, eq. 5, rho = 7."""
    rho = 7.0
    low = float(lowest if schedule.sigma_min is None else schedule.sigma_min) ** (1 / rho)
    high = float(highest if schedule.sigma_max is None else schedule.sigma_max) ** (1 / rho)
    return (high + np.linspace(0, 1, steps) * (low - high)) ** rho


def _timesteps_of(sigmas: np.ndarray, train_sigmas: np.ndarray) -> np.ndarray:
    """Inverts timestep -> sigma, linear in log sigma between training timesteps."""
    log_train = np.log(train_sigmas)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_train, log_sigmas, side="right") - 1, 0, len(log_train) - 2)
    weight = np.clip((log_train[low] - log_sigmas) / (log_train[low] - log_train[low + 1]), 0, 1)
    return low + weight


def alpha_cumprod_at(schedule: Schedule, timesteps: np.ndarray) -> np.ndarray:
    """`alphas_cumprod` at whole timesteps [n]; below zero, `final_alpha_cumprod`."""
    index = np.maximum(timesteps, 0).astype(np.int64)
    return np.where(
        timesteps >= 0, schedule.alphas_cumprod[index].astype(np.float64), schedule.final_alpha_cumprod
    )


def clean_and_noise(
    prediction_type: str, signal: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a prediction m says of x = signal * x0 + noise * eps, as x0 = a*x + b*m and eps = c*x + d*m.

    Args:
        prediction_type: "epsilon", "v_prediction" (Salimans & Ho 2022) or "sample".
        signal: scale of x0.
        noise: scale of eps, in the same shape; signal^2 + noise^2 = 1.

    Returns:
        a, b, c, d in that shape; not finite where the prediction cannot tell, as epsilon cannot without
        signal.
    """
    zero, one = np.zeros_like(signal), np.ones_like(signal)
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction_type == "epsilon":
            return one / signal, -noise / signal, zero, one
        if prediction_type == "sample":
            return zero, one, one / noise, -signal / noise
    return signal, -noise, noise, signal


def start_index(strength: float, steps: int) -> int:
    """The first step of an image-to-image run: the last `strength` share of the steps is done.

    Args:
        strength: in (0, 1]; 1 redraws everything, values near 0 keep the picture.
        steps: how many steps a full run has.

    Raises:
        ValueError: strength outside (0, 1], or so small that no step is left.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} is outside (0, 1]")
    count = min(int(steps * strength), steps)
    if count < 1:
        raise ValueError(
            f"strength={strength} of {steps} steps leaves no step to do; raise strength or steps"
        )
    return steps - count


def start_scales(schedule: Schedule, steps: int, start: int) -> tuple[float, float]:
    """Factors (of clean latents, of noise) in the latents that evaluation `start` of a run expects."""
    timesteps, sigmas = plan(schedule, steps)
    if not 0 <= start < len(timesteps):
        raise ValueError(
            f"start={start} is outside 0..{len(timesteps) - 1}, the evaluations of {steps} steps"
        )
    if not sigmas.size:
        alpha = alpha_cumprod_at(schedule, timesteps)[start]
        return float(np.sqrt(alpha)), float(np.sqrt(1 - alpha))
    sigma = sigmas[start]
    if schedule.sampler.startswith("euler"):
        return 1.0, float(sigma)
    return float(1 / np.sqrt(1 + sigma**2)), float(sigma / np.sqrt(1 + sigma**2))


def add_noise(
    clean: Float[Array, "..."], noise: Float[Array, "..."], schedule: Schedule, *, steps: int, start: int
) -> Float[Array, "..."]:
    """Latents that the sampler in `schedule.sampler` can take up at evaluation `start` of `steps` (float32).

    Euler's latents are clean + sigma * noise, those of all others sqrt(a) * clean + sqrt(1 - a) * noise.
    """
    signal, sigma = start_scales(schedule, steps, start)
    return signal * jnp.asarray(clean, jnp.float32) + sigma * jnp.asarray(noise, jnp.float32)


def initial_noise_scale(schedule: Schedule, steps: int) -> float:
    """The factor from N(0, 1) latents to those that a run begins with (diffusers' `init_noise_sigma`)."""
    if not schedule.sampler.startswith("euler"):
        return 1.0
    sigma = plan(schedule, steps).sigmas.max()
    return float(np.sqrt(sigma**2 + 1) if schedule.timestep_spacing == "leading" else sigma)
