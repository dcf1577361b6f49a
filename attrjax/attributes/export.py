"""The task ``export``: learned attributes as other software reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax.traverse_util import unflatten_dict

from attrjax.attributes.apply import apply_attributes, sampling_timesteps
from attrjax.attrworld.bundled import base_or_bundled
from attrjax.checkpoints.attribute import Attribute, load_attribute, weights_digest
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.lora import save_lora
from attrjax.checkpoints.pipeline import load_pipeline, save_pipeline
from attrjax.checkpoints.textual_inversion import save_textual_inversion
from attrjax.diffusion.schedule import MAX_TIMESTEP
from attrjax.models.adapters import bind, merge
from attrjax.runs import check_run, write_record
from attrjax.sample import with_strengths

FORMATS = ("diffusers", "lora", "kohya", "textual_inversion")
FILES = {"lora": "pytorch_lora_weights.safetensors", "kohya": "kohya.safetensors"}


def export(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Write the config's attributes in its format.

    * ``diffusers``: ``workdir/base``, the base with the attributes in it, at their strengths.
    * ``lora`` and ``kohya``: the low-rank changes of one attribute, by diffusers' or kohya's names, and its
      word as ``learned_embeds.safetensors``.
    * ``textual_inversion``: its word alone.

    Raises:
        ValueError: the format is unknown or cannot hold what was learned, or as ``apply_attributes``.
        FileNotFoundError: there is no such attribute or base.
        FileExistsError: the run directory holds a run.
    """
    form, files = config["format"], config["attributes"]
    if form not in FORMATS:
        raise ValueError(f"format={form!r} must be one of {', '.join(FORMATS)}")
    chosen = with_strengths(files, config["attribute_strengths"], "attribute")
    if not chosen:
        raise ValueError(
            "attributes is empty: name what is exported, --config.attributes='(\"runs/shape\",)'"
        )
    if form != "diffusers" and len(files) > 1:
        raise ValueError(f"a file of format {form} holds one attribute: export them one by one")
    pairs = [(load_attribute(path), strength) for path, strength in chosen]
    for attribute, _ in pairs:
        if attribute.fusion is not None:
            raise ValueError(
                f"encoded prompts read {attribute.word} (its fusion is cross), which other software cannot: "
                "learn it with --config.fusion=placeholder to export it"
            )
    check_run(workdir, config, resume=resume, may_change=())
    for attribute, _ in pairs:
        if attribute.material is not None:
            logging.info(
                "pictures with %s are painted here and not by other software: it makes them as "
                "--config.paint_strength=0 does",
                attribute.word,
            )
    directory = Path(workdir)
    if form == "diffusers":
        written = [_save_base(config, pairs, directory / "base")]
    else:
        written = [_save_word(*pairs[0], directory)]
        if form != "textual_inversion":
            written.append(_save_lora(*pairs[0], directory, form))
    write_record(directory, config, {"results": {"written": [path.name for path in written]}})
    for path in written:
        logging.info("wrote %s", path)


def _save_base(config: Mapping[str, Any], pairs: list[tuple[Attribute, float]], path: Path) -> Path:
    variant = config["variant"] or None
    base = find_base(base_or_bundled(config["base"]), variant)
    # A directory has one set of weights: what was tuned acts at all timesteps there.
    pipeline, adapters, *_ = apply_attributes(
        load_pipeline(base, variant=variant),
        pairs,
        digest=weights_digest(base, variant),
        timesteps=[(0, MAX_TIMESTEP)] * len(pairs),
        force=config["force"],
    )
    limited = [one.word for one, _ in pairs if sampling_timesteps(one) != (0, MAX_TIMESTEP)]
    if limited:
        logging.info(
            "in the exported directory %s acts at all timesteps, as in samples with "
            "--config.attribute_timesteps of (0, %d): learn it with --config.sampling_timesteps=(0, 1000) "
            "for that",
            *(", ".join(limited), MAX_TIMESTEP),
        )
    if adapters:
        unet = pipeline.unet
        pipeline = pipeline._replace(unet=unet._replace(params=merge(unet.params, adapters["unet"])))
    save_pipeline(path, pipeline, dtype=np.dtype(config["dtype"]))
    return path


def _save_word(attribute: Attribute, strength: float, directory: Path) -> Path:
    vectors = attribute.origin + strength * (attribute.vectors - attribute.origin)
    return save_textual_inversion(directory, attribute.word, {"text_encoder": vectors})


def _save_lora(attribute: Attribute, strength: float, directory: Path, form: str) -> Path:
    names = {path.rsplit("/")[-1] for path in attribute.adapter}
    if attribute.weights or not names or not names <= {"lora_down", "lora_up", "alpha"}:
        raise ValueError(
            f"{attribute.word} changes more than a LoRA file holds: export it with format=diffusers, or "
            "learn it with --config.rule=lora:4"
        )
    adapter = bind(unflatten_dict(attribute.adapter, sep="/"), strength)
    names_as = "kohya" if form == "kohya" else "diffusers"
    return save_lora(directory / FILES[form], {"unet": adapter}, names=names_as)
