"""The bundled base in torch diffusers: it loads as it is, and makes the same pictures."""

import diffusers
import numpy as np

from attrjax.attrworld.bundled import BASE
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.generate import Settings, generate, latent_shape
from tests.live.test_pictures_live import psnr, torch_pictures

PROMPTS = ["a vase made of marble", "a red mushroom with white dots on a blue backdrop"]


def test_torch_makes_the_same_pictures_with_the_bundled_base():
    pipeline = load_pipeline(BASE)
    settings = Settings(steps=8, guidance=4.0, batch_size=2)
    shape = latent_shape(pipeline, settings, [])
    noise = np.random.RandomState(0).standard_normal((2, *shape)).astype(np.float32)
    ours = generate(pipeline, PROMPTS, [0], settings, latents=noise)
    theirs = torch_pictures(BASE, noise, prompt=PROMPTS, num_inference_steps=8, guidance_scale=4.0)
    assert ours.shape == theirs.shape == (2, 64, 64, 3)
    assert ours.std() > 10
    assert psnr(ours, theirs) > 40


def test_torch_finds_every_part_of_the_bundled_base():
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None)
    assert pipe.image_encoder is not None and pipe.feature_extractor is not None
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 64
    assert pipe.tokenizer("a vase").input_ids == list(load_pipeline(BASE).tokenizer("a vase").input_ids)
