"""How should a learned shape and a learned appearance act in sampling?

python -m benchmark.inference --out=runs/inference

References of the set ``composed`` (see ``benchmark.attributes``, whose runs with the same ``--out`` it takes)
are learned by the default recipes and sampled in several ways: at several ranges of timesteps, at other
strengths, with guidance away from the reference's other attribute, without guidance at the last timesteps,
painted or not; alone, and in pairs of one reference's
shape with another's appearance, of which each shape is in two. A run that is there is not made again.
``--set`` names another recipe, as there.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8

from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.judges import Judges, load_judges
from attrjax.checkpoints.attribute import Attribute, weights_digest
from attrjax.checkpoints.pipeline import Pipeline, load_pipeline
from attrjax.data.pictures import png_bytes
from attrjax.runs import write_whole
from attrjax.sample_parts import other_said
from benchmark.attributes import (
    MEASURES,
    References,
    learn,
    measured,
    pictures_of,
    prompts_for,
    recipe,
    references,
    right_in_both,
)


class Way(NamedTuple):
    """How an attribute acts: at timesteps [low, high), at a strength, with its ``negative_attributes``, with
    guidance from a timestep up, with a share of guidance's contrast taken back (``guidance_rescale``), and
    painted with a share of the steps behind it (``paint_strength``); None for what its file says.
    """

    low: int
    high: int
    strength: float = 1.0
    negative: bool = False
    guided: int | None = None
    rescaled: float | None = None
    painted: float | None = None


ALONE = {
    "appearance": [
        *(Way(0, 1000), Way(0, 850), Way(0, 750), Way(0, 650)),
        *(Way(0, 750, 0.8), Way(0, 750, 1.2), Way(0, 750, 1.4), Way(0, 750, negative=True)),
        *(Way(0, 750, guided=0), Way(0, 750, guided=450), Way(0, 750, guided=550), Way(0, 750, guided=650)),
        *(Way(0, 750, rescaled=0.4), Way(0, 750, rescaled=0.7)),
        *(Way(0, 750, painted=0.0), Way(0, 750, painted=0.2), Way(0, 750, painted=0.3)),
        *(Way(0, 750, painted=0.5), Way(0, 750, painted=0.6)),
    ],
    "shape": [
        *(Way(0, 1000), Way(200, 1000), Way(400, 1000)),
        *(Way(200, 1000, 0.8), Way(200, 1000, 1.2), Way(200, 1000, negative=True)),
        *(Way(200, 1000, guided=300), Way(200, 1000, guided=450), Way(200, 1000, guided=600)),
        *(Way(200, 1000, rescaled=0.0), Way(200, 1000, rescaled=0.4), Way(200, 1000, rescaled=1.0)),
        Way(200, 1000, guided=300, rescaled=0.7),
    ],
}
# Of the shape, and of the appearance.
COMPOSED = [
    (Way(0, 1000), Way(0, 1000)),
    (Way(200, 1000), Way(0, 850)),
    (Way(200, 1000), Way(0, 750)),
    (Way(200, 1000), Way(0, 750, 1.2)),
    (Way(400, 1000), Way(0, 750)),
    (Way(400, 1000), Way(0, 850)),
    (Way(200, 1000), Way(0, 750, guided=0)),
    (Way(200, 1000), Way(0, 750, rescaled=0.7)),
    (Way(200, 1000), Way(0, 750, painted=0.0)),
]
PARTNERS = (1, 3)  # whose appearance a shape gets, counted from its own reference


def main() -> None:
    """Learn, sample at every range, measure, and write ``inference.md``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--attributes", nargs="+", choices=list(ALONE), default=list(ALONE))
    parser.add_argument("--set", dest="recipe", type=recipe, default=("default", {}))
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    judges = load_judges()
    all_ = references("composed", given.count, judges)
    pipeline, digest = load_pipeline(BASE), weights_digest(BASE)
    learned: dict[str, list[Attribute]] = {attribute: [] for attribute in given.attributes}
    recipe_name, changes = given.recipe
    for name, picture in zip(all_.names, all_.pictures, strict=True):
        source = given.out / "references" / f"{name}.png"
        write_whole(source, png_bytes(picture))
        for attribute, ones in learned.items():
            path = given.out / recipe_name / "seed0" / attribute / name
            ones.append(learn(path, source, attribute, {**changes, "seed": 0}))

    lines: list[str] = []

    def say(cells: Sequence[object]) -> None:
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], flush=True)

    say(["attribute", "acts at", "strength", "negative", "guided from", "rescaled by", "painted", *MEASURES])
    say(["---"] * (7 + len(MEASURES)))
    for attribute, ones in learned.items():
        for way in ALONE[attribute]:
            if way.painted and ones[0].material is None:
                continue  # learned with paint_strength=0
            found = []
            for index, one in enumerate(ones):
                made = pictures_in(pipeline, digest, [one], [way], prompts_for(attribute, one.word))
                found.append(measured(judges, all_, index, attribute, made))
            means = [f"{100 * np.mean([row[name] for row in found]):.1f}" for name in MEASURES]
            say([attribute, f"{way.low} to {way.high}", way.strength, way.negative, *told(way), *means])
    if len(learned) == len(ALONE):
        say(["shape", "appearance", "shape right", "appearance right", "both"])
        say(["---"] * 5)
        for ways in COMPOSED:
            shares = composed_in(pipeline, digest, judges, all_, learned, ways)
            said = (
                "{} to {} at {}, guided from {}, rescaled by {}, painted {}".format(*way[:3], *told(way))
                for way in ways
            )
            say([*said, *(f"{100 * share:.1f}" for share in shares)])
    write_whole(given.out / "inference.md", ("\n".join(lines) + "\n").encode())


def told(way: Way) -> list[float | str]:
    """From which timestep there is guidance, how it is rescaled, and painting, as tables say it."""
    return ["its own" if value is None else value for value in (way.guided, way.rescaled, way.painted)]


def composed_in(
    pipeline: Pipeline,
    digest: str,
    judges: Judges,
    all_: References,
    learned: dict[str, list[Attribute]],
    ways: Sequence[Way],
) -> list[float]:
    """Shares of composed pictures that are right in the shape, in the appearance, and in both."""
    shares = []
    for i, shape in enumerate(learned["shape"]):
        for j in ((i + offset) % len(all_.names) for offset in PARTNERS):
            pair = [shape, learned["appearance"][j]]
            said = f"a {pair[0].word} made of {pair[1].word}"
            asked = [said, f"{said} on a white background"]
            made = pictures_in(pipeline, digest, pair, ways, asked)
            shares.append(right_in_both(judges, all_, i, j, made))
    return np.mean(shares, axis=0).tolist()


def pictures_in(
    pipeline: Pipeline,
    digest: str,
    learned: Sequence[Attribute],
    ways: Sequence[Way],
    prompts: Sequence[str],
) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures of prompts with attributes that act in ways of their own."""
    guided = [way.guided for way in ways if way.guided is not None]
    rescaled = [way.rescaled for way in ways if way.rescaled is not None]
    painted = [way.painted for way in ways if way.painted is not None]
    guidance: dict[str, Any] = {"guidance_interval": (max(guided), 1000)} if guided else {}
    guidance |= {"guidance_rescale": max(rescaled)} if rescaled else {}
    away = ", ".join(other_said(one) for one, way in zip(learned, ways, strict=True) if way.negative)
    return pictures_of(
        pipeline,
        learned,
        prompts,
        digest,
        timesteps=[(way.low, way.high) for way in ways],
        strengths=[way.strength for way in ways],
        negative=away,
        guidance=guidance,
        paint_strength=painted[0] if painted else None,
    )


if __name__ == "__main__":
    main()
