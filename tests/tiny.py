"""A whole base model of a few hundred kilobytes in diffusers layout, made without torch."""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import CLIPTokenizer

from attrjax.checkpoints.pipeline import Component, Pipeline, build_network, save_pipeline
from tests import cases

BOS, EOS = 998, 999  # the last two of cases' 1000 tokens, as in CLIP's own vocabulary
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS = {
    "sd15": _DDIM | _BETAS | {"num_train_timesteps": 1000, "steps_offset": 1},
    "sd21": _DDIM
    | _BETAS
    | {"num_train_timesteps": 1000, "steps_offset": 1, "prediction_type": "v_prediction"},
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    | _BETAS,
}
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 32},
}


def make_tiny_pipeline(directory: str | Path, family: str = "sd15", seed: int = 0) -> Path:
    """Write a base with random weights, pictures of 64x64, and an image encoder.

    Args:
        directory: where to; it must not exist, or be empty.
        family: "sd15", "sd21" or "sdxl".
        seed: of the weights.

    Returns:
        the directory.
    """
    directory = Path(directory)
    save_pipeline(directory, tiny_pipeline(directory, family, seed))
    return directory


def tiny_pipeline(path: str | Path, family: str, seed: int = 0) -> Pipeline:
    """What ``make_tiny_pipeline`` writes; ``path`` is where it is told to be from."""
    vae = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": 64,
        "scaling_factor": 0.13025 if family == "sdxl" else 0.18215,
    }
    text = {"bos_token_id": BOS, "pad_token_id": EOS, "model_type": "clip_text_model"}
    vision = cases.CLIP_VISION["l14"] | {"model_type": "clip_vision_model"}
    unet = cases.UNET[family] | {"_class_name": "UNet2DConditionModel", "sample_size": 8}
    networks = {
        "unet": _component("unet", unet, None, seed),
        "vae": _component("vae", cases.VAE | vae, None, seed),
        "text_encoder": _component("text_encoder", text | cases.CLIP_TEXT[family], "CLIPTextModel", seed),
        "text_encoder_2": None,
        "image_encoder": _component("image_encoder", vision, "CLIPVisionModelWithProjection", seed),
    }
    index = {"_class_name": "StableDiffusionPipeline"}
    if family == "sdxl":
        second = text | cases.CLIP_TEXT["sdxl_2"]
        networks["text_encoder_2"] = _component("text_encoder_2", second, "CLIPTextModelWithProjection", seed)
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    return Pipeline(
        path=Path(path),
        **networks,
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(pad_token="!") if family == "sdxl" else None,
        scheduler=dict(SCHEDULERS[family]),
        model_index=index,
        preprocessor=dict(PREPROCESSOR),
    )


def _component(name: str, config: dict, torch_class: str | None, seed: int) -> Component:
    module, abstract = build_network(name, config, torch_class)
    leaves = {
        path: random_leaf(f"{name}/{path}", leaf.shape, seed)
        for path, leaf in flatten_dict(abstract, sep="/").items()
    }
    return Component(module, unflatten_dict(leaves, sep="/"), config)


def random_leaf(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers that depend on all three: variance 1/fan-in for kernels, scales near 1, the others near 0."""
    numbers = np.random.default_rng([seed, zlib.crc32(path.encode())]).standard_normal(shape)
    if path.endswith("kernel"):
        numbers /= np.sqrt(np.prod(shape[:-1]))
    elif path.endswith("scale"):
        numbers = 1 + 0.1 * numbers
    else:
        numbers *= 0.1
    return numbers.astype(np.float32)


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of 1000: all bytes, and pairs of letters that end a word."""
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=77,
    )


def write_tokenizer_files(folder: Path) -> None:
    """The same as vocab.json and merges.txt alone, as in the published bases."""
    vocabulary, merges = _vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-level BPE in GPT-2's alphabet: printable bytes are themselves, the others are 256 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    pairs = [(first, f"{second}</w>") for first, second in itertools.product(letters, repeat=2)]
    merges = pairs[: BOS - 2 * len(alphabet)]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    return [*tokens, "<|startoftext|>", "<|endoftext|>"], merges
