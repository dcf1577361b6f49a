"""A base model: a directory in diffusers layout, read into linen networks and written for torch diffusers."""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike

from attrjax.checkpoints import configs
from attrjax.checkpoints.files import find_weights, read_json, weight_names, write_json
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.params import Params, ShardingRule, load_params, save_params
from attrjax.models.abstract import for_shapes
from attrjax.models.clip_text import CLIPTextModel
from attrjax.models.clip_vision import CLIPVisionModel
from attrjax.models.unet import UNet2DCondition, abstract_params
from attrjax.models.vae import AutoencoderKL


class Component(NamedTuple):
    """A network, its parameters as nested dicts, and its ``config.json`` as read."""

    module: nn.Module
    params: Params
    config: dict[str, Any]


class Pipeline(NamedTuple):
    """A base model in memory. What was not asked for is None; so are parts that the base does not have.

    Attributes:
        path: the directory that it was read from.
        unet, vae, text_encoder, text_encoder_2, image_encoder: networks; the last two are optional.
        tokenizer, tokenizer_2: transformers' ``CLIPTokenizer``.
        scheduler: ``scheduler_config.json``.
        model_index: ``model_index.json``.
        preprocessor: ``preprocessor_config.json`` of the image encoder.
        fusions: what encoded prompts read besides, functions (ids [b, t], context [b, t, d]) to the context,
            of ``attributes.apply``. No directory holds them.
    """

    path: Path
    unet: Component
    vae: Component
    text_encoder: Component
    text_encoder_2: Component | None
    image_encoder: Component | None
    tokenizer: Any
    tokenizer_2: Any
    scheduler: dict[str, Any]
    model_index: dict[str, Any]
    preprocessor: dict[str, Any] | None
    fusions: tuple[Callable[..., Any], ...] = ()


# Networks: the stem of their weight files, and the torch classes that they may be of.
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
}
_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
TORCH_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
}
REQUIRED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
COMPONENTS = (*REQUIRED, "text_encoder_2", "image_encoder", "tokenizer_2", "preprocessor")
_LEFT_OUT = ("safety_checker", "feature_extractor")  # the second is what ``preprocessor`` is read from
_PREPROCESSOR = Path("feature_extractor", "preprocessor_config.json")


def load_pipeline(
    path_or_hub_id: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    components: Collection[str] | None = None,
    variant: str | None = None,
    shardings: ShardingRule | None = None,
    attention_implementation: str | None = None,
    remat: bool = False,
) -> Pipeline:
    """Read a Stable Diffusion 1.x, 2.x or XL base, without torch.

    Args:
        path_or_hub_id: a directory in diffusers layout, or "org/name" on the Hub.
        dtype: type that the networks compute in. An autoencoder whose config says ``force_upcast`` overflows
            in float16 and then computes in float32.
        param_dtype: type of the parameters; None is float32.
        components: names from ``COMPONENTS``; None is all that the base has.
        variant: such as "fp16", which weight files to read: ``diffusion_pytorch_model.fp16.safetensors``.
        shardings: from the "/"-path of a leaf, with the component's name before it (``unet/conv_in/kernel``),
            and its shape to its sharding; None, or a result of None, is the default device.
        attention_implementation, remat: passed on to all networks.

    Raises:
        FileNotFoundError: no such base, or a part of it is missing.
        ValueError: an unsupported option or class, damaged, pickled or ill-fitting weights.
    """
    unknown = sorted(set(components or ()) - set(COMPONENTS))
    if unknown:
        raise ValueError(f"there is no component {', '.join(unknown)}; there are {', '.join(COMPONENTS)}")
    base = find_base(path_or_hub_id, variant)
    index = _read_model_index(base, chosen=components is not None)
    names = _present(base, index) if components is None else list(components)
    for name in names:
        folder = base / (_PREPROCESSOR.parent if name == "preprocessor" else name)
        if not folder.is_dir():
            held = ", ".join(sorted(path.name for path in base.iterdir() if path.is_dir())) or "no folders"
            raise FileNotFoundError(f"{base} has no component {name!r}: looked for {folder}; it holds {held}")
    networks = [name for name in STEMS if name in names]
    if (
        variant is not None
        and networks
        and not any(_has_variant(base / name, STEMS[name], variant) for name in networks)
    ):
        looked_for = ", ".join(weight_names(STEMS[networks[0]], variant))
        raise FileNotFoundError(f"no component of {base} has weights of variant {variant!r} ({looked_for})")

    parts: dict[str, Any] = dict.fromkeys(COMPONENTS)
    options = {
        "dtype": dtype,
        "param_dtype": np.float32 if param_dtype is None else param_dtype,
        "attention_implementation": attention_implementation,
        "remat": remat,
    }
    for name in networks:
        torch_class = (index.get(name) or (None, None))[1]
        parts[name] = load_component(base / name, name, torch_class, options, variant, shardings)
    for name in ("tokenizer", "tokenizer_2"):
        if name in names:
            parts[name] = load_tokenizer(base / name)
    if "scheduler" in names:
        parts["scheduler"] = _read_config(base / "scheduler" / "scheduler_config.json")
    if "preprocessor" in names:
        parts["preprocessor"] = _read_config(base / _PREPROCESSOR)
    return Pipeline(path=base, model_index=index, **parts)


def components_of(base: Path) -> list[str]:
    """The names in ``COMPONENTS`` of what a base has.

    Raises:
        FileNotFoundError, ValueError: it is no base, or of a component or class that is not supported.
    """
    return _present(base, _read_model_index(base, chosen=False))


def build_network(
    name: str, config: Mapping[str, Any], torch_class: str | None = None, **options: Any
) -> tuple[nn.Module, Params]:
    """A component's network and the shapes of its parameters.

    Args:
        name: the component.
        config: its ``config.json``.
        torch_class: its class in ``model_index.json``, which tells CLIP towers with a projection from those
            without; None looks in the config.
        options: ``dtype``, ``param_dtype``, ``attention_implementation`` and ``remat`` of the network.

    Returns:
        the module, and its tree of ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: an option that the network does not have.
    """
    key = jax.random.key(0)
    if name == "unet":
        unet = UNet2DCondition(**configs.unet_arguments(config), **options)
        return unet, abstract_params(unet, **configs.unet_inputs(config))
    if name == "vae":
        if config.get("force_upcast") and options.get("dtype") == jnp.float16:
            options |= {"dtype": jnp.float32}
        vae = AutoencoderKL(**configs.vae_arguments(config), **options)
        side = 2 ** (len(vae.block_out_channels) - 1)
        return vae, _shapes_of(vae, key, jnp.zeros((1, side, side, vae.in_channels)))
    projection = None if torch_class is None else torch_class.endswith("WithProjection")
    if name == "image_encoder":
        vision = CLIPVisionModel(**configs.clip_vision_arguments(config, projection=projection), **options)
        pixels = jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels))
        return vision, _shapes_of(vision, key, pixels)
    text = CLIPTextModel(**configs.clip_text_arguments(config, projection=projection), **options)
    return text, _shapes_of(text, key, jnp.zeros((1, 1), jnp.int32))


def _shapes_of(network: nn.Module, *arguments: Any) -> Params:
    with for_shapes():
        return jax.eval_shape(network.init, *arguments)["params"]


def _read_model_index(base: Path, chosen: bool) -> dict[str, Any]:
    """``model_index.json``, its classes checked; ``chosen``: components of other kinds may be there."""
    path = base / "model_index.json"
    if not path.is_file():
        held = ", ".join(sorted(entry.name for entry in base.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{base} is no base in diffusers layout: it has no model_index.json; it holds {held}"
        )
    index = read_json(path)
    for name, entry in index.items():
        if not isinstance(entry, list) or name in _LEFT_OUT or entry[1] is None:
            continue
        if name not in COMPONENTS and not chosen:
            known = ", ".join(COMPONENTS)
            raise ValueError(
                f"{path} has a component {name!r} ({entry[1]}), which is not supported: "
                f"name those to load ({known})"
            )
        if name in TORCH_CLASSES and entry[1] not in TORCH_CLASSES[name]:
            supported = " or ".join(TORCH_CLASSES[name])
            raise ValueError(f"{path}: {name} of class {entry[1]} is not supported (supported: {supported})")
    return index


def _present(base: Path, index: Mapping[str, Any]) -> list[str]:
    """The components that a base has: those in its index, and folders of which the index says nothing."""
    names = list(REQUIRED)
    for name in ("text_encoder_2", "image_encoder", "tokenizer_2"):
        entry = index.get(name)
        if entry[1] is not None if entry else name not in index and (base / name).is_dir():
            names.append(name)
    return names + (["preprocessor"] if (base / _PREPROCESSOR).is_file() else [])


def _has_variant(folder: Path, stem: str, variant: str) -> bool:
    return any((folder / name).is_file() for name in weight_names(stem, variant))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: the base is incomplete, download or copy it again")
    return read_json(path)


def load_component(
    folder: str | Path,
    name: str,
    torch_class: str | None = None,
    options: Mapping[str, Any] | None = None,
    variant: str | None = None,
    shardings: ShardingRule | None = None,
) -> Component:
    """Read one network from its own folder.

    Args:
        folder: with ``config.json`` and weights.
        name: which component it is, a key of ``STEMS``.
        torch_class: as in ``build_network``.
        options: of the network, as in ``build_network``; None computes in float32.
        variant, shardings: as in ``load_pipeline``.

    Raises:
        FileNotFoundError: the folder lacks its config or its weights.
        ValueError: as ``load_pipeline``.
    """
    folder = Path(folder)
    options = options or {"dtype": jnp.float32, "param_dtype": np.float32}
    start = time.perf_counter()
    config = _read_config(folder / "config.json")
    find_weights(folder, STEMS[name], variant)  # a pickle is told before shapes are worked out
    module, abstract = build_network(name, config, torch_class, **options)
    params = load_params(
        folder,
        STEMS[name],
        abstract,
        dtype=options["param_dtype"],
        variant=variant,
        sharding=None if shardings is None else lambda path, shape: shardings(f"{name}/{path}", shape),
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    logging.info("%s: %.1fM parameters in %.1f s", folder, size, time.perf_counter() - start)
    return Component(module, params, config)


def load_tokenizer(folder: Path) -> Any:
    """Read a ``CLIPTokenizer`` from its folder.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
    """
    held = {path.name for path in folder.iterdir()}
    if not ({"vocab.json", "merges.txt"} <= held or "tokenizer.json" in held):
        raise FileNotFoundError(
            f"no tokenizer in {folder}: looked for vocab.json with merges.txt, or tokenizer.json; "
            f"it holds {', '.join(sorted(held)) or 'nothing'}"
        )
    from transformers import CLIPTokenizer  # takes seconds

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def save_pipeline(
    directory: str | Path,
    pipeline: Pipeline,
    *,
    dtype: DTypeLike = np.float32,
    max_shard_size: int = 10 * 10**9,
) -> None:
    """Write a base that torch diffusers loads with ``StableDiffusionPipeline.from_pretrained`` (or the XL
    one).

    It is written beside ``directory`` and renamed at the end, so that under that name there is all of it or
    nothing. A safety checker is not kept.

    Args:
        directory: where to; it must not exist, or be empty.
        pipeline: with all components that the base needs.
        dtype: type of the weights in the files: float16, bfloat16 or float32.
        max_shard_size: bytes beyond which a component's file is split.

    Raises:
        FileExistsError: there is something in ``directory``.
        ValueError: the pipeline was loaded without a component, or its numbers are beyond the range of
            ``dtype``.
        OSError: the disk is full, say; nothing is left of what was written.
    """
    directory = Path(os.path.abspath(directory))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: name another directory, or remove it")
    missing = [name for name in REQUIRED if getattr(pipeline, name) is None]
    if missing:
        raise ValueError(
            f"the pipeline was loaded without {', '.join(missing)}: load all components to save it"
        )
    if pipeline.fusions:
        raise ValueError(
            "a directory in diffusers layout cannot hold what encoded prompts read of an attribute: learn it "
            "with --config.fusion=placeholder"
        )
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_pipeline(partial, pipeline, np.dtype(dtype), max_shard_size)
        partial.rename(directory)
    except OSError as error:
        raise OSError(error.errno, f"nothing was saved to {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_pipeline(base: Path, pipeline: Pipeline, dtype: np.dtype, max_shard_size: int) -> None:
    index = {key: value for key, value in pipeline.model_index.items() if not isinstance(value, list)}
    index |= {key: [None, None] for key, value in pipeline.model_index.items() if isinstance(value, list)}
    default = "StableDiffusionPipeline" if pipeline.text_encoder_2 is None else "StableDiffusionXLPipeline"
    index["_class_name"] = index.get("_class_name", default).removeprefix("Flax")
    if pipeline.text_encoder_2 is None:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    index["scheduler"] = ["diffusers", pipeline.scheduler["_class_name"]]
    _write_config(base / "scheduler" / "scheduler_config.json", pipeline.scheduler)
    for name in STEMS:
        component = getattr(pipeline, name)
        if component is None:
            continue
        library = "diffusers" if name in ("unet", "vae") else "transformers"
        index[name] = [library, _torch_class(name, component.module)]
        save_component(base / name, name, component, dtype=dtype, max_shard_size=max_shard_size)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(pipeline, name)
        if tokenizer is not None:
            index[name] = ["transformers", "CLIPTokenizer"]
            save_tokenizer(base / name, tokenizer)
    if pipeline.preprocessor is not None:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        _write_config(base / _PREPROCESSOR, pipeline.preprocessor)
    write_json(base / "model_index.json", index)


def save_component(
    folder: str | Path,
    name: str,
    component: Component,
    *,
    dtype: DTypeLike = np.float32,
    max_shard_size: int = 10 * 10**9,
) -> None:
    """Write one network into its own folder: weights and, when they are there, ``config.json``.

    Files that are there are replaced by whole ones, so that a program that was killed here may write again.

    Args, raises: as ``save_pipeline``.
    """
    torch_class = _torch_class(name, component.module)
    config = dict(component.config)
    if name in ("unet", "vae"):
        config["_class_name"] = torch_class
    else:
        config.pop("dtype", None)  # transformers 5's name of the next
        config |= {"architectures": [torch_class], "torch_dtype": str(np.dtype(dtype))}
        config.setdefault("model_type", "clip_vision_model" if name == "image_encoder" else "clip_text_model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_params(folder, STEMS[name], component.params, dtype=np.dtype(dtype), max_shard_size=max_shard_size)
    write_json(folder / "config.json", config)


def _torch_class(name: str, module: nn.Module) -> str:
    if name in ("unet", "vae"):
        return TORCH_CLASSES[name][0]
    return TORCH_CLASSES[name][0 if module.projection_dim is None else 1]


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    write_json(path, dict(config))


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write the files of transformers' present version, and those that older ones read."""
    tokenizer.save_pretrained(str(folder))
    # How it was loaded is written down with it, and is nothing that the next reader should be told.
    config = read_json(folder / "tokenizer_config.json")
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    write_json(folder / "tokenizer_config.json", config)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
