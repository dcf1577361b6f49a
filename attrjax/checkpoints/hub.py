"""Base models, and image encoders for those that have none, by path or by Hub id."""

import re
from pathlib import Path

from attrjax.checkpoints.files import PICKLES, read_json

FOLDERS = (
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "image_encoder",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
    "feature_extractor",
)
WEIGHT_FOLDERS = FOLDERS[:5]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXED = "*/*.*.safetensors"  # a name with two dots is a variant's: model.fp16.safetensors
_TOWER = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def find_base(path_or_hub_id: str | Path, variant: str | None = None) -> Path:
    """The folder of a base model: as given, or downloaded from the Hub (or found in its cache).

    Raises:
        FileNotFoundError: no such folder, and no Hub id or none that can be fetched.
        ValueError: a single file: says how to make a folder of it.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        kind = "a pickle" if path.suffix in PICKLES else "a single file"
        raise ValueError(
            f"{path} is {kind}; a base model is a folder in diffusers layout. If you trust it, convert it "
            "where torch and diffusers are installed: python -c "
            f"\"import diffusers as d; d.StableDiffusionPipeline.from_single_file('{path}')"
            f".save_pretrained('{path.with_suffix('')}')\" (StableDiffusionXLPipeline for SDXL)"
        )
    return download(_hub_id(path_or_hub_id, path), variant)


def find_image_encoder(path_or_hub_id: str | Path) -> Path:
    """The folder of a CLIP vision tower, alone or in a whole CLIP: as given, or of the Hub as ``find_base``.

    Args:
        path_or_hub_id: a folder with ``config.json`` and safetensors, or one in which ``image_encoder`` is
            such a folder: a base's. Or "org/name" on the Hub, such as openai/clip-vit-large-patch14.

    Raises:
        FileNotFoundError: no such folder, and no Hub id or none that can be fetched.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        inside = path / "image_encoder"
        return inside if inside.is_dir() and not (path / "config.json").is_file() else path
    return _fetch(_hub_id(path_or_hub_id, path), _TOWER, None)


def _hub_id(path_or_hub_id: str | Path, path: Path) -> str:
    """The name of what is no folder, where it can be one of the Hub's."""
    name = str(path_or_hub_id)
    if not _HUB_ID.fullmatch(name) or name.split("/")[0] in (".", ".."):
        raise FileNotFoundError(f"there is no folder {path}, and it is no Hub id such as org/name")
    return name


def download(hub_id: str, variant: str | None = None) -> Path:
    """Fetch configs, tokenizers and safetensors of a base from the Hub, never a pickle; what is cached is not
    fetched.

    ``HF_HUB_OFFLINE=1`` restricts it to the cache, as everywhere in the Hub's library.

    Args:
        hub_id: "org/name".
        variant: such as "fp16": its weights are fetched where a component has them, plain ones elsewhere.

    Raises:
        FileNotFoundError: the id is unknown, or private, or there is neither a network nor a cached copy.
    """
    notes = ["model_index.json"] + [f"{folder}/*.{kind}" for folder in FOLDERS for kind in ("json", "txt")]
    # What recognizes an attribute has no variants, and comes with either.
    notes.append("filters/*.safetensors")
    plain = [f"{folder}/*.safetensors" for folder in WEIGHT_FOLDERS]
    of_variant = [
        f"{folder}/*.{variant}{end}"
        for folder in WEIGHT_FOLDERS
        for end in (".safetensors", "-*.safetensors")
    ]

    if variant is None:
        return _fetch(hub_id, notes + plain, _SUFFIXED)
    folder = _fetch(hub_id, notes + of_variant, None)
    index = folder / "model_index.json"
    named = [name for name in (read_json(index) if index.is_file() else {}) if name in WEIGHT_FOLDERS]
    lacking = [name for name in named if not any((folder / name).glob("*.safetensors"))]
    plain = [f"{name}/*.safetensors" for name in lacking]
    return _fetch(hub_id, plain, _SUFFIXED) if lacking else folder


def _fetch(hub_id: str, patterns: list[str], ignored: str | None) -> Path:
    """The folder with the files of a Hub's repository whose names are like one of the patterns."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=ignored)
        )
    except Exception as error:  # requests', httpx' and the Hub's own, which differ between versions
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"there is no folder {hub_id}, and the Hub gave nothing of that name "
            f"({type(error).__name__}: {reason}); pass a folder, or check the id and the network"
        ) from error
