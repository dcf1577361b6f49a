"""Pairs of pictures that share one attribute and nothing else, with captions of the second one.

What a filter learns from: it sees the first picture, and the second one is to be made from it and from a
caption in which a placeholder stands for what they share.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from attrjax.attrworld import shapes, words
from attrjax.attrworld.batches import check_rows, generator_at
from attrjax.attrworld.captions import Facts, caption
from attrjax.attrworld.render import Scene
from attrjax.attrworld.scenes import draw_scenes, unseen
from attrjax.data.prompts import tokenize
from attrjax.parallel.mesh import own_rows


class Sharing(NamedTuple):
    """Pairs, all arrays with a leading axis [n].

    Attributes:
        seen: what the filter sees.
        made: what is to be made.
        asked: captions of ``made`` with the placeholder.
        told: the same captions with words for what the placeholder stands for; where it has none they say
            what they can, such as "object".
        facts: of ``made``.
    """

    seen: Scene
    made: Scene
    asked: list[str]
    told: list[str]
    facts: list[Facts]


def draw_sharing(generator: np.random.Generator, n: int, attribute: str, placeholder: str) -> Sharing:
    """Pairs of pictures of training that share a shape or an appearance.

    Args:
        generator: of all that is drawn.
        n: how many.
        attribute: that is shared, "shape" or "appearance".
        placeholder: what stands for it.
    """
    first = draw_scenes(generator, n)
    if attribute == "shape":
        second = draw_scenes(generator, n, shape_names=[one.shape for one in first.facts])
        made = second.scene._replace(shape=first.scene.shape)
        facts = second.facts
    else:
        materials = [one.material for one in first.facts]
        second = draw_scenes(
            generator, n, shape_names=_shapes_for(generator, materials), material_names=materials
        )
        made = second.scene._replace(material=first.scene.material)
        of_material = ("material", "pattern", "colours", "finish")
        facts = [
            there._replace(**{name: getattr(here, name) for name in of_material})
            for here, there in zip(first.facts, second.facts, strict=True)
        ]
    asked, told = [], []
    for one in facts:
        with_it, without = ask(attribute, one, generator, placeholder)
        asked.append(with_it)
        told.append(without)
    return Sharing(first.scene, made, asked, told, facts)


def ask(attribute: str, facts: Facts, generator: np.random.Generator, placeholder: str) -> tuple[str, str]:
    """A caption with a placeholder for an attribute, and the same one with words for it.

    Args:
        attribute: "shape" or "appearance".
        facts: of the picture.
        generator: of the caption's form.
        placeholder: what stands for the attribute.
    """
    state = generator.bit_generator.state
    told = caption(facts, generator, **_named(attribute, facts))
    generator.bit_generator.state = state
    return caption(facts, generator, **_named(attribute, facts, placeholder)), told


def sharing_at(
    root: Key[Array, ""],
    batch_size: int,
    attribute: str,
    placeholder: str,
    tokenizer: Any,
    length: int,
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of pairs: scenes ``seen`` and ``made``, tokens ``asked`` and ``told``, and ``named``.

    Tokens are [n, T]. ``named`` [n] is 1 where ``told`` has words for what the placeholder stands for, and 0
    where it has none.

    Args:
        root: the run's root key.
        batch_size: pairs of all processes together.
        attribute, placeholder: of ``draw_sharing``.
        tokenizer: the base's, with the placeholder.
        length: T.
    """
    check_rows(batch_size)

    def batch_at(step: int) -> dict[str, Any]:
        drawn = draw_sharing(generator_at(root, step), batch_size, attribute, placeholder)
        named = [attribute == "appearance" or bool(one.shape) for one in drawn.facts]
        batch = {
            "seen": drawn.seen,
            "made": drawn.made,
            "asked": tokenize(tokenizer, drawn.asked, length),
            "told": tokenize(tokenizer, drawn.told, length),
            "named": np.array(named, np.float32),
        }
        return own_rows(batch)

    return batch_at


def _named(attribute: str, facts: Facts, placeholder: str = "") -> dict[str, Any]:
    """Arguments of ``caption``: the placeholder for the attribute, or the first of its names."""
    if attribute == "shape":
        return {"noun": placeholder or (words.SHAPES[facts.shape] if facts.shape else words.UNNAMED)[0]}
    if placeholder:
        return {"material": (placeholder, f"made of {placeholder}")}
    if facts.material:
        said = words.MATERIALS[facts.material]
        return {"material": (said.before[0], said.after[0])}
    pattern = words.PATTERNS[facts.pattern]
    colours = f"{', '.join(facts.colours[:-1])} and {facts.colours[-1]}"
    return {"material": (f"{colours} {pattern.adjectives[0]}", f"with {colours} {pattern.nouns[0]}")}


def _shapes_for(generator: np.random.Generator, materials: Sequence[str]) -> list[str]:
    """A family of training for each material, of a pair that is not held out."""
    names = list(shapes.FAMILIES)
    chosen = []
    for i, material in zip(generator.integers(0, len(names), len(materials)), materials, strict=True):
        while unseen(names[i], material):
            i = (i + 1) % len(names)
        chosen.append(names[i])
    return chosen
