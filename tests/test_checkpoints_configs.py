"""Config files: the published ones are understood in full, and no option is ignored."""

import jax
import pytest

from attrjax.checkpoints.configs import (
    clip_text_arguments,
    clip_vision_arguments,
    unet_arguments,
    unet_inputs,
    vae_arguments,
)
from attrjax.checkpoints.pipeline import build_network
from tests import published


@pytest.mark.parametrize(("name", "family"), published.SIZES)
def test_published_configs_give_networks_of_the_published_size(name, family):
    table = {"unet": published.UNET, "vae": published.VAE}.get(name, published.TEXT)
    _, abstract = build_network(name, table[family])
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == published.SIZES[name, family]


def test_published_options_arrive():
    unet = unet_arguments(published.UNET["sdxl"])
    assert unet["transformer_layers_per_block"] == (1, 2, 10)
    assert unet["upcast_attention"] is False  # null in the file
    assert unet["addition_embed_type"] == "text_time"
    assert unet_inputs(published.UNET["sdxl"]) == {"cross_attention_dim": 2048, "added_cond_dim": 2816}
    assert unet_inputs(published.UNET["sd15"]) == {"cross_attention_dim": 768, "added_cond_dim": None}
    assert unet_arguments(published.UNET["sd21"])["attention_head_dim"] == (5, 10, 20, 20)
    assert vae_arguments(published.VAE["sdxl"])["block_out_channels"] == (128, 256, 512, 512)
    assert clip_text_arguments(published.TEXT["sd15"])["eos_token_id"] == 2
    assert clip_vision_arguments(published.VISION_H14)["patch_size"] == 14


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "gelu"),
        ("addition_embed_type", "image"),
        ("addition_time_embed_dim", "256"),
        ("attention_head_dim", [5, 10]),
        ("attention_type", "gated"),
        ("block_out_channels", 320),
        ("class_embed_type", "timestep"),
        ("conv_in_kernel", 5),
        ("cross_attention_norm", "layer_norm"),
        ("down_block_types", ["AttnDownBlock2D"] * 4),
        ("down_block_types", ["DownBlock2D"]),
        ("dropout", 0.1),
        ("dual_cross_attention", True),
        ("encoder_hid_dim", 1024),
        ("flip_sin_to_cos", 1),
        ("mid_block_scale_factor", 2),
        ("mid_block_type", None),
        ("norm_num_groups", None),
        ("num_attention_heads", 8),
        ("resnet_time_scale_shift", "scale_shift"),
        ("time_cond_proj_dim", 256),
        ("time_embedding_type", "fourier"),
        ("transformer_layers_per_block", [[1, 1], [1, 1], [1, 1], [1, 1]]),
        ("an_option_of_next_year", 0),
        ("an_option_of_next_year", "on"),
    ],
)
def test_unsupported_unet_options_are_refused_by_name(key, value):
    with pytest.raises(ValueError) as error:
        unet_arguments(published.UNET["sd15"] | {key: value})
    message = str(error.value)
    assert message.startswith(f"unet config: {key} = ") and "supported: " in message and "\n" not in message
    shown = tuple(value) if isinstance(value, list) else value
    assert repr(value) in message or repr(shown) in message


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_an_unknown_option_that_is_switched_off_is_none(value):
    config = published.UNET["sd15"]
    assert unet_arguments(config | {"an_option_of_next_year": value}) == unet_arguments(config)


@pytest.mark.parametrize("key", ["addition_time_embed_dim", "projection_class_embeddings_input_dim"])
def test_text_time_needs_its_sizes(key):
    with pytest.raises(ValueError, match=f"unet config: {key} = None"):
        unet_arguments(published.UNET["sdxl"] | {key: None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "relu"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 4),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("latents_mean", [0.0, 0.1, 0.2, 0.3]),
        ("_class_name", "AutoencoderTiny"),
    ],
)
def test_unsupported_vae_options_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"^vae config: {key} = "):
        vae_arguments(published.VAE["sd15"] | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "relu"), ("hidden_size", None), ("rope_theta", 10_000.0), ("dropout", 0.1)],
)
def test_unsupported_clip_options_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"^text encoder config: {key} = "):
        clip_text_arguments(published.TEXT["sd15"] | {key: value})
    with pytest.raises(ValueError, match=f"^image encoder config: {key} = "):
        clip_vision_arguments(published.VISION_H14 | {key: value})


def test_the_class_decides_on_a_projection():
    config = published.TEXT["sd15"]
    assert clip_text_arguments(config)["projection_dim"] is None
    assert clip_text_arguments(config, projection=True)["projection_dim"] == 768
    assert clip_text_arguments(published.TEXT["sdxl_2"])["projection_dim"] == 1280
    assert clip_text_arguments(published.TEXT["sdxl_2"], projection=False)["projection_dim"] is None
    assert clip_vision_arguments(published.VISION_H14)["projection_dim"] == 1024


def test_the_config_of_a_whole_clip():
    whole = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "logit_scale_init_value": 2.6592,
        "projection_dim": 768,
        "text_config": published.TEXT["sd15"] | {"hidden_size": 1},
        "text_config_dict": {"hidden_size": 768},  # overrides the other, as in transformers
        "vision_config": published.VISION_H14,
    }
    assert clip_text_arguments(whole) == clip_text_arguments(published.TEXT["sd15"])
    assert clip_vision_arguments(whole, projection=True) == clip_vision_arguments(published.VISION_H14)
