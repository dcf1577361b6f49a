"""Samplers, each one `lax.scan` whose per-step coefficients are computed ahead in float64.

All have one signature, `sampler(denoise, latents, schedule, *, steps, ...)`:

    denoise     any function (x [B, ...] float32, t [] float32, i [] int32) -> the model's output [B, ...],
                where t is the timestep and i counts the evaluations of the run. Guidance is a wrapper of it
                (`guidance.py`).
    latents     [B, ...] N(0, 1) noise, whatever the sampler: scaling to its first noise level happens inside.
    schedule    from `schedule_from_config(config, sampler)`, read for this very sampler.
    steps       how many steps a full run has.
    start       the evaluation to begin with (`steps.start_index`). The latents are then those that
                `steps.add_noise` makes, unless `clean` is given.
    clean       [B, ...] clean latents of a picture to begin from: `latents` is then the noise that is added
                to them.
    key         a typed key for the noise of a stochastic sampler; evaluation i draws from fold_in(key, i).
    noise       [evaluations, B, ...] to be used instead of drawn noise, row i at evaluation i.
    on_step     a function called on the host with i after each evaluation, for progress bars.
    trajectory  whether to return (latents, all latents [evaluations done, B, ...]) and not the final latents
                alone.

Latents are float32 throughout, also when the model computes in bfloat16. A trajectory equals that of the
diffusers scheduler of the same name given the same noise.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from attrjax.diffusion.scan import Denoise, Latents, Run, Sampled, begin, check_sampler, clip, scan
from attrjax.diffusion.schedule import Schedule
from attrjax.diffusion.steps import alpha_cumprod_at, clean_and_noise, plan


def ddim(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    eta: float = 0.0,
    start: int = 0,
    clean: Latents | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """DDIM (Song et al. 2021, eq. 12 and 16). eta in [0, 1]: 0 is deterministic, 1 has DDPM's variance."""
    check_sampler(schedule, "ddim")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]")
    t = plan(schedule, steps).timesteps
    alpha = alpha_cumprod_at(schedule, t)
    alpha_next = alpha_cumprod_at(schedule, t - schedule.num_train_timesteps // steps)
    sigma = eta * np.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
    x0_x, x0_m, eps_x, eps_m = clean_and_noise(schedule.prediction_type, np.sqrt(alpha), np.sqrt(1 - alpha))
    coefficients = {
        "x0_x": x0_x,
        "x0_m": x0_m,
        "eps_x": eps_x,
        "eps_m": eps_m,
        "signal": np.sqrt(alpha_next),
        "direction": np.sqrt(np.maximum(1 - alpha_next - sigma**2, 0)),
        "sigma": sigma,
    }

    def step(state, c, fresh):
        (x,) = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = clip(c["x0_x"] * x + c["x0_m"] * output, schedule.clip_range)
        eps = c["eps_x"] * x + c["eps_m"] * output
        x = c["signal"] * x0 + c["direction"] * eps
        return (x if fresh is None else x + c["sigma"] * fresh,)

    x = begin(latents, clean, schedule, steps, start)
    run = Run(start, key, noise, on_step, trajectory)
    return scan(step, (x,), t, coefficients, run, stochastic=eta > 0)


def ddim_invert(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """Runs DDIM backwards: from clean latents to the noise that `ddim` turns into them (Song et al. 2021,
    §4.3).

    The denoiser is evaluated at the timestep that a step leads to, as diffusers' DDIMInverseScheduler does.

    Args:
        latents: [B, ...] clean latents.
        schedule: read for "ddim", with leading or trailing spacing.
        denoise: as above.
        steps: as above.
        on_step: as above.
        trajectory: as above.

    Raises:
        ValueError: linspace spacing, which has no inverse here.
    """
    check_sampler(schedule, "ddim")
    if schedule.timestep_spacing == "linspace":
        raise ValueError(
            "DDIM inversion needs timestep_spacing leading or trailing, not linspace; change the schedule"
        )
    t = plan(schedule, steps).timesteps[::-1]
    alpha = alpha_cumprod_at(schedule, t - schedule.num_train_timesteps // steps)
    alpha_next = alpha_cumprod_at(schedule, t)
    x0_x, x0_m, eps_x, eps_m = clean_and_noise(schedule.prediction_type, np.sqrt(alpha), np.sqrt(1 - alpha))
    coefficients = {
        "x0_x": x0_x,
        "x0_m": x0_m,
        "eps_x": eps_x,
        "eps_m": eps_m,
        "signal": np.sqrt(alpha_next),
        "direction": np.sqrt(1 - alpha_next),
    }

    def step(state, c, fresh):
        del fresh  # inversion is deterministic
        (x,) = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = clip(c["x0_x"] * x + c["x0_m"] * output, schedule.clip_range)
        return (c["signal"] * x0 + c["direction"] * (c["eps_x"] * x + c["eps_m"] * output),)

    x = jnp.asarray(latents, jnp.float32)
    return scan(step, (x,), t, coefficients, Run(on_step=on_step, trajectory=trajectory), stochastic=False)


def ddpm(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    clean: Latents | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """Ancestral sampling over the run's timesteps (Ho et al. 2020, eq. 6 and 7)."""
    check_sampler(schedule, "ddpm")
    t = plan(schedule, steps).timesteps
    alpha = alpha_cumprod_at(schedule, t)
    alpha_next = np.append(alpha[1:], 1.0)
    beta = 1 - alpha / alpha_next
    variance = np.maximum((1 - alpha_next) / (1 - alpha) * beta, 1e-20)
    if schedule.variance_type == "fixed_large":
        variance = beta
    x0_x, x0_m, _, _ = clean_and_noise(schedule.prediction_type, np.sqrt(alpha), np.sqrt(1 - alpha))
    coefficients = {
        "x0_x": x0_x,
        "x0_m": x0_m,
        "x0": np.sqrt(alpha_next) * beta / (1 - alpha),
        "x": np.sqrt(alpha / alpha_next) * (1 - alpha_next) / (1 - alpha),
        "sigma": np.where(t > 0, np.sqrt(variance), 0.0),
    }

    def step(state, c, fresh):
        (x,) = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = clip(c["x0_x"] * x + c["x0_m"] * output, schedule.clip_range)
        return (c["x0"] * x0 + c["x"] * x + c["sigma"] * fresh,)

    x = begin(latents, clean, schedule, steps, start)
    return scan(step, (x,), t, coefficients, Run(start, key, noise, on_step, trajectory), stochastic=True)


def euler(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    clean: Latents | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """Euler's method on the probability flow ODE over sigma (Karras et al. 2022, algorithm 2 without churn).

    Deterministic: key and noise are accepted, so that all samplers are called alike, and not used.
    """
    check_sampler(schedule, "euler")
    sigmas = plan(schedule, steps).sigmas
    run = Run(start, key, noise, on_step, trajectory)
    return _euler(denoise, latents, clean, schedule, steps, sigmas[1:], np.zeros(len(sigmas) - 1), run)


def euler_ancestral(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    clean: Latents | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """Euler steps below the next noise level, then noise to come back to it (k-diffusion's `euler_a`)."""
    check_sampler(schedule, "euler_ancestral")
    sigmas = plan(schedule, steps).sigmas
    now, after = sigmas[:-1], sigmas[1:]
    up = after * np.sqrt(1 - (after / now) ** 2)
    run = Run(start, key, noise, on_step, trajectory)
    return _euler(denoise, latents, clean, schedule, steps, np.sqrt(after**2 - up**2), up, run)


def _euler(denoise, latents, clean, schedule, steps, down, up, run: Run) -> Sampled:
    """Does x' = x + (down - sigma) dx/dsigma + up * noise, where the network sees x / sqrt(sigma^2 + 1)."""
    t, sigmas = plan(schedule, steps)
    sigma = sigmas[:-1]
    # In variance-preserving terms the network sees z = signal * x, and dx/dsigma is the noise eps in it.
    signal = 1 / np.sqrt(1 + sigma**2)
    _, _, eps_z, eps_m = clean_and_noise(schedule.prediction_type, signal, sigma * signal)
    coefficients = {
        "scale": signal,
        "x": 1 + (down - sigma) * eps_z * signal,
        "m": (down - sigma) * eps_m,
        "up": up,
    }

    def step(state, c, fresh):
        (x,) = state
        output = denoise(c["scale"] * x, c["t"], c["i"]).astype(jnp.float32)
        x = c["x"] * x + c["m"] * output
        return (x if fresh is None else x + c["up"] * fresh,)

    x = begin(latents, clean, schedule, steps, run.start)
    return scan(step, (x,), t, coefficients, run, stochastic=bool(np.any(up > 0)))


def dpmpp_2m(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    clean: Latents | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), with Karras noise levels if the schedule says so.

    Deterministic: key and noise are accepted, so that all samplers are called alike, and not used.
    """
    check_sampler(schedule, "dpmpp_2m", "dpmpp_2m_karras")
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
    coefficients = {
        "x0_x": x0_x,
        "x0_m": x0_m,
        "x": spread[1:] / spread[:-1],
        "now": first + second,
        "before": -second,
    }

    def step(state, c, fresh):
        del fresh  # the solver is deterministic
        x, before = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = c["x0_x"] * x + c["x0_m"] * output
        return c["x"] * x + c["now"] * x0 + c["before"] * before, x0

    x = begin(latents, clean, schedule, steps, start)
    run = Run(start, key, noise, on_step, trajectory)
    return scan(step, (x, jnp.zeros_like(x)), t, coefficients, run, stochastic=False)


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


def pndm(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    clean: Latents | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    on_step: Callable[[int], None] | None = None,
    trajectory: bool = False,
) -> Sampled:
    """PNDM in its PLMS form (Liu et al. 2022, eq. 9 and 12), what Stable Diffusion 1.x directories ask for.

    The model is evaluated `steps` + 1 times: the first step is done twice, the second time with the mean of
    the outputs at both of its ends. Where a run begins later (`start`), diffusers counts from there, and so
    does this.

    Deterministic: key and noise are accepted, so that all samplers are called alike, and not used.
    """
    check_sampler(schedule, "pndm")
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
    coefficients = {
        "x": np.sqrt(alpha_next / alpha) - change * eps_x,
        "m": -change * eps_m,
        "weights": weights,
        "redo": redo,
    }

    def step(state, c, fresh):
        del fresh  # the method is deterministic
        x, x_before, history = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        outputs = jnp.concatenate([output[None], history])
        mean = jnp.tensordot(c["weights"], outputs, 1, precision="highest")
        redo = c["redo"] > 0
        base = jnp.where(redo, x_before, x)
        return c["x"] * base + c["m"] * mean, x, jnp.where(redo, history, outputs[:3])

    x = begin(latents, clean, schedule, steps, start)
    run = Run(start, key, noise, on_step, trajectory)
    return scan(step, (x, x, jnp.zeros((3, *x.shape))), t, coefficients, run, stochastic=False)


SAMPLERS = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_karras": dpmpp_2m,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "pndm": pndm,
}
