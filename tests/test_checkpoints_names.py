"""Paths of linen trees, torch's names and the two layouts."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attrjax.checkpoints.names import (
    current_names,
    from_torch,
    path_to_key,
    to_torch,
    torch_shape,
)
from attrjax.checkpoints.pipeline import build_network
from tests import cases

VAE = cases.VAE | {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
BLOCK = "down_blocks_0/attentions_1/transformer_blocks_0"
TORCH_BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0"
NAMES = [
    ("conv_in/kernel", "conv_in.weight"),
    ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
    ("add_embedding/linear_2/bias", "add_embedding.linear_2.bias"),
    ("down_blocks_0/resnets_1/time_emb_proj/kernel", "down_blocks.0.resnets.1.time_emb_proj.weight"),
    ("up_blocks_1/upsamplers_0/conv/kernel", "up_blocks.1.upsamplers.0.conv.weight"),
    ("down_blocks_11/resnets_10/norm2/scale", "down_blocks.11.resnets.10.norm2.weight"),
    (f"{BLOCK}/attn1/to_out_0/kernel", f"{TORCH_BLOCK}.attn1.to_out.0.weight"),
    (f"{BLOCK}/attn2/to_k_ip/kernel", f"{TORCH_BLOCK}.attn2.to_k_ip.weight"),
    (f"{BLOCK}/ff/net_0/proj/kernel", f"{TORCH_BLOCK}.ff.net.0.proj.weight"),
    (f"{BLOCK}/ff/net_2/bias", f"{TORCH_BLOCK}.ff.net.2.bias"),
    ("class_embedding/embedding", "class_embedding.weight"),
    ("text_model/encoder/layers_3/mlp/fc1/kernel", "text_model.encoder.layers.3.mlp.fc1.weight"),
    ("text_model/embeddings/token_embedding/embedding", "text_model.embeddings.token_embedding.weight"),
    ("text_projection/kernel", "text_projection.weight"),
    ("vision_model/embeddings/class_embedding", "vision_model.embeddings.class_embedding"),
    ("vision_model/embeddings/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight"),
]


@pytest.mark.parametrize(("path", "key"), NAMES)
def test_names(path, key):
    assert path_to_key(path) == key


@pytest.mark.parametrize(
    ("name", "config"),
    [("unet", config) for config in cases.UNET.values()]
    + [("vae", VAE)]
    + [("text_encoder", config) for config in cases.CLIP_TEXT.values()]
    + [("image_encoder", cases.CLIP_VISION["l14"])],
)
def test_no_two_leaves_of_a_network_share_a_name(name, config):
    leaves = flatten_dict(build_network(name, config)[1], sep="/")
    keys = {path_to_key(path): path for path in leaves}
    assert len(keys) == len(leaves)


def test_layouts():
    linear = np.arange(6).reshape(2, 3)
    assert to_torch("a/kernel", linear).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert from_torch("a/kernel", to_torch("a/kernel", linear), (2, 3)).tolist() == linear.tolist()
    conv = np.random.default_rng(0).standard_normal((3, 1, 4, 5))
    stored = to_torch("a/kernel", conv)
    assert stored.shape == torch_shape("a/kernel", conv.shape) == (5, 4, 3, 1)
    assert stored[4, 2, 1, 0] == conv[1, 0, 2, 4]
    np.testing.assert_array_equal(from_torch("a/kernel", stored, conv.shape), conv)
    table = np.ones((7, 2))
    assert from_torch("token_embedding/embedding", table, (7, 2)) is table


def test_a_linear_layer_and_a_1x1_convolution_are_one():
    weight = np.arange(6.0).reshape(3, 2)  # [out, in]
    conv = from_torch("proj_in/kernel", weight, (1, 1, 2, 3))
    np.testing.assert_array_equal(conv[0, 0], weight.T)
    linear = from_torch("to_q/kernel", weight[:, :, None, None], (2, 3))
    np.testing.assert_array_equal(linear, weight.T)


@pytest.mark.parametrize(
    ("path", "stored", "shape"),
    [
        ("a/kernel", (2, 3), (2, 3)),  # transposed
        ("a/kernel", (3, 2, 3, 3), (2, 3)),
        ("a/kernel", (3, 2), (3, 3, 2, 3)),
        ("a/kernel", (6,), (2, 3)),
        ("a/scale", (4, 1), (4,)),
        ("token_embedding/embedding", (3, 2), (2, 3)),
    ],
)
def test_shapes_that_do_not_fit(path, stored, shape):
    assert from_torch(path, np.zeros(stored), shape) is None


def test_old_attention_of_autoencoders():
    new = [f"decoder.mid_block.attentions.0.{n}.weight" for n in ("to_q", "to_k", "to_v", "to_out.0")]
    old = [f"decoder.mid_block.attentions.0.{n}.weight" for n in ("query", "key", "value", "proj_attn")]
    assert current_names(old, new) == (dict(zip(new, old, strict=True)), [])


def test_clip_with_and_without_its_prefix():
    names = ["text_model.final_layer_norm.weight", "text_projection.weight"]
    bare = ["final_layer_norm.weight", "text_projection.weight"]
    assert current_names(names, names) == ({name: name for name in names}, [])
    assert current_names(bare, names) == (dict(zip(names, bare, strict=True)), [])


def test_what_is_left_out_and_what_is_not():
    expected = ["text_model.embeddings.token_embedding.weight"]
    other = ["text_model.embeddings.position_ids", "embeddings.position_ids"]
    assert current_names(expected + other, expected) == ({expected[0]: expected[0]}, [])
    extra = ["vision_model.post_layernorm.weight", "visual_projection.weight", "text_projection.weight"]
    assert current_names(expected + extra, expected)[1] == extra
    assert current_names([*expected, *extra, "logit_scale"], expected)[1] == []  # a whole CLIP
    unknown = ["logit_scale", "text_model.embeddings.extra"]
    assert current_names(expected + unknown, expected)[1] == ["text_model.embeddings.extra"]


def test_two_tensors_for_one_leaf():
    name = "text_model.final_layer_norm.weight"
    assert current_names([name, "final_layer_norm.weight"], [name])[1] == ["final_layer_norm.weight"]
