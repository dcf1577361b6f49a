"""The loop that all samplers share: one `lax.scan` over coefficients computed ahead."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attrjax.diffusion.schedule import Schedule
from attrjax.diffusion.steps import add_noise, initial_noise_scale, start_scales

Denoise = Callable[[Float[Array, "b ..."], Float[Array, ""], Int[Array, ""]], Float[Array, "b ..."]]
Latents = Float[Array, "b ..."]
Sampled = Latents | tuple[Latents, Float[Array, "evaluations b ..."]]


class Run(NamedTuple):
    """The arguments that every sampler passes on to `scan`; `samplers.py` describes them."""

    start: int = 0
    key: Key[Array, ""] | None = None
    noise: Float[Array, "evaluations b ..."] | None = None
    on_step: Callable[[int], None] | None = None
    trajectory: bool = False


def check_sampler(schedule: Schedule, *names: str) -> None:
    """Raises ValueError if the config was read with another scheduler class's defaults."""
    if schedule.sampler not in names:
        raise ValueError(
            f"the schedule was read for {schedule.sampler!r}, whose defaults differ; read it with "
            f"schedule_from_config(config, {names[0]!r})"
        )


def clip(x0: Latents, clip_range: float | None) -> Latents:
    """Clips predicted clean latents to [-clip_range, clip_range]; None leaves them."""
    return x0 if clip_range is None else jnp.clip(x0, -clip_range, clip_range)


def begin(latents: Latents, clean: Latents | None, schedule: Schedule, steps: int, start: int) -> Latents:
    """float32 latents at the noise level of evaluation `start`."""
    start_scales(schedule, steps, start)  # raises where start is out of range
    if clean is not None:
        return add_noise(clean, latents, schedule, steps=steps, start=start)
    latents = jnp.asarray(latents, jnp.float32)
    return latents if start else latents * initial_noise_scale(schedule, steps)


def scan(
    step: Callable[[tuple, dict[str, Array], Latents | None], tuple],
    state: tuple,
    timesteps: np.ndarray,
    coefficients: dict[str, np.ndarray],
    run: Run,
    *,
    stochastic: bool,
) -> Sampled:
    """Scans `step(state, coefficients at i, fresh noise) -> state` over a run; state[0] are the latents."""
    if stochastic and run.key is None and run.noise is None:
        raise ValueError(
            "this sampler draws noise: pass key=jax.random.key(seed), or noise=[evaluations, ...]"
        )
    inputs: dict[str, Any] = {name: np.float32(value[run.start :]) for name, value in coefficients.items()}
    for name, value in inputs.items():
        if not np.all(np.isfinite(value)):
            raise ValueError(
                f"coefficient {name} is not finite: at a noise level of this run the network's prediction "
                "tells nothing (epsilon where no signal is left, or sample where there is no noise); change "
                "timestep_spacing or prediction_type in scheduler_config.json, or --config.sampler"
            )
    inputs["t"] = np.float32(timesteps[run.start :])
    inputs["i"] = np.arange(run.start, len(timesteps), dtype=np.int32)
    key, on_step = run.key, run.on_step
    if stochastic and run.noise is not None:
        shape = (len(timesteps), *state[0].shape)
        if run.noise.shape != shape:
            raise ValueError(f"noise has shape {run.noise.shape}, this run needs {shape}")
        inputs["fresh"] = jnp.asarray(run.noise, jnp.float32)[run.start :]
        key = None

    def body(state, c):
        fresh = c.get("fresh")
        if stochastic and key is not None:
            fresh = jax.random.normal(jax.random.fold_in(key, c["i"]), state[0].shape, jnp.float32)
        state = step(state, c, fresh)
        if on_step is not None:
            # The barrier ties the call to the step's end; without it the host could be told ahead of time.
            i, _ = jax.lax.optimization_barrier((c["i"], state[0]))
            jax.debug.callback(lambda i: on_step(int(i)), i)
        return state, state[0] if run.trajectory else None

    state, path = jax.lax.scan(body, state, inputs)
    return (state[0], path) if run.trajectory else state[0]
