"""Published shapes of the towers, under the names that torch's configs and our networks share."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from attrjax.models.clip_text import CLIPTextModel
from attrjax.models.clip_vision import CLIPVisionModel
from attrjax.models.vae import AutoencoderKL
from tests import cases

VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}

# SD 1.x and SDXL's first; SD 2.x, which leaves its last layer out; SDXL's second.
CLIP_TEXT = {
    "vit_l": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "openclip_h": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "openclip_bigg": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}
CLIP_VISION = {
    "b32": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
        "projection_dim": 512,
    },
    "l14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "h14": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}


def shapes(kind: str, name: str = "") -> dict[str, tuple[int, ...]]:
    """Torch names and torch shapes of every parameter of a network of ours, without making one."""
    if kind == "vae":
        module, inputs = AutoencoderKL(**VAE), jnp.zeros((1, 64, 64, 3))
    elif kind == "text":
        module, inputs = CLIPTextModel(**CLIP_TEXT[name]), jnp.zeros((1, 77), jnp.int32)
    else:
        module, inputs = CLIPVisionModel(**CLIP_VISION[name]), jnp.zeros((1, 224, 224, 3))
    abstract = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    flat = {path: leaf.shape for path, leaf in flatten_dict(abstract, sep="/").items()}
    return {
        cases.torch_name(path): tuple(shape[axis] for axis in cases.TO_TORCH[len(shape)])
        if path.endswith("kernel")
        else shape
        for path, shape in flat.items()
    }
