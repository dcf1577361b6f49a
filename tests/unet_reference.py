"""What torch diffusers' UNet answers on the small models of ``cases``; needs torch."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from tests.cases import UNET, deterministic_weights, unet_inputs

# Parameters whose gradients are compared: one down block and one up block with attention.
BLOCKS = ("down_blocks.1.", "up_blocks.1.")


def torch_unet(family: str) -> UNet2DConditionModel:
    """The family's small UNet with the deterministic weights."""
    net = UNet2DConditionModel(**UNET[family]).eval()
    weights = deterministic_weights({k: tuple(v.shape) for k, v in net.state_dict().items()})
    net.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    return net


def torch_call(net: UNet2DConditionModel, inputs: dict[str, np.ndarray]) -> torch.Tensor:
    """Its prediction for NHWC inputs, NHWC."""
    tensors = {k: torch.tensor(v) for k, v in inputs.items()}
    added = {k: tensors[k] for k in ("text_embeds", "time_ids") if k in tensors}
    out = net(
        tensors["sample"].permute(0, 3, 1, 2),
        tensors["timesteps"],
        tensors["context"],
        added_cond_kwargs=added or None,
        class_labels=tensors.get("class_labels"),
    ).sample
    return out.permute(0, 2, 3, 1)


def answers(family: str, height: int = 16, width: int = 24) -> dict[str, np.ndarray]:
    """``out`` [2, h, w, 4] and, under torch names, the gradients of mean(out^2) in ``BLOCKS``."""
    net = torch_unet(family)
    out = torch_call(net, unet_inputs(family, height, width))
    out.square().mean().backward()
    gradients = {k: p.grad.numpy() for k, p in net.named_parameters() if k.startswith(BLOCKS)}
    return {"out": out.detach().numpy(), **gradients}


def layer_answers(family: str, contexts: np.ndarray) -> np.ndarray:
    """The prediction where cross-attention layer i, in ``attn_processors`` order, reads ``contexts[i]``."""
    net = torch_unet(family)
    names = [n.removesuffix(".processor") for n in net.attn_processors if "attn2" in n]
    for name, context in zip(names, torch.tensor(contexts), strict=True):

        def read(module, args, kwargs, context=context):
            return args, {**kwargs, "encoder_hidden_states": context}

        net.get_submodule(name).register_forward_pre_hook(read, with_kwargs=True)
    with torch.no_grad():
        return torch_call(net, unet_inputs(family)).numpy()


def layer_contexts(family: str, layers: int) -> np.ndarray:
    """A different context for every layer, [L, 2, 7, D]."""
    shape = (layers, 2, 7, UNET[family]["cross_attention_dim"])
    return np.random.RandomState(11).standard_normal(shape).astype(np.float32)
