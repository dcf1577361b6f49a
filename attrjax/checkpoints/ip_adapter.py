"""IP-Adapter weights in: a second cross-attention that shows a picture to the UNet (Ye et al. 2023).

A file holds ``image_proj.*``, which makes tokens of CLIP's view of a picture, and
``ip_adapter.N.to_k_ip.weight`` and ``to_v_ip`` for the cross-attention layers. N counts all attention layers
in the order of torch diffusers' ``unet.attn_processors``, in which every second one is a cross-attention.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from attrjax.checkpoints.exchange import read_exchange_file
from attrjax.models.adapters import Strength, block_strengths
from attrjax.models.image_projection import ImageProjection, Resampler

Tree = dict

FILE_NAMES = ("ip-adapter_sd15.safetensors", "ip-adapter_sdxl.safetensors", "ip_adapter.safetensors")
# A key of ``image_proj`` that gives a variant away, the most specific first.
OTHER_VARIANTS = {
    "perceiver_resampler.proj_in.weight": "IP-Adapter FaceID Plus",
    "proj.3.weight": "IP-Adapter Full Face",
    "proj.0.weight": "IP-Adapter FaceID",
}
RESAMPLER_NAMES = {
    "0.norm1": "norm1",
    "0.norm2": "norm2",
    "0.to_q": "to_q",
    "0.to_k": "to_k",
    "0.to_v": "to_v",
    "0.to_out": "to_out",
    "1.0": "ff_norm",
    "1.1": "ff_in",
    "1.3": "ff_out",
}


class IPAdapter(NamedTuple):
    """What an IP-Adapter file holds.

    Attributes:
        projection: ``ImageProjection``, which reads a vision tower's ``image_embeds`` [B, P], or (Plus)
            ``Resampler``, which reads its penultimate hidden states [B, N, C]. The image context of an absent
            picture is that of zero embeddings (Plus: of the states of an all-zero input picture).
        projection_params: its parameters.
        unet_params: the leaves ``.../attn2/to_k_ip/kernel`` and ``.../attn2/to_v_ip/kernel``, to be added to
            the UNet's with ``add_to_unet``.
    """

    projection: nn.Module
    projection_params: Tree
    unet_params: Tree


def load_ip_adapter(path: str | Path, layers: Sequence[str], unet_params: Tree) -> IPAdapter:
    """Read an IP-Adapter file (basic or Plus) for a UNet.

    Args:
        path: a ``.safetensors`` file, or a directory with one of ``FILE_NAMES``.
        layers: ``cross_attention_names(unet)``.
        unet_params: the UNet's parameters or shapes, which the file is checked against.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for other variants (by name), and for keys that are missing, left over or mis-shaped.
    """
    file, tensors, _ = read_exchange_file(path, FILE_NAMES)
    parts: dict[str, dict[str, np.ndarray]] = {"image_proj": {}, "ip_adapter": {}}
    strangers = []
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor.astype(np.float32)
        else:
            strangers.append(key)
    if strangers or not all(parts.values()):
        found = ", ".join(strangers[:3]) or "only one of the two"
        raise ValueError(f"{file} is no IP-Adapter: its keys are image_proj.* and ip_adapter.*, not {found}")
    for marker, variant in OTHER_VARIANTS.items():
        if marker in parts["image_proj"]:
            raise ValueError(f"{file} is an {variant}; only the basic and the Plus IP-Adapter can be read")
    if loras := [key for key in parts["ip_adapter"] if "_lora." in key]:
        raise ValueError(f"{file} is an IP-Adapter FaceID (it has {loras[0]}), which cannot be read")
    unet = _attention_kernels(file, parts["ip_adapter"], layers, unet_params)
    width = next(iter(unet.values())).shape[0]
    try:
        plus = "latents" in parts["image_proj"]
        projection, params = (_resampler if plus else _image_projection)(parts["image_proj"])
    except KeyError as error:
        raise ValueError(f"{file} lacks image_proj.{error.args[0]}") from error
    if projection.features != width:
        raise ValueError(f"{file} projects to {projection.features} channels, its attention reads {width}")
    return IPAdapter(projection, unflatten_dict(params, sep="/"), unflatten_dict(unet, sep="/"))


def add_to_unet(params: Tree, adapter: IPAdapter) -> Tree:
    """The UNet's parameters with the adapter's key and value projections beside ``to_k`` and ``to_v``."""
    flat = flatten_dict(params, sep="/") | flatten_dict(adapter.unet_params, sep="/")
    return unflatten_dict(flat, sep="/")


def image_scales(scale: Strength, layers: Sequence[str]) -> Float[Array, " l"]:
    """The weight of the picture in each cross-attention layer, for the UNet's ``image_scale``.

    Args:
        scale: one number, or diffusers' dict for ``set_ip_adapter_scale``, such as ``{"up": {"block_0": [0.0,
            1.0, 0.0]}}`` (InstantStyle's style on SDXL): what it does not name is 0.
        layers: ``cross_attention_names(unet)``.

    Raises:
        ValueError: for a block that has no cross-attention or a list of the wrong length.
    """
    factors = block_strengths(scale, layers, known=layers, default=0.0)
    return jnp.stack([jnp.asarray(factor, jnp.float32) for factor in factors])


def _attention_kernels(
    file: Path, stored: Mapping[str, np.ndarray], layers: Sequence[str], unet_params: Tree
) -> dict[str, np.ndarray]:
    """{path: kernel [in, out]} of all key and value projections."""
    expected = {
        f"{2 * i + 1}.{name}.weight": f"{layer}/{name}/kernel"
        for i, layer in enumerate(layers)
        for name in ("to_k_ip", "to_v_ip")
    }
    missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{file} is for another UNet than this one of {len(layers)} cross-attention layers: "
            f"missing {', '.join(missing) or 'nothing'}; left over {', '.join(unexpected) or 'nothing'}"
        )
    flat = flatten_dict(unet_params, sep="/")
    widths = {layer: flat[f"{layer}/to_k/kernel"].shape[-1] for layer in layers}
    kernels = {path: stored[key].T for key, path in expected.items()}
    inputs = {kernel.shape[0] for kernel in kernels.values()}
    wrong = [
        f"{key} {list(stored[key].shape)}, the layer has {widths[path.rsplit('/', 2)[0]]} channels"
        for key, path in expected.items()
        if stored[key].shape[0] != widths[path.rsplit("/", 2)[0]]
    ]
    if wrong or len(inputs) != 1:
        listed = "\n  ".join(wrong) or f"contexts of {sorted(inputs)} channels"
        raise ValueError(f"{file} does not fit this UNet:\n  {listed}")
    return kernels


def _image_projection(stored: Mapping[str, np.ndarray]) -> tuple[ImageProjection, dict[str, np.ndarray]]:
    features = stored["norm.weight"].shape[0]
    params = {
        "proj/kernel": stored["proj.weight"].T,
        "proj/bias": stored["proj.bias"],
        "norm/scale": stored["norm.weight"],
        "norm/bias": stored["norm.bias"],
    }
    return ImageProjection(features, stored["proj.weight"].shape[0] // features), params


def _resampler(stored: Mapping[str, np.ndarray]) -> tuple[Resampler, dict[str, np.ndarray]]:
    """The published files' heads have 64 channels each; keys and values are one matrix there."""
    params: dict[str, np.ndarray] = {"latents": stored["latents"]}
    split = {}
    for key, tensor in stored.items():
        if key.endswith(".to_kv.weight"):
            split[key.replace("to_kv", "to_k")], split[key.replace("to_kv", "to_v")] = np.split(tensor, 2)
        elif key != "latents":
            split[key] = tensor
    for key, tensor in split.items():
        module, _, leaf = key.rpartition(".")
        if inside := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
            module = f"layers_{inside[1]}/{RESAMPLER_NAMES[inside[2]]}"
        name = "kernel" if tensor.ndim == 2 else "scale" if leaf == "weight" else "bias"
        params[f"{module}/{name}"] = tensor.T
    width = stored["proj_in.weight"].shape[0]
    projection = Resampler(
        features=stored["proj_out.weight"].shape[0],
        num_tokens=stored["latents"].shape[1],
        width=width,
        depth=len({key.split(".")[1] for key in stored if key.startswith("layers.")}),
        num_heads=stored["layers.0.0.to_q.weight"].shape[0] // 64,
        ff_multiplier=stored["layers.0.1.1.weight"].shape[0] // width,
    )
    return projection, params
