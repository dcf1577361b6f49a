"""Our UNet on the small models of ``cases``, under the names that ``unet_reference`` gives its answers."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from attrjax.models.unet import UNet2DCondition
from tests import cases

# Blocks whose gradients are compared: one of the encoder and one of the decoder, both with attention.
BLOCKS = ("down_blocks_1", "up_blocks_1")

# Two levels, for tests of what does not depend on depth.
SHALLOW = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
}


def small_unet(family: str, **named) -> UNet2DCondition:
    """The family's network; ``named`` replaces attributes."""
    outside = ("cross_attention_dim", "projection_class_embeddings_input_dim")
    config = {k: v for k, v in cases.UNET[family].items() if k not in outside}
    return UNet2DCondition(**{k: tuple(v) if isinstance(v, list) else v for k, v in (config | named).items()})


def extras(inputs: dict[str, np.ndarray]) -> dict:
    """The keyword arguments that SDXL and the upscaler call for."""
    added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs}
    return {"added_cond": added or None, "class_labels": inputs.get("class_labels")}


@cache
def params_of(family: str) -> dict:
    """Deterministic weights as a tree."""
    inputs = cases.unet_inputs(family)
    call = (inputs["sample"], inputs["timesteps"], inputs["context"])
    return cases.deterministic_params(small_unet(family), *call, **extras(inputs))


def predict(
    family: str, unet: UNet2DCondition, params: dict, height: int = 16, width: int = 24, **named
) -> jax.Array:
    """The prediction for ``unet_inputs``; ``named`` adds to or replaces what the network is called with."""
    inputs = cases.unet_inputs(family, height, width)
    context: ArrayLike = named.pop("context", inputs["context"])

    @jax.jit
    def call(params: dict, context: ArrayLike) -> jax.Array:
        inside = (inputs["sample"], inputs["timesteps"], context)
        return unet.apply({"params": params}, *inside, **(extras(inputs) | named))

    return call(params, context)


def answers(family: str, height: int = 16, width: int = 24, **named) -> dict[str, np.ndarray]:
    """``out`` and the gradients of mean(out^2) in ``BLOCKS``, in torch's names and layout."""
    unet, inputs = small_unet(family, **named), cases.unet_inputs(family, height, width)
    params = params_of(family)

    def loss(trainable: dict) -> tuple[jax.Array, jax.Array]:
        call = (inputs["sample"], inputs["timesteps"], inputs["context"])
        out = unet.apply({"params": params | trainable}, *call, **extras(inputs))
        return jnp.square(out).mean(), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))({block: params[block] for block in BLOCKS})
    return {"out": np.asarray(out), **cases.to_torch(gradients)}
