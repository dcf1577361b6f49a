"""What samplers multiply with at each evaluation, in float64 numpy: [n, ...] arrays by name.

Each function of ``COEFFICIENTS`` has the arguments (schedule, steps, start, eta) and the conventions of
``samplers``; all but DDIM's leave ``eta`` aside.
"""

from collections.abc import Callable

import numpy as np

from attrjax.diffusion.schedule import Schedule
from attrjax.diffusion.steps import alpha_cumprod_at, clean_and_noise, plan

Coefficients = dict[str, np.ndarray]


def ddim(schedule: Schedule, steps: int, start: int, eta: float) -> Coefficients:
    """DDIM (Song et al. 2021, eq. 12 and 16). eta in [0, 1]: 0 is deterministic, 1 has DDPM's variance.

    Raises:
        ValueError: eta is out of its range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]")
    t = plan(schedule, steps).timesteps
    alpha = alpha_cumprod_at(schedule, t)
    alpha_next = alpha_cumprod_at(schedule, t - schedule.num_train_timesteps // steps)
    sigma = eta * np.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
    return _along(schedule, alpha, alpha_next) | {
        "direction": np.sqrt(np.maximum(1 - alpha_next - sigma**2, 0)),
        "sigma": sigma,
    }


def ddim_invert(schedule: Schedule, steps: int) -> tuple[np.ndarray, Coefficients]:
    """DDIM's steps backwards (Song et al. 2021, section 4.3), with the timesteps that they lead to.

    Raises:
        ValueError: linspace spacing, which has no inverse here.
    """
    if schedule.timestep_spacing == "linspace":
        raise ValueError(
            "DDIM inversion needs timestep_spacing leading or trailing, not linspace; change the schedule"
        )
    t = plan(schedule, steps).timesteps[::-1]
    alpha = alpha_cumprod_at(schedule, t - schedule.num_train_timesteps // steps)
    alpha_next = alpha_cumprod_at(schedule, t)
    return t, _along(schedule, alpha, alpha_next) | {"direction": np.sqrt(1 - alpha_next)}


def _along(schedule: Schedule, alpha: np.ndarray, alpha_next: np.ndarray) -> Coefficients:
    """What DDIM's steps have in common in both directions."""
    x0_x, x0_m, eps_x, eps_m = clean_and_noise(schedule.prediction_type, np.sqrt(alpha), np.sqrt(1 - alpha))
    return {"x0_x": x0_x, "x0_m": x0_m, "eps_x": eps_x, "eps_m": eps_m, "signal": np.sqrt(alpha_next)}


def ddpm(schedule: Schedule, steps: int, start: int, eta: float) -> Coefficients:
    """Ancestral sampling over the run's timesteps (Ho et al. 2020, eq. 6 and 7)."""
    t = plan(schedule, steps).timesteps
    alpha = alpha_cumprod_at(schedule, t)
    alpha_next = np.append(alpha[1:], 1.0)
    beta = 1 - alpha / alpha_next
    variance = np.maximum((1 - alpha_next) / (1 - alpha) * beta, 1e-20)
    if schedule.variance_type == "fixed_large":
        variance = beta
    x0_x, x0_m, _, _ = clean_and_noise(schedule.prediction_type, np.sqrt(alpha), np.sqrt(1 - alpha))
    return {
        "x0_x": x0_x,
        "x0_m": x0_m,
        "x0": np.sqrt(alpha_next) * beta / (1 - alpha),
        "x": np.sqrt(alpha / alpha_next) * (1 - alpha_next) / (1 - alpha),
        "sigma": np.where(t > 0, np.sqrt(variance), 0.0),
    }


def euler(schedule: Schedule, steps: int, start: int, eta: float) -> Coefficients:
    """Euler's method on the probability flow ODE over sigma (Karras et al. 2022, algorithm 2, no churn)."""
    after = plan(schedule, steps).sigmas[1:]
    return _euler(schedule, steps, after, np.zeros_like(after))


def euler_ancestral(schedule: Schedule, steps: int, start: int, eta: float) -> Coefficients:
    """Euler steps below the next noise level, then noise to come back to it (k-diffusion's `euler_a`)."""
    sigmas = plan(schedule, steps).sigmas
    now, after = sigmas[:-1], sigmas[1:]
    up = after * np.sqrt(1 - (after / now) ** 2)
    return _euler(schedule, steps, np.sqrt(after**2 - up**2), up)


def _euler(schedule: Schedule, steps: int, down: np.ndarray, up: np.ndarray) -> Coefficients:
    """x' = x + (down - sigma) dx/dsigma + up * noise, where the network sees x / sqrt(sigma^2 + 1)."""
    sigma = plan(schedule, steps).sigmas[:-1]
    # In variance-preserving terms the network sees z = signal * x, and dx/dsigma is the noise eps in it.
    signal = 1 / np.sqrt(1 + sigma**2)
    _, _, eps_z, eps_m = clean_and_noise(schedule.prediction_type, signal, sigma * signal)
    return {
        "scale": signal,
        "x": 1 + (down - sigma) * eps_z * signal,
        "m": (down - sigma) * eps_m,
        "up": up,
    }


def dpmpp_2m(schedule: Schedule, steps: int, start: int, eta: float) -> Coefficients:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), with Karras noise levels if the schedule says so."""
    t, sigmas = plan(schedule, steps)
    signal = 1 / np.sqrt(1 + sigmas**2)
    spread = sigmas * signal
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(-np.log(sigmas))  # lambda = log(signal / spread); infinite where the last sigma is zero
        ratio = np.append(np.nan, h[:-1]) / h
        decay = np.expm1(-h)
        slope = decay / 2 if schedule.solver_type == "midpoint" else -(decay / h + 1)
        second = -signal[1:] * slope / ratio
    second[_first_order_steps(schedule, len(t), start)] = 0
    first = -signal[1:] * decay
    x0_x, x0_m, _, _ = clean_and_noise(schedule.prediction_type, signal[:-1], spread[:-1])
    return {
        "x0_x": x0_x,
        "x0_m": x0_m,
        "x": spread[1:] / spread[:-1],
        "now": first + second,
        "before": -second,
    }


def _first_order_steps(schedule: Schedule, count: int, start: int) -> np.ndarray:
    """[count] bool: steps that use no history, the first of a run and, for stability, some last ones."""
    i = np.arange(count)
    lower_last = schedule.euler_at_final or schedule.final_sigmas_type == "zero"
    lower_last = lower_last or (schedule.lower_order_final and count < 15)
    return (i <= start) | (schedule.solver_order == 1) | (lower_last & (i == count - 1))


# Adams-Bashforth weights of the current and the three outputs before it, by the number of outputs known.
_PLMS_WEIGHTS = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def pndm(schedule: Schedule, steps: int, start: int, eta: float) -> Coefficients:
    """PNDM in its PLMS form (Liu et al. 2022, eq. 9 and 12), what Stable Diffusion 1.x directories ask for.

    The model is evaluated `steps` + 1 times: the first step is done twice, the second time with the mean of
    the outputs at both of its ends. Where a run begins later (`start`), diffusers counts from there, and so
    does this.
    """
    t = plan(schedule, steps).timesteps
    stride = schedule.num_train_timesteps // steps
    done = np.arange(len(t)) - start
    redo = done == 1
    alpha = alpha_cumprod_at(schedule, np.where(redo, t + stride, t))
    alpha_next = alpha_cumprod_at(schedule, np.where(redo, t, t - stride))
    weights = _PLMS_WEIGHTS[np.clip(np.where(done < 2, 0, done - 1), 0, 3)]
    weights = np.where(redo[:, None], np.array([1 / 2, 1 / 2, 0, 0]), weights)
    _, _, eps_x, eps_m = clean_and_noise(schedule.prediction_type, np.sqrt(alpha), np.sqrt(1 - alpha))
    # Eq. 9, the DDIM step written as a change of x.
    change = (alpha_next - alpha) / (
        alpha * np.sqrt(1 - alpha_next) + np.sqrt(alpha * (1 - alpha) * alpha_next)
    )
    return {
        "x": np.sqrt(alpha_next / alpha) - change * eps_x,
        "m": -change * eps_m,
        "weights": weights,
        "redo": redo,
    }


COEFFICIENTS: dict[str, Callable[[Schedule, int, int, float], Coefficients]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_karras": dpmpp_2m,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "pndm": pndm,
}
