"""The task ``bundle``: trained parts put together into a base in diffusers layout, float16, with a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from attrjax.checkpoints.files import read_json, write_json
from attrjax.checkpoints.pipeline import STEMS, Pipeline, load_component, load_tokenizer, save_pipeline
from attrjax.models.clip_vision import PIXEL_MEAN, PIXEL_STD
from attrjax.runs import check_run, plain, write_record

LARGEST = 40 * 10**6  # bytes that a base which ships with the package may have
CARD = Path(__file__).with_name("model_card.md")


def bundle(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Write ``workdir/base``.

    Args:
        config: ``vae``, ``unet``, ``text_encoder``, ``image_encoder`` and ``tokenizer`` are directories of
            the parts, ``scheduler`` is its config.

    Raises:
        FileNotFoundError, ValueError: a part is missing or damaged, or the base is too large to ship.
        FileExistsError: the run directory holds a base.
    """
    check_run(workdir, config, resume=resume, may_change=())
    networks: dict[str, Any] = {name: load_component(config[name], name) for name in STEMS if name in config}
    # Pipelines of torch diffusers take the first output of the text encoder for the context, and with a
    # projection that is another one.
    text = networks["text_encoder"]
    networks["text_encoder"] = text._replace(
        module=text.module.clone(projection_dim=None),
        params={name: leaf for name, leaf in text.params.items() if name != "text_projection"},
    )
    size = networks["image_encoder"].config["image_size"]
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
        "resample": 3,
        "size": {"shortest_edge": size},
    }
    pipeline = Pipeline(
        path=Path(workdir),
        **networks,
        text_encoder_2=None,
        tokenizer=load_tokenizer(Path(config["tokenizer"])),
        tokenizer_2=None,
        scheduler=plain(config["scheduler"]),
        model_index={"_class_name": "StableDiffusionPipeline"},
        preprocessor=preprocessor,
    )
    base = Path(workdir) / "base"
    save_pipeline(base, pipeline, dtype=np.float16)
    for name in ("text_encoder", "image_encoder"):
        # transformers computes in the type that is named here, diffusers in float32 whatever the files hold.
        path = base / name / "config.json"
        write_json(path, read_json(path) | {"torch_dtype": "float32"})
    (base / "README.md").write_text(CARD.read_text())
    total = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
    if total > LARGEST:
        raise ValueError(f"{base} has {total / 1e6:.1f} MB, and a base that ships may have {LARGEST / 1e6:g}")
    write_record(Path(workdir), config, {"results": {"bytes": total}})
    logging.info("wrote %s, %.1f MB", base, total / 1e6)
