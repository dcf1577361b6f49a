"""Small models of every family, with weights that any machine can make again: what the parity tests share.

A weight depends on its torch name and shape alone, so that recorded references hold inputs' seeds and outputs only.
"""

import zlib

import numpy as np

UNET = {
    "sd15": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32, 32, 48],
        "layers_per_block": 2,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    },
    "sd21": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32, 32, 48],
        "layers_per_block": 2,
        "attention_head_dim": [1, 2, 4, 4],
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
        "block_out_channels": [16, 32, 48],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 3],
        "attention_head_dim": [1, 2, 4],
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
        "block_out_channels": [16, 32, 48],
        "layers_per_block": 2,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "only_cross_attention": [True, True, False],
        "use_linear_projection": True,
        "num_class_embeds": 10,
    },
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


def unet_inputs(family: str, height: int = 16, width: int = 24) -> dict[str, np.ndarray]:
    """A batch of two, NHWC: sample, timesteps, context, an IP context of 3 tokens, and what the family adds."""
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
