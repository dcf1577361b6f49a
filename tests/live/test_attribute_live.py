"""Exports of learned attributes in torch diffusers: they load as they are, and make the same pictures."""

import diffusers
import numpy as np
import pytest
import torch

from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.export import FILES, export
from attrjax.checkpoints.attribute import save_attribute, weights_digest
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.generate import Settings, generate, latent_shape
from configs import export as export_config
from tests.live.test_pictures_live import psnr, torch_pictures
from tests.test_attribute_files import learned

PROMPT = "a red <it>"
SETTINGS = Settings(steps=4, guidance=3.0)


@pytest.fixture(scope="module")
def base(small_base):
    return load_pipeline(small_base), weights_digest(small_base)


def ours(pipeline, attribute, digest, noise):
    tuned, adapters, stages, *_ = apply_attributes(pipeline, [(attribute, 1.0)], digest=digest)
    return generate(tuned, [PROMPT], [0], SETTINGS, latents=noise, adapters=adapters)


def noise_of(pipeline):
    shape = latent_shape(pipeline, SETTINGS, [])
    return np.random.RandomState(0).standard_normal((1, *shape)).astype(np.float32)


def exported(small_base, attribute, workdir, form):
    config = export_config.get_config()
    path = save_attribute(workdir / "attribute.safetensors", attribute, dtype=np.float32)
    config.update({"base": str(small_base), "attributes": (str(path),), "format": form})
    export(config, str(workdir / "out"))
    return workdir / "out"


@pytest.mark.parametrize("rule", ["train", "lora:2", "offset:1"])
def test_an_exported_directory_makes_the_same_picture_in_torch(small_base, base, tmp_path, rule):
    pipeline, digest = base
    attribute, noise = learned(pipeline, digest, "<it>", "encoder", rule), noise_of(pipeline)
    out = exported(small_base, attribute, tmp_path, "diffusers")
    theirs = torch_pictures(out / "base", noise, prompt=[PROMPT], num_inference_steps=4, guidance_scale=3.0)
    mine = ours(pipeline, attribute, digest, noise)
    assert mine.std() > 10
    assert psnr(mine, theirs) > 40


@pytest.mark.parametrize("form", FILES)
def test_an_exported_lora_and_its_word_make_the_same_picture_in_torch(small_base, base, tmp_path, form):
    pipeline, digest = base
    attribute, noise = learned(pipeline, digest, "<it>", "decoder", "lora:2"), noise_of(pipeline)
    out = exported(small_base, attribute, tmp_path, form)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(small_base, safety_checker=None)
    pipe.load_lora_weights(out, weight_name=FILES[form])
    pipe.load_textual_inversion(str(out / "learned_embeds.safetensors"))
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    made = pipe(
        prompt=PROMPT, latents=latents, num_inference_steps=4, guidance_scale=3.0, output_type="np"
    ).images
    theirs = np.round(255 * made).astype(np.uint8)
    assert psnr(ours(pipeline, attribute, digest, noise), theirs) > 40


def test_full_weights_do_not_fit_into_a_lora_file(small_base, base, tmp_path):
    attribute = learned(*base, "<it>", "encoder", "train")
    with pytest.raises(ValueError, match="more than a LoRA file holds"):
        exported(small_base, attribute, tmp_path, "kohya")
