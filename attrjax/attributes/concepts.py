"""The list of references: which pictures are learned, and what each of them has of its own."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from attrjax.arguments import did_you_mean, exchanged, one_line
from attrjax.attributes.base import Base, read_reference
from attrjax.attributes.learner import check_config
from attrjax.checkpoints.attribute import placeholder_error
from attrjax.runs import slug

STACKS = "stacks"  # the directory of what is learned, beside those of the concepts
# What a line may say, and of which type it is.
_TYPES: Mapping[str, type] = {
    "reference": str,
    "mask": str,
    "name": str,
    "placeholder": str,
    "attribute": str,
    "steps": int,
    "seed": int,
    "prompts": list,
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class Concept(NamedTuple):
    """What is learned of one line.

    Attributes:
        name: of its directory in the workdir.
        config: of a run that learns it alone.
        place: of the line, for errors.
    """

    name: str
    config: ConfigDict
    place: str


def read_list(config: Mapping[str, Any]) -> list[Concept]:
    """The concepts of ``config.references``, a file of JSON objects, one in each line.

    Empty lines are passed over. Paths are relative to the directory that the program runs in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no line, or one that cannot be learned; file and line are named.
    """
    path = Path(config["references"])
    if config["reference"] or config["mask"]:
        raise ValueError(
            "config.references is a list, and config.reference or config.mask names one picture: give one of "
            "the two; masks of a list's pictures stand in its lines"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no list of references {path}: each line of one is a JSON object")
    concepts: list[Concept] = []
    taken = {STACKS: f"the workdir's own {STACKS}"}
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not text.strip():
            continue
        place = f"{path}, line {number}"
        with named(place):
            line = _read_line(text)
            name = _name_of(line, taken)
            concept = Concept(name, _config_of(config, line), place)
            check_config(concept.config)
        taken[name] = f"line {number}"
        concepts.append(concept)
    if not concepts:
        raise ValueError(f'{path} has no references: a line looks like {{"reference": "mug.png"}}')
    return concepts


def recipe_for(config: Mapping[str, Any], attribute: str) -> ConfigDict:
    """A list's config for the lines of an attribute: itself, or with ``config.other`` in its place.

    Raises:
        ValueError: neither is for that attribute.
    """
    own = ConfigDict(ConfigDict(config).to_dict())
    if attribute == own.attribute:
        return own
    known = (own.attribute, own.other.attribute)
    if attribute not in known:
        raise ValueError(
            f"attribute={attribute!r} is not what this config learns, nor its config.other"
            f"{did_you_mean(attribute, known)}"
        )
    return exchanged(own)


def check_references(concepts: list[Concept], base: Base) -> None:
    """Whether every reference can be learned on a base, before anything is.

    Raises:
        ValueError: one cannot; file and line are named.
    """
    for concept in concepts:
        with named(concept.place):
            if error := placeholder_error(concept.config["placeholder"], base.pipeline.tokenizer):
                raise ValueError(error)
            read_reference(concept.config, base)


@contextmanager
def named(place: str) -> Iterator[None]:
    """Say in errors where they come from."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{place}: {one_line(error)}") from error


def _read_line(text: str) -> dict[str, Any]:
    example = 'a line looks like {"reference": "mug.png"}'
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON ({error}): {example}") from error
    if not isinstance(line, dict) or not line.get("reference"):
        raise ValueError(f"there is no reference: {example}")
    for key, value in line.items():
        if key not in _TYPES:
            raise ValueError(f"{key!r} is nothing that a line can say{did_you_mean(key, _TYPES)}")
        wanted = _TYPES[key]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{key}={value!r} must be of type {wanted.__name__}")
    for key in ("steps", "seed"):
        if line.get(key, 0) < 0:
            raise ValueError(f"{key}={line[key]} must be 0 or more")
    prompts = line.get("prompts", ["{}"])
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts={prompts!r} must be a list of texts, at least one")
    return line


def _name_of(line: Mapping[str, Any], taken: Mapping[str, str]) -> str:
    """The line's name, or one of its picture's that is not taken."""
    if "name" in line:
        name = line["name"]
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"name={name!r} is to be a directory: letters, digits, dots, dashes and underscores"
            )
        if name in taken:
            raise ValueError(f"name={name!r} is that of {taken[name]} already: take another")
        return name
    stem = slug(re.sub("[-_]+", " ", Path(line["reference"]).stem)) or "reference"
    free = (name for name in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 2))) if name not in taken)
    return next(free)


def _config_of(config: Mapping[str, Any], line: Mapping[str, Any]) -> ConfigDict:
    """The config of a run that learns a line alone."""
    own = recipe_for(config, line.get("attribute", config["attribute"]))
    own.references = ""
    for key in ("reference", "mask", "placeholder", "steps", "seed"):
        if key in line:
            own[key] = line[key]
    if "prompts" in line:
        own.probe.prompts = tuple(line["prompts"])
    return own
