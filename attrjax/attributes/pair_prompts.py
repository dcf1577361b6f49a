"""What prompts say of training pairs: what is true of a target, and the placeholder for its attribute."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from attrjax.arguments import did_you_mean
from attrjax.attributes.learner import HERE
from attrjax.attributes.pairs import Cut, Painted
from attrjax.attributes.silhouettes import SILHOUETTES
from attrjax.attributes.textures import BACKDROP_NAMES, COLOUR_NAMES, PATTERNS
from attrjax.attrworld import words
from attrjax.attrworld.captions import with_article


def say(attribute: str, drawn: Painted | Cut, placeholder: str, generator: np.random.Generator) -> list[str]:
    """Prompts for targets: what is true of each beside the attribute, which the placeholder stands for.

    Such as "a photo of a red and white striped *", and "a star made of * on a blue background".

    Args:
        attribute: "shape" or "appearance".
        drawn: of a batch of that attribute's pairs, arrays with a leading axis.
        placeholder: the word that is learned.
        generator: chooses among ways to say it.

    Raises:
        ValueError: there is no such attribute.
    """
    describe = {"shape": _say_painted, "appearance": _say_cut}
    if attribute not in describe:
        raise ValueError(f"there is no attribute {attribute!r}{did_you_mean(attribute, describe)}")
    prompts = []
    for i in range(len(drawn.backdrop)):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], drawn)
        said = describe[attribute](one, placeholder, generator)
        prompts.append(framed(said, one.backdrop, generator))
    return prompts


def framed(said: str, backdrop: int, generator: np.random.Generator) -> str:
    """What is said of an object, with its backdrop half of the time, and with words around it as often."""
    if generator.random() < 0.5:
        said += " " + _any(words.BACKDROP_PHRASES, generator).format(a=with_article(BACKDROP_NAMES[backdrop]))
    opening, closing = _any(words.FRAMES, generator) if generator.random() < 0.5 else ("", "")
    return opening + said + closing


def _say_painted(drawn: Any, placeholder: str, generator: np.random.Generator) -> str:
    first, second = (COLOUR_NAMES[i] for i in drawn.colours)
    pattern = PATTERNS[drawn.pattern]
    if pattern == "plain":
        return with_article(f"{first} {placeholder}")
    said = words.PATTERNS[pattern]
    if generator.random() < 0.5:
        return with_article(f"{first} and {second} {said.adjectives[0]} {placeholder}")
    return f"{with_article(placeholder)} with {first} and {second} {said.nouns[0]}"


def _say_cut(drawn: Any, placeholder: str, generator: np.random.Generator) -> str:
    silhouette = SILHOUETTES[drawn.silhouette]
    # What has no name is an object; "something" takes no adjective.
    noun = _any(words.SHAPES.get(silhouette, words.UNNAMED[:3]), generator)
    if generator.random() < 0.3:
        return with_article(f"{placeholder} {noun}")
    return f"{with_article(noun)} made of {placeholder}"


def _any(options: Sequence[Any], generator: np.random.Generator) -> Any:
    return options[int(generator.integers(len(options)))]


def prior_prompts(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What the base's own pictures are of, each prompt with the objects in turn; and what pairs that have
    their material, or their form, are: "a vase made of marble", and "a {} made of marble" or "a vase made of
    {}", where {} is the placeholder.
    """
    prompts, objects = config["prior"]["prompts"], config["prior"]["objects"]
    said, crossed = [], []
    for i in range(config["prior"]["count"]):
        template, noun = prompts[i % len(prompts)], objects[(i + i // len(prompts)) % len(objects)]
        said.append(template.replace(HERE, noun))
        crossed.append(template if config["attribute"] == "shape" else f"{with_article(noun)} made of {HERE}")
    return said, crossed
