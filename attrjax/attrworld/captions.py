"""Captions: what a picture of the world shows, said as people say it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from attrjax.arguments import did_you_mean
from attrjax.attrworld import words
from attrjax.attrworld.words import (
    BACKDROPS,
    COLOURS,
    HELD_OUT_MATERIALS,
    HELD_OUT_SHAPES,
    PATTERNS,
    TRAIN_MATERIALS,
    TRAIN_SHAPES,
)

__all__ = [
    "BACKDROPS",
    "COLOURS",
    "HELD_OUT_MATERIALS",
    "HELD_OUT_SHAPES",
    "PATTERNS",
    "TRAIN_MATERIALS",
    "TRAIN_SHAPES",
    "Facts",
    "caption",
    "prompt",
    "with_article",
]

# How often a caption says what it could say. A base that is told everything every time would make what it is
# not told at random; one that is told little would not listen.
SHAPE_RATE = 0.9
MATERIAL_RATE = 0.9
BACKDROP_RATE = 0.45
FINISH_RATE = 0.4
LIGHT_RATE = 0.15
VIEW_RATE = 0.15
MAX_WORDS = 24
# More than a caption ever uses. All are drawn at once, which is what makes captions cheap.
_DRAWS = 40


class Facts(NamedTuple):
    """What there is to say of a picture.

    Attributes:
        shape: a key of ``words.SHAPES``, or "" for a composition without a name.
        material: a key of ``words.MATERIALS``, among them the plain colours, or "" for a pattern without a
            name.
        pattern: a key of ``PATTERNS`` for a pattern without a name, else "".
        colours: the names of the 2 or 3 colours of such a pattern, else none.
        finish: "matte" or "glossy"; "" where the material implies it, as metals do.
        backdrop: its colour's name.
        light: the side that it comes from, "left", "right" or "front".
        view: "level" or "above".
    """

    shape: str
    material: str
    pattern: str
    colours: tuple[str, ...]
    finish: str
    backdrop: str
    light: str
    view: str


def prompt(shape: str, material: str) -> str:
    """The plain text for a shape in a material: "a vase made of marble", "a red vase", "a mug with zebra
    stripes".

    Args:
        shape: a key of ``words.SHAPES``; "" for "an object".
        material: a key of ``words.MATERIALS``; "" for none.

    Raises:
        ValueError: there is no such shape or material.
    """
    for kind, name, known in (("shape", shape, words.SHAPES), ("material", material, words.MATERIALS)):
        if name and name not in known:
            raise ValueError(f"the world has no {kind} {name!r}{did_you_mean(name, known)}")
    noun = words.SHAPES[shape][0] if shape else words.UNNAMED[0]
    if material in COLOURS:
        return with_article(f"{words.MATERIALS[material].before[0]} {noun}")
    if material:
        return f"{with_article(noun)} {words.MATERIALS[material].after[0]}"
    return with_article(noun)


def caption(
    facts: Facts, generator: np.random.Generator, *, noun: str = "", material: tuple[str, str] | None = None
) -> str:
    """One of the many sentences that are true of a picture; each leaves some of the facts out.

    With the same state of the generator, sentences with other words for shape or material have the same form.

    Args:
        facts: of the picture.
        generator: advanced by the same amount for every caption.
        noun: what to call the shape, whatever it is, such as a placeholder; it is never left out.
        material: what to call the material, as an adjective and as a phrase behind the noun; it is never left
            out.

    Returns:
        small letters, at most ``MAX_WORDS`` words.

    Raises:
        KeyError: a name that the world does not have.
    """
    draws = iter(generator.random(_DRAWS).tolist())
    noun = noun or _noun(facts.shape, draws)
    bare = noun == words.SOMETHING

    adjectives: list[str] = []
    phrases: list[str] = []  # these go on with the sentence
    tags: list[str] = []  # these stand after a comma
    told = next(draws) < MATERIAL_RATE and (facts.material or facts.pattern)
    if material or told:
        before, after = material or _material(facts, draws)
        front = 0.8 if facts.material in COLOURS else 0.5
        if not bare and next(draws) < front:
            adjectives.append(before)
        else:
            phrases.append(after)
    if facts.finish and next(draws) < FINISH_RATE:
        finish = _usual(words.FINISHES[facts.finish], draws)
        if not bare and next(draws) < 0.7:
            adjectives.insert(0, finish)
        else:
            tags.append(f"{finish} finish")

    lead = ""
    around: list[str] = []
    if facts.backdrop and next(draws) < BACKDROP_RATE:
        backdrop = _filled(words.BACKDROP_PHRASES, facts.backdrop, draws)
        place = next(draws)
        if place < 0.1:
            lead = f"{backdrop}, "
        elif place < 0.35:
            tags.append(_filled(words.BACKDROP_TAGS, facts.backdrop, draws))
        else:
            around.append(backdrop)
    if facts.light and next(draws) < LIGHT_RATE:
        tagged = next(draws) < 0.5
        choices = words.LIGHT_TAGS if tagged else words.LIGHT_PHRASES
        (tags if tagged else around).append(_filled(choices, facts.light, draws))
    if facts.view and next(draws) < VIEW_RATE:
        tagged = next(draws) < 0.5
        choices = words.VIEW_TAGS[facts.view] if tagged else words.VIEW_PHRASES[facts.view]
        (tags if tagged else around).append(_pick(choices, draws))
    phrases += _shuffled(around, draws)
    tags = _shuffled(tags, draws)

    opening, closing = ("", "") if lead or next(draws) < 0.5 else _pick(words.FRAMES, draws)
    subject = " ".join((*adjectives, noun))
    if opening or lead or bare or next(draws) < 0.9:  # or as in "red vase, studio shot"
        subject = with_article(subject)

    text = _sentence(lead + opening + subject, phrases, tags, closing)
    if text.count(" ") >= MAX_WORDS:
        opening = closing = ""
        text = _sentence(lead + subject, phrases, tags, closing)
    while text.count(" ") >= MAX_WORDS:  # what stands first says what the picture shows
        (tags or phrases).pop()
        text = _sentence(lead + subject, phrases, tags, closing)
    return text


def with_article(phrase: str) -> str:
    """A noun, with or without adjectives, with "a" or "an" where it takes one."""
    if phrase == words.SOMETHING or phrase.rsplit(" ", 1)[-1] in words.PLURALS:
        return phrase
    # All words of the world sound as they are written, but for the silent h.
    return f"an {phrase}" if phrase.startswith(("a", "e", "i", "o", "u", "hour")) else f"a {phrase}"


def _noun(shape: str, draws: Iterator[float]) -> str:
    if next(draws) < SHAPE_RATE and shape:
        return _usual(words.SHAPES[shape], draws)
    return _pick(words.UNNAMED, draws)


def _material(facts: Facts, draws: Iterator[float]) -> tuple[str, str]:
    """The material as an adjective, and as a phrase behind the noun."""
    if facts.material:
        attachment = words.MATERIALS[facts.material]
        return _usual(attachment.before, draws), _usual(attachment.after, draws)
    colours = _shuffled(facts.colours, draws)
    listed = f"{', '.join(colours[:-1])} and {colours[-1]}"
    noun = _usual(PATTERNS[facts.pattern].nouns, draws)
    adjective = _usual(PATTERNS[facts.pattern].adjectives, draws)
    said = next(draws)
    if said < 0.1:
        return adjective, f"with {noun}"
    if said < 0.2:
        return listed, f"in {listed}"
    if said < 0.35:
        return f"{listed} {adjective}", f"with a pattern of {listed} {noun}"
    return f"{listed} {adjective}", f"with {listed} {noun}"


def _sentence(beginning: str, phrases: Sequence[str], tags: Sequence[str], closing: str) -> str:
    return ", ".join((" ".join((beginning, *phrases)), *tags)) + closing


def _pick(options: Sequence[Any], draws: Iterator[float]) -> Any:
    return options[int(next(draws) * len(options))]


def _usual(options: Sequence[str], draws: Iterator[float]) -> str:
    """The first of the options more often than each of the others."""
    return options[0] if next(draws) < 0.4 else _pick(options, draws)


def _filled(templates: Sequence[str], word: str, draws: Iterator[float]) -> str:
    return _pick(templates, draws).format(word, a=with_article(word))


def _shuffled(items: Sequence[str], draws: Iterator[float]) -> list[str]:
    if len(items) < 2:
        return list(items)
    return [item for _, item in sorted((next(draws), item) for item in items)]
