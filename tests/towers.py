"""The autoencoder and the CLIP towers on the small models of ``cases``: inputs, and what ours makes of them.

``vae``, ``text`` and ``vision`` return dicts with the keys and layouts of their namesakes in
``record_towers``. Pictures are NHWC; gradients are those of the parameters in ``GRADIENTS``, in torch's
layout.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from attrjax.models.clip_text import CLIPTextModel
from attrjax.models.clip_vision import CLIPVisionModel
from attrjax.models.vae import AutoencoderKL
from tests import cases

VAE_CASES = {
    "plain": cases.VAE,
    "two_blocks": cases.VAE | {"block_out_channels": [8, 16]},
    "no_attention": cases.VAE | {"block_out_channels": [8, 16], "mid_block_add_attention": False},
    "no_quant": cases.VAE
    | {
        "block_out_channels": [8, 16],
        "layers_per_block": 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
GRADIENTS = {
    "vae": (
        "encoder.down_blocks.1.resnets.0.conv1.weight",
        "encoder.mid_block.resnets.1.norm2.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.weight",
    ),
    "text": (
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
    ),
    "vision": (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.encoder.layers.1.mlp.fc1.bias",
    ),
}


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers that every machine draws alike."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def vae_inputs(name: str) -> dict[str, np.ndarray]:
    """A batch of pictures and of latents, and the directions in which gradients are taken."""
    factor = 2 ** (len(VAE_CASES[name]["block_out_channels"]) - 1)
    latents = (2, 6, 4, 4)
    pictures = (2, 6 * factor, 4 * factor, 3)
    return {
        "pictures": np.tanh(normal(0, *pictures)),
        "latents": normal(1, *latents),
        "mean": normal(2, *latents),
        "logvar": normal(3, *latents),
        "decoded": normal(4, *pictures),
    }


def text_inputs(name: str) -> dict[str, np.ndarray]:
    """Two prompts, one padded with the end token and one with zeros, and gradient directions."""
    ids = np.full((2, 11), 999)
    ids[:, 0] = 998
    ids[0, 1:6] = [5, 17, 801, 2, 9]
    ids[1, 1:4] = [330, 12, 44]
    ids[1, 5:] = 0
    config = cases.CLIP_TEXT[name]
    width = config.get("projection_dim") or config["hidden_size"]
    return {"input_ids": ids, "last": normal(5, 2, 11, config["hidden_size"]), "embeds": normal(6, 2, width)}


def vision_inputs(name: str) -> dict[str, np.ndarray]:
    """Two normalized pictures and gradient directions."""
    config = cases.CLIP_VISION[name]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    return {
        "pixels": normal(7, 2, 32, 32, 3),
        "last": normal(8, 2, 1 + patches, config["hidden_size"]),
        "embeds": normal(9, 2, config["projection_dim"]),
    }


def module_and_params(kind: str, name: str):
    """A small network and the parameters that ``deterministic_weights`` gives it."""
    if kind == "vae":
        config = VAE_CASES[name] | {"block_out_channels": tuple(VAE_CASES[name]["block_out_channels"])}
        module, inputs = AutoencoderKL(**config), vae_inputs(name)["pictures"]
    elif kind == "text":
        module, inputs = CLIPTextModel(**cases.CLIP_TEXT[name]), text_inputs(name)["input_ids"]
    else:
        module, inputs = CLIPVisionModel(**cases.CLIP_VISION[name]), vision_inputs(name)["pixels"]
    return module, cases.deterministic_params(module, inputs)


@partial(jax.jit, static_argnames=("module", "method"))
def apply(module: nn.Module, params: dict, *args, adapters=None, method: str | None = None, **named):
    """A network's answer, compiled once per module."""
    return module.apply({"params": params, "adapters": adapters or {}}, *args, method=method, **named)


def vae(name: str) -> dict[str, np.ndarray]:
    """Moments, decoded pictures and gradients of a case in ``VAE_CASES``."""
    module, params = module_and_params("vae", name)
    inputs = vae_inputs(name)

    def run(params):
        gaussian = module.apply({"params": params}, inputs["pictures"], method="encode")
        decoded = module.apply({"params": params}, inputs["latents"], method="decode")
        out = {"mean": gaussian.mean, "logvar": gaussian.logvar, "decoded": decoded}
        return sum(jnp.sum(value * inputs[key]) for key, value in out.items()), out

    out, gradients = value_and_gradients("vae", run, params)
    return jax.tree.map(np.asarray, out) | gradients


def text(name: str) -> dict[str, np.ndarray]:
    """Every state of a text tower in ``cases.CLIP_TEXT``, and gradients."""
    module, params = module_and_params("text", name)
    inputs = text_inputs(name)

    def run(params):
        out = module.apply({"params": params}, inputs["input_ids"])
        embeds = out.pooled if out.text_embeds is None else out.text_embeds
        return jnp.sum(out.last_hidden_state * inputs["last"]) + jnp.sum(embeds * inputs["embeds"]), out

    out, gradients = value_and_gradients("text", run, params)
    return named(out) | gradients


def vision(name: str) -> dict[str, np.ndarray]:
    """Every state of a vision tower in ``cases.CLIP_VISION``, and gradients."""
    module, params = module_and_params("vision", name)
    inputs = vision_inputs(name)

    def run(params):
        out = module.apply({"params": params}, inputs["pixels"])
        return jnp.sum(out.last_hidden_state * inputs["last"]) + jnp.sum(
            out.image_embeds * inputs["embeds"]
        ), out

    out, gradients = value_and_gradients("vision", run, params)
    return named(out) | gradients


def value_and_gradients(kind: str, run, params: dict):
    """The second of ``run(params) -> (loss, out)``, and the loss's gradients as ``gradient.NAME``."""
    flat = flatten_dict(params, sep="/")
    chosen = {path: value for path, value in flat.items() if cases.torch_name(path) in GRADIENTS[kind]}

    def loss(chosen):
        return run(unflatten_dict(flat | chosen, sep="/"))

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(chosen)
    gradients = cases.to_torch(unflatten_dict(gradients, sep="/"))
    return out, {f"gradient.{name}": value for name, value in gradients.items()}


def named(output) -> dict[str, np.ndarray]:
    """A tower's output as a flat dict, without what the tower does not have."""
    fields = output._asdict()
    fields |= {f"hidden_states.{i}": state for i, state in enumerate(fields.pop("hidden_states"))}
    return {key: np.asarray(value) for key, value in fields.items() if value is not None}
