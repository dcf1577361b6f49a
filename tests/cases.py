"""Small models of every family, with weights that any machine can make again: what the parity tests share.

A weight depends on its torch name and shape alone, so that recorded references hold inputs' seeds and outputs
only.
"""

import re
import zlib

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

UNET = {
    "sd15": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16, 16, 24],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    },
    "sd21": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16, 16, 24],
        "layers_per_block": 1,
        "attention_head_dim": [1, 2, 2, 3],
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16, 24],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 2, 3],
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    "upscaler": {
        "in_channels": 7,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16, 24],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "only_cross_attention": [True, False, True],
        "use_linear_projection": True,
        "num_class_embeds": 10,
    },
}

# One autoencoder serves all families: a picture is eight times as large as its latents.
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}

# Widths fit UNET: SDXL's context joins both of its towers, and its text_embeds come from the second.
CLIP_TEXT = {
    "sd15": {"hidden_size": 24, "hidden_act": "quick_gelu", "num_hidden_layers": 3, "eos_token_id": 2},
    "sd21": {"hidden_size": 24, "hidden_act": "gelu", "num_hidden_layers": 2, "eos_token_id": 2},
    "sdxl": {"hidden_size": 8, "hidden_act": "quick_gelu", "num_hidden_layers": 3, "eos_token_id": 2},
    "sdxl_2": {
        "hidden_size": 16,
        "hidden_act": "gelu",
        "num_hidden_layers": 3,
        "eos_token_id": 999,
        "projection_dim": 16,
    },
}
for _config in CLIP_TEXT.values():
    _config |= {
        "vocab_size": 1000,
        "intermediate_size": 2 * _config["hidden_size"],
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    }

CLIP_VISION = {
    "b32": {"hidden_size": 16, "patch_size": 16, "hidden_act": "quick_gelu", "projection_dim": 8},
    "l14": {"hidden_size": 24, "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 16},
    "h14": {"hidden_size": 32, "patch_size": 8, "hidden_act": "gelu", "projection_dim": 24},
}
for _config in CLIP_VISION.values():
    _config |= {
        "image_size": 32,
        "intermediate_size": 2 * _config["hidden_size"],
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }


def deterministic_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 weights for torch names: matrices of variance 1/fan-in, norm scales near 1, biases near 0."""
    weights = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            random = random / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            random = 1 + 0.1 * random
        else:
            random = 0.1 * random
        weights[name] = random.astype(np.float32)
    return weights


LISTS = (
    "down_blocks up_blocks resnets attentions downsamplers upsamplers transformer_blocks to_out net layers"
)
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}  # the axes of a kernel: [in, out], and HWIO to OIHW


def torch_name(path: str) -> str:
    """The torch key of a "/"-path in a linen tree."""
    *modules, leaf = path.split("/")
    modules = [re.sub(rf"^({LISTS.replace(' ', '|')})_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def to_torch(params: dict) -> dict[str, np.ndarray]:
    """A linen tree under torch's names and in torch's layout."""
    flat = {path: np.asarray(value) for path, value in flatten_dict(params, sep="/").items()}
    return {
        torch_name(path): value.transpose(TO_TORCH[value.ndim]) if path.endswith("kernel") else value
        for path, value in flat.items()
    }


def deterministic_params(module: nn.Module, *inputs: np.ndarray, **named: object) -> dict:
    """The tree of a network with ``deterministic_weights`` of its torch names."""
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **named))["params"]
    flat = {}
    for path, leaf in flatten_dict(abstract, sep="/").items():
        name, axes = torch_name(path), TO_TORCH[len(leaf.shape)] if path.endswith("kernel") else None
        if axes is None:
            flat[path] = deterministic_weights({name: leaf.shape})[name]
        else:
            shape = tuple(leaf.shape[axis] for axis in axes)
            flat[path] = deterministic_weights({name: shape})[name].transpose(np.argsort(axes))
    return unflatten_dict(flat, sep="/")


def unet_inputs(family: str, height: int = 16, width: int = 24) -> dict[str, np.ndarray]:
    """A batch of two, NHWC: sample, timesteps, context, an IP context, and what the family adds."""
    config = UNET[family]
    random = np.random.RandomState(7)
    inputs = {
        "sample": random.standard_normal((2, height, width, config["in_channels"])),
        "timesteps": np.array([999.0, 17.0]),
        "context": random.standard_normal((2, 7, config["cross_attention_dim"])),
        "image_context": random.standard_normal((2, 3, config["cross_attention_dim"])),
    }
    if "projection_class_embeddings_input_dim" in config:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["text_embeds"] = random.standard_normal((2, pooled))
        inputs["time_ids"] = np.array([[512, 512, 0, 0, 512, 512], [640, 384, 8, 16, 640, 384]])
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    if "num_class_embeds" in config:
        inputs["class_labels"] = np.array([3, 9])
    return inputs


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the reference's largest magnitude."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"{ours.shape} is not {reference.shape}"
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
