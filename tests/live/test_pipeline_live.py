"""Directories exchanged with torch: it loads what is written here, and here loads what it writes."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from attrjax.checkpoints import configs
from attrjax.checkpoints.pipeline import STEMS, load_pipeline, save_pipeline
from tests import cases, tiny

FAMILIES = ("sd15", "sd21", "sdxl")
PIPELINES = {
    "sd15": diffusers.StableDiffusionPipeline,
    "sd21": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    """A family, and a base of it that was written here."""
    return request.param, tiny.make_tiny_pipeline(tmp_path_factory.mktemp("base") / "tiny", request.param)


@pytest.fixture(scope="module")
def torch_pipelines(tmp_path_factory):
    """Pipelines with torch's own random weights, by family."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer_files(tokenizer)
    return {family: torch_pipeline(family, tokenizer) for family in FAMILIES}


def torch_pipeline(family: str, tokenizer: Path) -> diffusers.DiffusionPipeline:
    torch.manual_seed(0)
    text = {"bos_token_id": tiny.BOS, "pad_token_id": tiny.EOS}
    text_config = transformers.CLIPTextConfig(**cases.CLIP_TEXT[family] | text)
    vision_config = transformers.CLIPVisionConfig(**cases.CLIP_VISION["l14"])
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    scheduler = getattr(diffusers, tiny.SCHEDULERS[family]["_class_name"])
    parts = {
        "unet": diffusers.UNet2DConditionModel(**cases.UNET[family], sample_size=8),
        "vae": diffusers.AutoencoderKL(**cases.VAE, **blocks),
        "text_encoder": transformers.CLIPTextModel(text_config),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(tokenizer),
        "scheduler": scheduler.from_config(tiny.SCHEDULERS[family]),
        "image_encoder": transformers.CLIPVisionModelWithProjection(vision_config),
        "feature_extractor": transformers.CLIPImageProcessor(),
    }
    if family == "sdxl":
        second = transformers.CLIPTextConfig(**cases.CLIP_TEXT["sdxl_2"] | text)
        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(second)
        parts["tokenizer_2"] = parts["tokenizer"]
    else:
        parts["safety_checker"] = None
    return PIPELINES[family](**parts)


def assert_same_weights(params: dict, module: torch.nn.Module) -> None:
    """Every number of a tree is that of a torch module, and the module has no others."""
    ours = {re.sub(r"^(text|vision)_model\.", "", k): v for k, v in cases.to_torch(params).items()}
    theirs = {re.sub(r"^(text|vision)_model\.", "", k): v for k, v in module.state_dict().items()}
    assert sorted(ours) == sorted(key for key in theirs if not key.endswith("position_ids"))
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key].float().numpy(), err_msg=key)


def test_torch_loads_what_is_written_here(written):
    family, base = written
    pipeline = PIPELINES[family].from_pretrained(base, dtype=torch.float32)
    ours = tiny.tiny_pipeline(base, family)
    for name in STEMS:
        component = getattr(ours, name)
        if component is not None:
            assert_same_weights(component.params, getattr(pipeline, name))
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.vae.config.scaling_factor == ours.vae.config["scaling_factor"]
    assert pipeline.feature_extractor.size == {"shortest_edge": 32}
    prompt = "a cat, 7 trees & É"
    assert pipeline.tokenizer(prompt).input_ids == ours.tokenizer(prompt).input_ids
    if family == "sdxl":
        assert pipeline.tokenizer_2.pad_token == "!"
        assert pipeline.config.force_zeros_for_empty_prompt


def test_torch_loads_half_precision_shards(written, tmp_path):
    family, base = written
    ours = load_pipeline(base)
    save_pipeline(tmp_path / "half", ours, dtype=np.float16, max_shard_size=100_000)
    assert len(list((tmp_path / "half" / "unet").glob("*-of-*.safetensors"))) > 3
    pipeline = PIPELINES[family].from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert pipeline.text_encoder.dtype == torch.float16
    for name in ("unet", "text_encoder"):
        half = jax.tree.map(lambda x: np.asarray(x).astype(np.float16), getattr(ours, name).params)
        assert_same_weights(half, getattr(pipeline, name))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "layout",
    [{}, {"max_shard_size": "100KB"}, {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "100KB"}],
)
def test_loads_what_torch_has_written(torch_pipelines, tmp_path, family, layout):
    source = torch_pipelines[family]
    source.save_pretrained(tmp_path, **layout)
    if "max_shard_size" in layout:
        assert list((tmp_path / "unet").glob("*.index*.json"))
    loaded = load_pipeline(tmp_path, variant=layout.get("variant"))
    for name in STEMS:
        component = getattr(loaded, name)
        assert (component is None) == (getattr(source, name, None) is None), name
        if component is not None:
            assert_same_weights(component.params, getattr(source, name))
    assert loaded.scheduler["prediction_type"] == source.scheduler.config.prediction_type
    assert loaded.preprocessor["size"] == {"shortest_edge": 224}
    assert loaded.tokenizer("a cat").input_ids == source.tokenizer("a cat").input_ids


def test_conversion_command_for_pickles_works(torch_pipelines, tmp_path):
    torch_pipelines["sd15"].save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="pickle") as error:
        load_pipeline(tmp_path, components=["vae"])
    (program,) = shlex.split(str(error.value).partition("python -c ")[2])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    loaded = load_pipeline(tmp_path, components=["vae"])
    assert_same_weights(loaded.vae.params, torch_pipelines["sd15"].vae)


def test_text_tower_of_a_whole_clip(torch_pipelines, tmp_path):
    torch_pipelines["sd15"].save_pretrained(tmp_path)
    text = transformers.CLIPTextConfig(**cases.CLIP_TEXT["sd15"], projection_dim=8)
    vision = transformers.CLIPVisionConfig(**cases.CLIP_VISION["b32"])
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    )
    whole.save_pretrained(tmp_path / "text_encoder")
    loaded = load_pipeline(tmp_path, components=["text_encoder"])
    assert_same_weights(loaded.text_encoder.params, whole.text_model)


def test_old_attention_names_mean_what_torch_takes_them_for(written, tmp_path):
    """Autoencoders saved before diffusers 0.17: other names, and 1x1 convolutions or linear layers."""
    _, base = written
    stored = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in stored.items():
        for new, name in old_names.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        old[key] = value
    assert any("proj_attn" in key for key in old)
    (tmp_path / "vae").mkdir()
    save_file(old, tmp_path / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for name in ("vae/config.json", "model_index.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    loaded = load_pipeline(tmp_path, components=["vae"])
    assert_same_weights(loaded.vae.params, diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae"))


def defaults(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default for p in parameters if p.name != "self" and p.default is not inspect.Parameter.empty
    }


def test_defaults_of_absent_keys_are_those_of_the_torch_classes():
    unet = defaults(diffusers.UNet2DConditionModel.__init__)
    theirs = {key: tuple(value) if isinstance(value, (tuple, list)) else value for key, value in unet.items()}
    assert configs.unet_arguments({}).items() <= theirs.items()
    assert configs.unet_inputs({})["cross_attention_dim"] == unet["cross_attention_dim"]
    assert configs.vae_arguments({}).items() <= defaults(diffusers.AutoencoderKL.__init__).items()
    text = transformers.CLIPTextConfig().to_dict()
    assert configs.clip_text_arguments({}, projection=True).items() <= text.items()
    vision = transformers.CLIPVisionConfig().to_dict()
    assert configs.clip_vision_arguments({}, projection=True).items() <= vision.items()


def test_full_torch_configs_are_understood():
    unet = diffusers.UNet2DConditionModel(**cases.UNET["sdxl"])
    understood = configs.unet_arguments(dict(unet.config))
    assert list(understood["attention_head_dim"]) == cases.UNET["sdxl"]["attention_head_dim"]
    vae = diffusers.AutoencoderKL(
        **cases.VAE, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4
    )
    assert configs.vae_arguments(dict(vae.config))["block_out_channels"] == (8, 8, 16, 16)
    text = transformers.CLIPTextConfig(**cases.CLIP_TEXT["sd15"]).to_dict()
    assert configs.clip_text_arguments(text)["hidden_size"] == 24
    vision = transformers.CLIPVisionConfig(**cases.CLIP_VISION["b32"]).to_dict()
    assert configs.clip_vision_arguments(vision)["patch_size"] == 16


@pytest.mark.parametrize("model", [diffusers.UNet2DConditionModel, diffusers.AutoencoderKL])
def test_no_option_of_the_torch_class_is_ignored(model):
    """A value that is no class's default either changes an argument of the network, or is refused by name."""
    is_unet = model is diffusers.UNet2DConditionModel
    arguments = configs.unet_arguments if is_unet else configs.vae_arguments
    harmless = {
        *("sample_size", "scaling_factor", "shift_factor", "force_upcast"),
        *("cross_attention_dim", "projection_class_embeddings_input_dim", "addition_embed_type_num_heads"),
    }
    plain = arguments({})
    for key, default in defaults(model.__init__).items():
        if key in harmless:
            continue
        for other in ("something", 7, 0.5, True, ["something"] * 4):
            if other == default or (isinstance(default, bool) and not isinstance(other, bool)):
                continue
            try:
                changed = arguments({key: other})
            except ValueError as error:
                assert key in str(error)
            else:
                assert changed != plain, (key, other)
