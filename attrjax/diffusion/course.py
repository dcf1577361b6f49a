"""A sampling run in numbers, and the loop that goes along it.

The numbers are arguments of a compiled program and no part of it, so that one program makes runs of any
number of steps and of any beginning.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attrjax.diffusion.coefficients import COEFFICIENTS, Coefficients
from attrjax.diffusion.schedule import Schedule
from attrjax.diffusion.steps import initial_noise_scale, plan, start_scales

Latents = Float[Array, "b ..."]
# Rows of a padded course, or twice as many, or four times: runs that are no longer share a program.
ROWS = 64


class Course(NamedTuple):
    """What a run is told.

    Attributes:
        scales: float32 [2], of clean latents and of noise in the latents that it begins with.
        inputs: by name what each evaluation reads, float32 [n, ...]: its timestep ``t``, the sampler's
            coefficients, and ``i``, int32, which counts the evaluations of the whole run.
    """

    scales: Any
    inputs: dict[str, Any]


def course_of(
    schedule: Schedule, *, steps: int, start: int = 0, eta: float = 0.0, from_clean: bool = False
) -> Course:
    """The course of the sampler that a schedule was read for.

    Args:
        schedule: of ``schedule_from_config``.
        steps, start, eta: of ``samplers``.
        from_clean: whether noise is added to clean latents at the beginning.

    Raises:
        ValueError: an argument is out of its range, or the schedule's predictions tell nothing at a noise
            level of the run.
    """
    signal, noise = start_scales(schedule, steps, start)  # raises where start is out of range
    if not from_clean:
        signal, noise = 0.0, 1.0 if start else initial_noise_scale(schedule, steps)
    coefficients = COEFFICIENTS[schedule.sampler](schedule, steps, start, eta)
    return numbers(plan(schedule, steps).timesteps, coefficients, start, (signal, noise))


def numbers(
    timesteps: np.ndarray,
    coefficients: Coefficients,
    start: int = 0,
    scales: tuple[float, float] = (0.0, 1.0),
) -> Course:
    """A course from its evaluation ``start`` on.

    Raises:
        ValueError: a coefficient is not finite.
    """
    inputs = {name: value[start:].astype(np.float32) for name, value in coefficients.items()}
    for name, value in inputs.items():
        if not np.all(np.isfinite(value)):
            raise ValueError(
                f"coefficient {name} is not finite: at a noise level of this run the network's prediction "
                "tells nothing (epsilon where no signal is left, or sample where there is no noise); change "
                "timestep_spacing or prediction_type in scheduler_config.json, or --config.sampler"
            )
    inputs["t"] = timesteps[start:].astype(np.float32)
    inputs["i"] = np.arange(start, len(timesteps), dtype=np.int32)
    return Course(np.asarray(scales, np.float32), inputs)


def padded(course: Course) -> Course:
    """A course with more rows, as many as others have, too; they are not to be made."""
    rows = len(course.inputs["i"])
    more = ROWS * 2 ** max(0, (rows - 1) // ROWS).bit_length() - rows

    def pad(value: np.ndarray) -> np.ndarray:
        return np.concatenate([value, np.repeat(value[-1:], more, axis=0)])

    return course._replace(inputs={name: pad(value) for name, value in course.inputs.items()})


def begin(course: Course, latents: Latents, clean: Latents | None) -> Latents:
    """float32 latents at the noise level of a course's first evaluation."""
    noise = course.scales[1] * jnp.asarray(latents, jnp.float32)
    return noise if clean is None else course.scales[0] * jnp.asarray(clean, jnp.float32) + noise


def follow(
    step: Callable[[tuple, dict[str, Array], Latents | None], tuple],
    state: tuple,
    course: Course,
    *,
    window: Int[Array, " 2"] | None = None,
    key: Key[Array, ""] | None = None,
    noise: Float[Array, "evaluations b ..."] | None = None,
    trajectory: bool = False,
) -> tuple[tuple, Latents | None]:
    """A sampler's state after a course, or after a part of it, and its latents behind every evaluation.

    Args:
        step: (state, an evaluation's inputs, fresh noise) to the next state, of which latents come first.
        state: to begin with.
        course: of ``course_of``.
        window: the first row that is made and the one behind the last; None for all.
        key, noise: where fresh noise comes from, one of them or none: row i of ``noise`` is evaluation i's.
        trajectory: whether all latents are kept, of a whole course; else there are none.
    """

    def body(state: tuple, c: dict[str, Array]) -> tuple:
        fresh = None
        if noise is not None:
            fresh = jnp.asarray(noise, jnp.float32)[c["i"]]
        elif key is not None:
            fresh = jax.random.normal(jax.random.fold_in(key, c["i"]), state[0].shape, jnp.float32)
        return step(state, c, fresh)

    def along(state: tuple, c: dict[str, Array]) -> tuple[tuple, Latents | None]:
        state = body(state, c)
        return state, state[0] if trajectory else None

    def at(row: Int[Array, ""], state: tuple) -> tuple:
        return body(state, {name: value[row] for name, value in course.inputs.items()})

    if window is None:
        return jax.lax.scan(along, state, course.inputs)
    return jax.lax.fori_loop(window[0], window[1], at, state), None
