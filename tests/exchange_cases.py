"""Adapters, words and files for the tests of what users pass around."""

from functools import cache

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from attrjax.models import adapters
from attrjax.models.clip_text import CLIPTextModel
from attrjax.models.unet import abstract_params
from tests import cases, unets


@cache
def trees() -> dict[str, dict]:
    """The shapes of SDXL's trained components, small."""
    config = cases.UNET["sdxl"]
    shapes = {
        "unet": abstract_params(
            unets.small_unet("sdxl"),
            cross_attention_dim=config["cross_attention_dim"],
            added_cond_dim=config["projection_class_embeddings_input_dim"],
        )
    }
    for component, name in (("text_encoder", "sdxl"), ("text_encoder_2", "sdxl_2")):
        module = CLIPTextModel(**cases.CLIP_TEXT[name])
        ids = np.zeros((1, 4), np.int32)
        shapes[component] = jax.eval_shape(lambda m=module, i=ids: m.init(jax.random.key(0), i))["params"]
    return shapes


def random_lora(tree: dict, rules: adapters.Rules, alpha: float | None = None, seed: int = 0) -> dict:
    """A LoRA adapter with no zeros in it."""
    random = np.random.RandomState(seed)
    abstract = jax.eval_shape(lambda: adapters.init_lora(jax.random.key(0), tree, rules))
    made = {
        path: random.standard_normal(leaf.shape).astype(np.float32) / leaf.shape[-1]
        for path, leaf in flatten_dict(abstract, sep="/").items()
    }
    if alpha is not None:
        made |= {f"{path}/alpha": np.float32(alpha) for path in adapters.modules_of(abstract)}
    return unflatten_dict(made, sep="/")


@cache
def lora_of_all() -> dict[str, dict]:
    """Linear and convolution layers of the UNet at two ranks, and both text towers."""
    unet_rules = [
        (".*(conv1|samplers_0/conv|conv_in|conv_shortcut)", 3),
        (".*(to_q|to_out_0|net_2|linear_1)", 2),
    ]
    text_rules = [(".*(q_proj|out_proj|fc1)", 2), (".*text_projection", 1)]
    return {
        "unet": random_lora(trees()["unet"], unet_rules, alpha=1.0),
        "text_encoder": random_lora(trees()["text_encoder"], text_rules[:1], seed=1),
        "text_encoder_2": random_lora(trees()["text_encoder_2"], text_rules, alpha=4.0, seed=2),
    }


def assert_same_effect(one: dict, other: dict) -> None:
    a, b = (flatten_dict(adapters.bind(adapter), sep="/") for adapter in (one, other))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-6, atol=0, err_msg=path)


def vectors(rows: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((rows, width)).astype(np.float32)


def ip_adapter_tensors(plus: bool, layers: int, channels: list[int]) -> dict[str, np.ndarray]:
    """Random weights under the published files' names: contexts of 24 channels from pictures of 10."""
    if plus:
        width, shapes = (
            128,
            {"latents": (1, 5, 128), "proj_in": (128, 10), "proj_out": (24, 128), "norm_out": (24,)},
        )
        for i in range(4):  # as many as diffusers expects
            shapes |= {f"layers.{i}.0.norm{n}": (width,) for n in (1, 2)} | {f"layers.{i}.1.0": (width,)}
            shapes |= {f"layers.{i}.0.to_q": (128, width), f"layers.{i}.0.to_kv": (256, width)}
            shapes |= {f"layers.{i}.0.to_out": (width, 128)}
            shapes |= {f"layers.{i}.1.1": (4 * width, width), f"layers.{i}.1.3": (width, 4 * width)}
    else:
        shapes = {"proj": (4 * 24, 10), "norm": (24,)}
    named = {}
    for name, shape in shapes.items():
        named[f"image_proj.{name}" if name == "latents" else f"image_proj.{name}.weight"] = shape
        if name in ("proj", "proj_in", "proj_out") or "norm" in name or name.endswith(".1.0"):
            named[f"image_proj.{name}.bias"] = shape[:1]
    for i in range(layers):
        named |= {f"ip_adapter.{2 * i + 1}.{name}_ip.weight": (channels[i], 24) for name in ("to_k", "to_v")}
    return cases.deterministic_weights(named)
