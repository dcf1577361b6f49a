"""What pictures are made with, as a config of the task ``sample`` says it: settings, base, and additions."""

import functools
import os
import re
from collections.abc import Container, Mapping, Sequence, Set
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from attrjax.attributes.apply import Applied, Painting, apply_attributes, guidance_of, other_word
from attrjax.attrworld.bundled import base_or_bundled, usual_guidance
from attrjax.checkpoints.attribute import FILE_NAME, OTHER, Attribute
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.lora import load_lora
from attrjax.checkpoints.pipeline import REQUIRED, Pipeline, load_pipeline
from attrjax.checkpoints.textual_inversion import load_textual_inversion, with_words
from attrjax.diffusion.guidance import check_guidance
from attrjax.generate import Settings
from attrjax.models.adapters import Tree, bind, combine

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
T = TypeVar("T")
# Values that leave to the attributes' files, and without any to ``Settings``, how guidance acts.
UNSET: dict[str, Any] = {"guidance_interval": (), "guidance_rescale": -1.0}
AS_FILES_SAY = -1.0  # leaves to the attributes' files how pictures are painted


def make_settings(config: Mapping[str, Any]) -> Settings:
    """The config's settings, where batch_size 0 becomes what keeps the device busy, guidance 0 what suits the
    base, and what is ``UNSET`` what ``Settings`` has.
    """
    settings = Settings(**{name: config[name] for name in Settings._fields})
    usual = Settings()._asdict()
    settings = settings._replace(**{name: usual[name] for name in UNSET if config[name] == UNSET[name]})
    check_guidance(settings.guidance_interval, settings.guidance_rescale)
    if not settings.guidance:
        settings = settings._replace(guidance=usual_guidance(config["base"]))
    if settings.batch_size < 0:
        raise ValueError(f"batch_size={settings.batch_size} must be 1 or more, or 0 to choose it")
    return settings._replace(batch_size=settings.batch_size or (1 if jax.default_backend() == "cpu" else 4))


def load_base(config: Mapping[str, Any]) -> Pipeline:
    """The base model in the config's type, with its learned words."""
    base = find_base(base_or_bundled(config["base"]), config["variant"] or None)
    second = [name for name in ("text_encoder_2", "tokenizer_2") if (base / name).is_dir()]
    pipeline = load_pipeline(
        base,
        dtype=DTYPES[config["dtype"]],
        param_dtype=DTYPES[config["dtype"]],
        components=(*REQUIRED, *second),
        variant=config["variant"] or None,
        attention_implementation=None if config["attention"] == "auto" else config["attention"],
    )
    for path in config["learned_words"]:
        pipeline = with_words(pipeline, load_textual_inversion(path))
    return pipeline


def attribute_sets(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sets of attributes that pictures are made with, by their names: of each what ``with_attributes``
    reads of a config. One set, named "", where ``config.attributes`` are files; where one of them is a list
    of files each is a set, and strengths and timesteps are one list for each, too.

    Raises:
        ValueError: a set is no list of files, or there is no list of strengths or timesteps for each.
    """
    names = ("attributes", "attribute_strengths", "attribute_timesteps")
    rest = {name: value for name, value in config.items() if name not in names}
    attributes, *given = (tuple(config[name]) for name in names)
    if all(isinstance(one, str) for one in attributes):
        return {"": rest | dict(zip(names, (attributes, *given), strict=True))}
    for one in attributes:
        if not isinstance(one, str) and not (_is_list(one) and all(isinstance(file, str) for file in one)):
            raise ValueError(
                f'the set {one!r} in attributes must be a list of files, as in (("runs/a",), ("runs/b",))'
            )
    examples = "((1.0,), (0.5,))", "(((300, 1000),), ())"
    for name, values, example in zip(names[1:], given, examples, strict=True):
        if values and not (len(values) == len(attributes) and all(map(_is_list, values))):
            raise ValueError(
                f"{name}={values!r} must have a list for each of the {len(attributes)} sets of attributes, "
                f"as in {example} for two, or be empty"
            )
    found: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(attributes):
        files = (one,) if isinstance(one, str) else tuple(one)
        own = (values[number] if values else () for values in given)
        name = name_of(files, found)
        found[name] = rest | dict(zip(names, (files, *own), strict=True))
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def name_of(files: Sequence[str], taken: Container[str]) -> str:
    """What a set of attributes is called: by the runs that learned them, or by their files."""
    paths = [Path(file) for file in files]
    stems = [
        path.parent.name if path.name == FILE_NAME else path.name.removesuffix(".safetensors")
        for path in paths
    ]
    stem = "+".join(re.sub(r"[^\w.-]+", "-", stem).strip(".") or "attribute" for stem in stems) or "none"
    numbered = (f"{stem}-{i}" for i in count(2))
    return next(name for name in chain([stem], numbered) if name not in taken)


def prompts_with(own: Set[str], words: Set[str], prompts: Sequence[str], name: str) -> list[str]:
    """The prompts of a set of attributes: those with a word of its own, and none that only others have.

    Args:
        own: placeholder words of the set's attributes.
        words: of those of all sets.
        prompts: all.
        name: of the set.

    Raises:
        ValueError: there are none.
    """

    def said(prompt: str) -> Set[str]:
        there = {word for word in words if word in prompt}
        return {word for word in there if not any(word in other for other in there - {word})}

    found = [prompt for prompt in prompts if said(prompt) <= own and bool(said(prompt)) == bool(own)]
    if not found:
        raise ValueError(
            f"no prompt is for {name}: write one with {' or '.join(sorted(own)) or 'none of the words'}, and "
            f"without {' and '.join(sorted(words - own)) or 'others'}"
        )
    return found


def with_attributes(
    pipeline: Pipeline,
    adapters: dict[str, Any],
    learned: Sequence[Attribute],
    config: Mapping[str, Any],
    digest: str,
) -> Applied:
    """The base and its adapters with the config's learned attributes, each at its strength and timesteps.

    Args:
        pipeline, adapters: the base and what else is added to it.
        learned: the attributes.
        config: whose ``prompts`` are those that are made with them.
        digest: ``weights_digest`` of the base.

    Raises:
        ValueError: strengths or timesteps do not fit the attributes, no prompt has an attribute's word, or as
            ``apply_attributes``.
    """
    if not learned:
        return Applied(pipeline, adapters, [], guidance_of([]), {})
    chosen = with_strengths(learned, config["attribute_strengths"], "attribute")
    timesteps = [tuple(pair) if _is_list(pair) else (pair,) for pair in config["attribute_timesteps"]]
    if timesteps and (len(timesteps) != len(learned) or any(len(pair) != 2 for pair in timesteps)):
        raise ValueError(
            f"{len(timesteps)} attribute_timesteps for {len(learned)} attributes: give one (low, high) each, "
            "or none"
        )
    for one in learned:
        if not any(one.word in prompt for prompt in config["prompts"]):
            raise ValueError(
                f"no prompt has {one.word} in it, the word of the {one.attribute} that was learned: write it "
                f"where the {one.attribute} belongs, as in {one.recipe.get('example', f'a red {one.word}')!r}"
            )
    applied = apply_attributes(
        pipeline,
        chosen,
        digest=digest,
        timesteps=timesteps or None,
        paint_strength=None if config["paint_strength"] == AS_FILES_SAY else config["paint_strength"],
        force=config["force"],
    )
    return _beside(applied, adapters)


def _beside(applied: Applied, adapters: dict[str, Any]) -> Applied:
    """Learned attributes with other adapters beside them, where a form is laid out, too."""

    def added(bound: Tree) -> Tree:
        return combine([adapters["unet"], bound]) if "unet" in adapters else bound

    stages = [stage._replace(adapters=added(stage.adapters)) for stage in applied.stages]
    unet = added(applied.adapters.get("unet", {}))
    paintings = {
        word: painting._replace(layout=functools.partial(_laid_out_beside, painting, adapters))
        for word, painting in applied.paintings.items()
    }
    return applied._replace(
        adapters=adapters | ({"unet": unet} if unet else {}), stages=stages, paintings=paintings
    )


def _laid_out_beside(painting: Painting, adapters: dict[str, Any]) -> Applied:
    return _beside(painting.layout(), adapters)


def other_said(learned: Attribute) -> str:
    """A prompt for the other attribute of what something was learned from.

    Raises:
        ValueError: that attribute is not known.
    """
    if learned.other is None:
        raise ValueError(
            f"the file of {learned.word} does not hold its reference's {OTHER[learned.attribute]}, for its "
            "base has no filter for that: sample without --config.negative_attributes"
        )
    word = other_word(learned.word, learned.attribute)
    return f"an object made of {word}" if learned.attribute == "shape" else f"a {word}"


def with_strengths(things: Sequence[T], strengths: Sequence[Any], what: str) -> list[tuple[T, Any]]:
    """Files or attributes, each with its strength; without any strengths it is 1.

    Raises:
        ValueError: there are not as many strengths as things.
    """
    if strengths and len(strengths) != len(things):
        raise ValueError(
            f"{len(strengths)} {what}_strengths for {len(things)} {what}s: give one each, or none"
        )
    return list(zip(things, strengths or [1.0] * len(things), strict=True))


def load_adapters(pipeline: Pipeline, files: Sequence[str], strengths: Sequence[Any]) -> dict[str, Any]:
    """LoRA files as one bound adapter for each component that they change.

    Args:
        pipeline: the base that they are for.
        files: diffusers', PEFT's or kohya's.
        strengths: one for each file, a number or a dict of blocks as in diffusers (``down``, ``mid``, ``up``,
            ``text_encoder``); none for 1 each.
    """
    components = ("unet", "text_encoder", "text_encoder_2")
    trees = {
        name: getattr(pipeline, name).params for name in components if getattr(pipeline, name) is not None
    }
    bound: dict[str, list] = {}
    for path, strength in with_strengths(files, strengths, "lora"):
        blocks = dict(strength) if isinstance(strength, Mapping) else strength
        text = blocks.pop("text_encoder", 1.0) if isinstance(blocks, dict) else strength
        for component, adapter in load_lora(path, trees).items():
            factor = blocks if component == "unet" else text
            bound.setdefault(component, []).append(bind(adapter, factor, network=trees[component]))
    return {component: combine(collections) for component, collections in bound.items()}


def read_latents(path: str) -> np.ndarray | None:
    """Initial noise from an ``.npy`` file; None where no file is named.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no array of finite numbers.
    """
    if not path:
        return None
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file of latents {path}")
    try:
        latents = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not an .npy file of numbers: {error}") from error
    if not np.issubdtype(latents.dtype, np.floating) or not np.isfinite(latents).all():
        raise ValueError(f"{path} must hold finite floating-point numbers, and is of type {latents.dtype}")
    return latents
