"""Records torch diffusers' trajectories for the tests that need no torch.

`python -m tests.record_diffusion` writes tests/recorded/diffusion.npz: the common inputs, and for each case
one trajectory [evaluations, B, h, w, c].
"""

import importlib
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch

from tests.diffusion_cases import Case, cases, inputs, toy_denoiser

RECORDED = Path(__file__).parent / "recorded" / "diffusion.npz"
MOST_EVALUATIONS = 18

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddim_invert": "DDIMInverseScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
}


def torch_scheduler(case: Case):
    """The scheduler as diffusers makes it of the case's config."""
    overrides = {"use_karras_sigmas": True} if case.sampler == "dpmpp_2m_karras" else {}
    return getattr(diffusers, CLASSES[case.sampler]).from_config(case.config, **overrides)


def torch_trajectory(case: Case) -> np.ndarray:
    """Latents after every step [evaluations, B, h, w, c], by the loop of diffusers' pipelines."""
    scheduler = torch_scheduler(case)
    given = {name: torch.from_numpy(value) for name, value in inputs(MOST_EVALUATIONS).items()}
    denoise = toy_denoiser(torch.tanh, lambda t: torch.sin(t.float()), torch.roll)
    module = importlib.import_module(type(scheduler).__module__)

    scheduler.set_timesteps(case.steps)
    timesteps = scheduler.timesteps[case.start :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(case.start)
    if case.clean:
        x = scheduler.add_noise(given["clean"], given["latents"], timesteps[:1])
    else:
        x = given["latents"] * scheduler.init_noise_sigma
    path = []
    for i, t in enumerate(timesteps, case.start):

        def this_noise(shape, generator=None, device=None, dtype=None, layout=None, i=i):
            del generator, device, dtype, layout
            return given["noise"][i].reshape(shape)

        output = denoise(scheduler.scale_model_input(x, t), t)
        options = {"eta": case.eta} if case.sampler == "ddim" else {}
        with mock.patch.object(module, "randn_tensor", this_noise, create=True):
            x = scheduler.step(output, t, x, return_dict=False, **options)[0]
        path.append(x.numpy())
    return np.stack(path)


def main() -> None:
    """Writes the file."""
    arrays = {name: torch_trajectory(case) for name, case in cases().items()}
    for name, path in arrays.items():
        if not np.all(np.isfinite(path)):
            raise ValueError(f"{name}: the reference is not finite")
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **arrays, **{f"input-{k}": v for k, v in inputs(MOST_EVALUATIONS).items()})
    print(f"{len(arrays)} trajectories, {RECORDED.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
