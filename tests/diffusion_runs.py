"""Our side of the sampling runs in `diffusion_cases`."""

import jax.numpy as jnp
import numpy as np

from attrjax.diffusion.samplers import SAMPLERS, ddim_invert
from attrjax.diffusion.schedule import schedule_from_config
from attrjax.diffusion.steps import plan
from tests.diffusion_cases import Case, toy_denoiser


def toy(x, t, i):
    """The toy denoiser with a sampler's signature."""
    del i  # it has no per-step context
    return toy_denoiser(jnp.tanh, jnp.sin, jnp.roll)(x, t)


def our_trajectory(case: Case, given: dict[str, np.ndarray]) -> np.ndarray:
    """Latents after every evaluation of a case, from the given latents, clean latents and noise."""
    if case.sampler == "ddim_invert":
        schedule = schedule_from_config(case.config, "ddim")
        return np.asarray(ddim_invert(toy, given["latents"], schedule, steps=case.steps, trajectory=True)[1])
    schedule = schedule_from_config(case.config, case.sampler)
    options = {"eta": case.eta} if case.sampler == "ddim" else {}
    path = SAMPLERS[case.sampler](
        toy,
        given["latents"],
        schedule,
        steps=case.steps,
        start=case.start,
        clean=given["clean"] if case.clean else None,
        noise=given["noise"][: len(plan(schedule, case.steps).timesteps)],
        trajectory=True,
        **options,
    )[1]
    return np.asarray(path)


def worst_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest error of any step, relative to that step's largest latent."""
    assert ours.shape == reference.shape
    assert np.all(np.isfinite(reference))
    axes = tuple(range(1, ours.ndim))
    return float(np.max(np.abs(ours - reference).max(axes) / np.abs(reference).max(axes)))
