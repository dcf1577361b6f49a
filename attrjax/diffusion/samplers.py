"""Samplers, each one loop whose per-step coefficients are computed ahead in float64 (``coefficients``).

All have one signature, `sampler(denoise, latents, schedule, *, steps, ...)`:

    denoise     any function (x [B, ...] float32, t [] float32, i [] int32) -> the model's output [B, ...],
                where t is the timestep and i counts the evaluations of the run. Guidance is a wrapper of it
                (`guidance.py`).
    latents     [B, ...] N(0, 1) noise, whatever the sampler: scaling to its first noise level happens inside.
    schedule    from `schedule_from_config(config, sampler)`, read for this very sampler.
    steps       how many steps a full run has.
    eta         of DDIM alone, in [0, 1]: 0 is deterministic, 1 has DDPM's variance.
    start       the evaluation to begin with (`steps.start_index`). The latents are then those that
                `steps.add_noise` makes, unless `clean` is given.
    clean       [B, ...] clean latents of a picture to begin from: `latents` is then the noise that is added
                to them.
    key         a typed key for the noise of a stochastic sampler; evaluation i draws from fold_in(key, i).
    noise       [evaluations, B, ...] to be used instead of drawn noise, row i at evaluation i.
    trajectory  whether to return (latents, all latents [evaluations done, B, ...]) and not the final latents
                alone.

Latents are float32 throughout, also when the model computes in bfloat16. A trajectory equals that of the
diffusers scheduler of the same name given the same noise.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attrjax.diffusion.coefficients import ddim_invert as _inverse
from attrjax.diffusion.course import Latents, begin, course_of, follow, numbers
from attrjax.diffusion.schedule import Schedule
from attrjax.diffusion.steps import plan

Denoise = Callable[[Float[Array, "b ..."], Float[Array, ""], Int[Array, ""]], Float[Array, "b ..."]]
Sampled = Latents | tuple[Latents, Float[Array, "evaluations b ..."]]
# Of (denoise, clip_range): what ``course.follow`` makes at each evaluation.
Step = Callable[[tuple, dict[str, Array], Latents | None], tuple]


def clip(x0: Latents, clip_range: float | None) -> Latents:
    """Clips predicted clean latents to [-clip_range, clip_range]; None leaves them."""
    return x0 if clip_range is None else jnp.clip(x0, -clip_range, clip_range)


def _ddim(denoise: Denoise, clip_range: float | None) -> Step:
    def step(state, c, fresh):
        (x,) = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = clip(c["x0_x"] * x + c["x0_m"] * output, clip_range)
        x = c["signal"] * x0 + c["direction"] * (c["eps_x"] * x + c["eps_m"] * output)
        return (x if fresh is None else x + c["sigma"] * fresh,)

    return step


def _ddpm(denoise: Denoise, clip_range: float | None) -> Step:
    def step(state, c, fresh):
        (x,) = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = clip(c["x0_x"] * x + c["x0_m"] * output, clip_range)
        return (c["x0"] * x0 + c["x"] * x + c["sigma"] * fresh,)

    return step


def _euler(denoise: Denoise, clip_range: float | None) -> Step:
    def step(state, c, fresh):
        (x,) = state
        output = denoise(c["scale"] * x, c["t"], c["i"]).astype(jnp.float32)
        x = c["x"] * x + c["m"] * output
        return (x if fresh is None else x + c["up"] * fresh,)

    return step


def _dpmpp_2m(denoise: Denoise, clip_range: float | None) -> Step:
    def step(state, c, fresh):
        x, before = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        x0 = c["x0_x"] * x + c["x0_m"] * output
        return c["x"] * x + c["now"] * x0 + c["before"] * before, x0

    return step


def _pndm(denoise: Denoise, clip_range: float | None) -> Step:
    def step(state, c, fresh):
        x, x_before, history = state
        output = denoise(x, c["t"], c["i"]).astype(jnp.float32)
        outputs = jnp.concatenate([output[:, None], history], 1)
        mean = jnp.einsum("n,bn...->b...", c["weights"], outputs, precision="highest")
        redo = c["redo"] > 0
        base = jnp.where(redo, x_before, x)
        return c["x"] * base + c["m"] * mean, x, jnp.where(redo, history, outputs[:, :3])

    return step


class Method(NamedTuple):
    """A sampler's step, and the state that it begins with: latents, and what it remembers of before.

    Attributes:
        step: of (denoise, clip_range).
        state: of the first latents; the first axis of all its arrays is the batch's.
    """

    step: Callable[[Denoise, float | None], Step]
    state: Callable[[Latents], tuple] = lambda x: (x,)


METHODS = {
    "ddim": Method(_ddim),
    "ddpm": Method(_ddpm),
    "dpmpp_2m": Method(_dpmpp_2m, lambda x: (x, jnp.zeros_like(x))),
    "dpmpp_2m_karras": Method(_dpmpp_2m, lambda x: (x, jnp.zeros_like(x))),
    "euler": Method(_euler),
    "euler_ancestral": Method(_euler),
    "pndm": Method(_pndm, lambda x: (x, x, jnp.zeros((len(x), 3, *x.shape[1:])))),
}


def is_stochastic(sampler: str, eta: float) -> bool:
    """Whether a sampler draws noise after the initial one."""
    return sampler in ("ddpm", "euler_ancestral") or (sampler == "ddim" and eta > 0)


def _sample(
    sampler: str,
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
    trajectory: bool = False,
) -> Sampled:
    """A sampler's whole run, as the module says."""
    _check_sampler(schedule, sampler)
    if eta and sampler != "ddim":
        raise ValueError(f"eta={eta} is of ddim alone, not of {sampler}")
    course = course_of(schedule, steps=steps, start=start, eta=eta, from_clean=clean is not None)
    if not is_stochastic(sampler, eta):
        key = noise = None  # accepted, so that all samplers are called alike
    elif key is None and noise is None:
        raise ValueError(
            "this sampler draws noise: pass key=jax.random.key(seed), or noise=[evaluations, ...]"
        )
    elif noise is not None:
        shape = (len(plan(schedule, steps).timesteps), *latents.shape)
        if noise.shape != shape:
            raise ValueError(f"noise has shape {noise.shape}, this run needs {shape}")
    method = METHODS[sampler]
    step, state = method.step(denoise, schedule.clip_range), method.state(begin(course, latents, clean))
    state, path = follow(step, state, course, key=key, noise=noise, trajectory=trajectory)
    return state[0] if path is None else (state[0], path)


def _check_sampler(schedule: Schedule, name: str) -> None:
    """Raises ValueError if the config was read with another scheduler class's defaults."""
    alike = {"dpmpp_2m", "dpmpp_2m_karras"}  # one sampler, at noise levels that the schedule chooses
    if schedule.sampler != name and not {schedule.sampler, name} <= alike:
        raise ValueError(
            f"the schedule was read for {schedule.sampler!r}, whose defaults differ; read it with "
            f"schedule_from_config(config, {name!r})"
        )


SAMPLERS: dict[str, Callable[..., Sampled]] = {name: functools.partial(_sample, name) for name in METHODS}
ddim = SAMPLERS["ddim"]


def ddim_invert(
    denoise: Denoise,
    latents: Latents,
    schedule: Schedule,
    *,
    steps: int,
    trajectory: bool = False,
) -> Sampled:
    """Runs DDIM backwards: from clean latents to the noise that `ddim` turns into them (Song et al. 2021,
    section 4.3).

    The denoiser is evaluated at the timestep that a step leads to, as diffusers' DDIMInverseScheduler does.

    Args:
        latents: [B, ...] clean latents.
        schedule: read for "ddim", with leading or trailing spacing.
        denoise, steps, trajectory: as the module says.

    Raises:
        ValueError: linspace spacing, which has no inverse here.
    """
    _check_sampler(schedule, "ddim")
    course = numbers(*_inverse(schedule, steps))
    begun = (jnp.asarray(latents, jnp.float32),)
    state, path = follow(_ddim(denoise, schedule.clip_range), begun, course, trajectory=trajectory)
    return state[0] if path is None else (state[0], path)
