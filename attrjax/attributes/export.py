"""The task ``export``: learned attributes as other software reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax.traverse_util import unflatten_dict

from attrjax.attributes.apply import apply_attributes, guidance_of, sampling_timesteps
from attrjax.attrworld.bundled import base_or_bundled
from attrjax.checkpoints.attribute import Attribute, load_attribute, weights_digest
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.lora import save_lora
from attrjax.checkpoints.pipeline import load_pipeline, save_pipeline
from attrjax.checkpoints.textual_inversion import save_textual_inversion
from attrjax.diffusion.schedule import MAX_TIMESTEP
from attrjax.models.adapters import bind, merge
from attrjax.runs import check_run, write_record
from attrjax.sample_parts import with_strengths

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
        if lost := _lost(attribute, form):
            logging.warning(
                "other software makes other pictures with %s: %s", attribute.word, "; ".join(lost)
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


def _lost(attribute: Attribute, form: str) -> list[str]:
    """What of an attribute a format cannot hold, each with what to learn it with so that there is none."""
    always, recipe, lost = (0, MAX_TIMESTEP), attribute.recipe, []

    def without(what: str, flag: str) -> None:
        lost.append(f"{what} (learn it with --config.{flag})")

    low, high = sampling_timesteps(attribute)
    if form == "textual_inversion" and (attribute.weights or attribute.adapter):
        lost.append("what was tuned of the UNet is left out (another format holds it)")
    elif (low, high) != always:
        without(
            f"what was tuned acts at all timesteps, not at {low} to {high} alone",
            f"sampling_timesteps='(0,{MAX_TIMESTEP})'",
        )
    guidance = guidance_of([attribute])
    low, high = guidance["guidance_interval"]
    if (low, high) != always:
        without(
            f"guidance acts at all timesteps, not at {low} to {high} alone",
            f"guidance_interval='(0,{MAX_TIMESTEP})'",
        )
    if rescale := guidance["guidance_rescale"]:
        without(f"{rescale:g} of guidance's contrast is not taken back", "guidance_rescale=0")
    if recipe.get("paint_strength"):
        without("pictures are not painted", "paint_strength=0")
    return lost


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
