"""Bases without an image encoder: a CLIP vision tower from elsewhere sees the reference."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attrjax.arguments import BASES
from attrjax.attributes.base import settings_of
from attrjax.attributes.customize import customize
from attrjax.checkpoints.files import read_json, write_json
from attrjax.checkpoints.pipeline import REQUIRED, load_pipeline, save_pipeline
from configs import appearance, shape
from tests.reference_cases import small, write_disc
from tests.tiny import make_tiny_pipeline


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("reference"))


def test_a_tower_beside_the_base_does_what_the_bases_own_does(small_base, reference, tmp_path):
    save_pipeline(tmp_path / "blind", load_pipeline(small_base, components=REQUIRED))
    clip = tmp_path / "clip"
    shutil.copytree(small_base / "image_encoder", clip)
    # As the Hub has it: both towers in one file, and the tower's config within another.
    other = {"text_model.final_layer_norm.weight": np.zeros(8), "logit_scale": np.zeros(1)}
    save_file(load_file(clip / "model.safetensors") | other, clip / "model.safetensors")
    config = read_json(clip / "config.json")
    write_json(clip / "config.json", {"architectures": ["CLIPModel"], "vision_config": config})

    files = []
    for base, encoder in ((small_base, ""), (tmp_path / "blind", str(clip))):
        workdir = tmp_path / f"run-{base.name}"
        changes = {"image_encoder": encoder, "partition": "encoder"}
        customize(small(shape.get_config(), base, reference, **changes), str(workdir))
        files.append((workdir / "attribute.safetensors").read_bytes())
    assert files[0] == files[1]


def test_a_base_with_two_text_encoders_is_refused_before_it_is_read(reference, tmp_path):
    make_tiny_pipeline(tmp_path / "xl", "sdxl")
    for weights in (tmp_path / "xl").rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(
        ValueError, match=r"has two text encoders: attributes are learned of .* 1\.x and 2\.x"
    ):
        customize(small(shape.get_config(), tmp_path / "xl", reference), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_filters_of_a_base_are_not_given_what_another_encoder_sees(small_base, reference, tmp_path):
    changes = {"image_encoder": str(small_base), "filter_weights": "shape.safetensors"}
    with pytest.raises(
        ValueError, match="filter_weights=shape.safetensors reads what the base's own image encoder sees"
    ):
        customize(small(shape.get_config(), small_base, reference, **changes), str(tmp_path / "run"))


@pytest.mark.parametrize("module", [shape, appearance])
@pytest.mark.parametrize("base", ["sd15", "sd21"])
def test_presets_are_a_base_that_can_see_at_its_size_and_tune_little_of_it(module, base):
    config = module.get_config(f"base={base}")
    assert (config.base, config.size) == (BASES[base]["base"], BASES[base]["height"])
    assert config.image_encoder and config.rule.startswith("lora")
    for recipe in (config, config.other):
        assert recipe.optimizer.learning_rate <= 1e-4 < module.get_config().optimizer.learning_rate
        assert recipe.steps % config.probe.every == 0


def test_a_run_makes_its_pictures_as_suits_the_base(small_base):
    config, pipeline = shape.get_config(), load_pipeline(small_base)
    assert (settings_of(config, pipeline).guidance, settings_of(config, pipeline).height) == (4.0, 64)
    config.update({"base": "DIR", "size": 128})
    assert (settings_of(config, pipeline).guidance, settings_of(config, pipeline).width) == (7.5, 128)
    config.probe.guidance = 2.0
    assert settings_of(config, pipeline).guidance == 2.0


def test_the_preset_of_xl_is_refused():
    with pytest.raises(ValueError, match="base=sd15 or sd21"):
        appearance.get_config("base=sdxl")
