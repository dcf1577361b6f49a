"""LoRA files: round trips in every spelling, and what is refused."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from attrjax.checkpoints.lora import ldm_module_names, load_lora, module_name, save_lora
from attrjax.checkpoints.textual_inversion import load_textual_inversion
from attrjax.models import adapters
from attrjax.models.unet import UNet2DCondition, abstract_params
from tests.exchange_cases import assert_same_effect, lora_of_all, trees


@pytest.mark.parametrize("names", ["diffusers", "peft", "kohya"])
def test_lora_round_trip(tmp_path, names):
    saved = lora_of_all()
    file = save_lora(tmp_path, saved, names=names, metadata={"trained_on": "two pictures"})
    loaded = load_lora(tmp_path, trees())
    assert loaded.keys() == saved.keys()
    for component in saved:
        assert_same_effect(loaded[component], saved[component])
    if names != "diffusers":
        assert all(leaves["alpha"] == 1.0 for leaves in adapters.modules_of(loaded["unet"]).values())
        assert flatten_dict(loaded["text_encoder"]).keys() == flatten_dict(saved["text_encoder"]).keys()
    assert b"two pictures" in file.read_bytes()


def test_names_in_files_are_those_that_others_write(tmp_path):
    expected = {
        "diffusers": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.down.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        ),
        "peft": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
        ),
        "kohya": (
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
            "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.alpha",
        ),
    }
    for names, keys in expected.items():
        tensors = load_file(save_lora(tmp_path / names, lora_of_all(), names=names))
        assert tensors.keys() >= set(keys)
        assert tensors[keys[0]].shape == (2, 16)
        assert tensors[keys[1]].shape == (8, 2)
    conv = load_file(tmp_path / "kohya" / "pytorch_lora_weights.safetensors")
    assert conv["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape == (3, 8, 3, 3)
    assert conv["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"].shape == (8, 3, 1, 1)
    one_tower = save_lora(
        tmp_path / "sd15.safetensors", {"text_encoder": lora_of_all()["text_encoder"]}, names="kohya"
    )
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha" in load_file(one_tower)


def respell(tmp_path, names: str, change) -> dict:
    """The LoRA of all components, read from a file whose keys ``change`` has rewritten."""
    file = save_lora(tmp_path / "file.safetensors", lora_of_all(), names=names)
    tensors = {change(key): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file)
    return load_lora(file, trees())


def test_older_spellings_are_read(tmp_path):
    def processor(key: str) -> str:
        key = key.replace("lora_linear_layer", "lora")
        for ending, slot in (
            ("to_q", "to_q"),
            ("to_out.0", "to_out"),
            ("q_proj", "to_q"),
            ("out_proj", "to_out"),
        ):
            inner = ".processor" if key.startswith("unet") else ""
            for attention in ("attn1", "attn2", "self_attn"):
                key = key.replace(f"{attention}.{ending}.lora.", f"{attention}{inner}.{slot}_lora.")
        return key

    spellings = {
        "processor": ("diffusers", processor),
        "no text_model": ("diffusers", lambda key: key.replace("text_model.", "")),
        "adapter name": (
            "diffusers",
            lambda key: key.replace("lora.down", "lora_A.default").replace("lora.up", "lora_B.default"),
        ),
    }
    for name, (names, change) in spellings.items():
        loaded = respell(tmp_path, names, change)
        for component, adapter in lora_of_all().items():
            assert_same_effect(loaded[component], adapter), name


def test_a_peft_folder_with_its_config_is_read(tmp_path):
    saved = {"unet": lora_of_all()["unet"]}
    file = save_lora(tmp_path / "file.safetensors", saved, names="peft")
    tensors = {"base_model.model." + key.removeprefix("unet."): t for key, t in load_file(file).items()}
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 1.0, "alpha_pattern": {}, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert_same_effect(load_lora(folder, {"unet": trees()["unet"]})["unet"], saved["unet"])
    patterned = config | {"lora_alpha": 8, "alpha_pattern": {r"mid_block\..*": 6}, "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(patterned))
    loaded = adapters.modules_of(load_lora(folder, {"unet": trees()["unet"]})["unet"])
    for path, leaves in loaded.items():
        rank = leaves["lora_down"].shape[-1]
        expected = (6 if path.startswith("mid_block") else 8) / rank**0.5
        assert leaves["alpha"] / rank == pytest.approx(expected), path
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="DoRA"):
        load_lora(folder, {"unet": trees()["unet"]})


def test_original_block_names_of_sdxl():
    unet = UNet2DCondition(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
    )
    modules = list(adapters.kernel_shapes(abstract_params(unet, cross_attention_dim=8, added_cond_dim=64)))
    names = ldm_module_names(modules)
    assert set(names) == set(modules) and len(set(names.values())) == len(names)
    # As sgm's UNetModel numbers them (Stability-AI/generative-models, openaimodel.py).
    for module, name in {
        "conv_in": "input_blocks.0.0",
        "down_blocks_0/resnets_1/conv1": "input_blocks.2.0.in_layers.2",
        "down_blocks_0/downsamplers_0/conv": "input_blocks.3.0.op",
        "down_blocks_1/resnets_0/conv_shortcut": "input_blocks.4.0.skip_connection",
        "down_blocks_2/attentions_1/proj_in": "input_blocks.8.1.proj_in",
        "down_blocks_2/attentions_1/transformer_blocks_2/attn2/to_out_0": (
            "input_blocks.8.1.transformer_blocks.2.attn2.to_out.0"
        ),
        "mid_block/resnets_1/time_emb_proj": "middle_block.2.emb_layers.1",
        "up_blocks_0/attentions_1/transformer_blocks_0/ff/net_0/proj": (
            "output_blocks.1.1.transformer_blocks.0.ff.net.0.proj"
        ),
        "up_blocks_0/upsamplers_0/conv": "output_blocks.2.2.conv",
        "up_blocks_2/resnets_2/conv2": "output_blocks.8.0.out_layers.3",
        "time_embedding/linear_2": "time_embed.2",
        "add_embedding/linear_1": "label_emb.0.0",
        "conv_out": "out.2",
    }.items():
        assert names[module] == name


def test_kohya_files_with_original_block_names_are_read(tmp_path):
    original = ldm_module_names(list(adapters.kernel_shapes(trees()["unet"])))
    kohya = {module_name(m).replace(".", "_"): name.replace(".", "_") for m, name in original.items()}

    def change(key: str) -> str:
        name, _, rest = key.partition(".")
        return f"lora_unet_{kohya[name[10:]]}.{rest}" if name.startswith("lora_unet_") else key

    loaded = respell(tmp_path, "kohya", change)
    assert_same_effect(loaded["unet"], lora_of_all()["unet"])


def test_lora_files_that_do_not_fit_are_refused_with_all_their_keys(tmp_path):
    file = save_lora(tmp_path / "a.safetensors", lora_of_all(), names="kohya")
    tensors = load_file(file)
    with pytest.raises(ValueError, match="match no weight of unet") as error:
        load_lora(file, {"unet": trees()["unet"]})
    assert all(key in str(error.value) for key in tensors if key.startswith("lora_te"))
    name = "lora_unet_conv_in.lora_up.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="unet.conv_in: the up factor is missing"):
        load_lora(tmp_path / "half.safetensors", trees())
    save_file(tensors | {name: np.ones((5, 3, 1, 1), np.float32)}, tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match=r"factors \[3, 4, 3, 3\] and \[5, 3, 1, 1\].*kernel \[3, 3, 4, 8\]"):
        load_lora(tmp_path / "shape.safetensors", trees())


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("unet.conv_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
        ("lora_unet_conv_in.lora_mid.weight", "Tucker"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path, key, method):
    file = tmp_path / "other.safetensors"
    save_file({key: np.ones((1, 1), np.float32)}, file)
    with pytest.raises(ValueError, match=method):
        load_lora(file, trees())


def test_unreadable_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_lora(tmp_path / "nothing.safetensors", trees())
    with pytest.raises(FileNotFoundError, match="holds none of pytorch_lora_weights.safetensors"):
        load_lora(tmp_path, trees())
    pickled = tmp_path / "learned_embeds.bin"
    pickled.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="is a pickle.*save_file"):
        load_textual_inversion(pickled)
    whole = save_lora(tmp_path / "a.safetensors", {"text_encoder": lora_of_all()["text_encoder"]})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut.safetensors is damaged"):
        load_lora(cut, trees())


def test_what_lora_files_cannot_hold_is_not_written(tmp_path):
    shapes = trees()["unet"]
    offsets = adapters.init_offsets(jax.random.key(0), shapes, [("conv_in", 1)])
    with pytest.raises(ValueError, match="multiplicative offsets at conv_in"):
        save_lora(tmp_path, {"unet": offsets})
    with pytest.raises(ValueError, match="not vae"):
        save_lora(tmp_path, {"vae": {}})
    with pytest.raises(ValueError, match="not 'a1111'"):
        save_lora(tmp_path, {}, names="a1111")
    assert not list(tmp_path.iterdir())
