"""Whole pictures, against torch diffusers' pipelines from the same noise."""

import diffusers
import numpy as np
import pytest
import torch

from attrjax.checkpoints.pipeline import load_pipeline, save_pipeline
from attrjax.generate import Settings, generate
from tests.tiny import make_tiny_pipeline

PROMPTS = ["a cat on a mat", "many words " * 60]  # the second is longer than the towers read


def torch_pictures(directory, noise, **arguments):
    pipe = diffusers.DiffusionPipeline.from_pretrained(directory, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.tensor(noise).permute(0, 3, 1, 2)
    with torch.no_grad():
        images = pipe(latents=latents, output_type="np", **arguments).images
    return np.round(images * 255).astype(np.uint8)


def psnr(ours, reference):
    error = np.mean((ours.astype(float) - reference.astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def twice_saved(request, tmp_path_factory):
    """A base that was written, read and written again, and its family."""
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny_pipeline(folder / "first", request.param)
    save_pipeline(folder / "second", load_pipeline(folder / "first"))
    return folder / "second", request.param


@pytest.mark.parametrize("negative_prompt", ["", "a dog"])
def test_pictures_are_those_of_torch(twice_saved, negative_prompt):
    directory, family = twice_saved
    noise = np.random.RandomState(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    settings = Settings(negative_prompt, steps=4, guidance=5.0, guidance_rescale=0.5, batch_size=2)
    ours = generate(load_pipeline(directory), PROMPTS, [0], settings, latents=noise)
    theirs = torch_pictures(
        directory,
        noise,
        prompt=PROMPTS,
        negative_prompt=[negative_prompt] * 2 if negative_prompt or family != "sdxl" else None,
        num_inference_steps=4,
        guidance_scale=5.0,
        guidance_rescale=0.5,
    )
    assert ours.shape == theirs.shape
    assert ours.std() > 10
    assert psnr(ours, theirs) > 60


def test_sizes_other_than_square_are_those_of_torch(twice_saved):
    directory, _ = twice_saved
    noise = np.random.RandomState(1).standard_normal((1, 6, 10, 4)).astype(np.float32)
    settings = Settings(steps=3, guidance=1.0, height=48, width=80)
    ours = generate(load_pipeline(directory), ["a cat"], [0], settings, latents=noise)
    arguments = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 48, "width": 80}
    assert psnr(ours, torch_pictures(directory, noise, prompt="a cat", **arguments)) > 60
