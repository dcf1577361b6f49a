"""At which timesteps should a learned shape and a learned appearance act?

python -m benchmark.timesteps --out=runs/timesteps

References of the set ``composed`` (see ``benchmark.attributes``) are learned by the default recipes, but
steps are chosen by pictures in which what was tuned acts at all timesteps. It is then sampled at several
ranges: alone, and in pairs of one reference's shape with another's appearance, of which each shape is in two.
A run that is there is not made again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.evaluate import as_seen
from attrjax.attrworld.judges import load_judges
from attrjax.checkpoints.attribute import Attribute, weights_digest
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.data.pictures import png_bytes
from attrjax.runs import write_whole
from benchmark.attributes import EMBED, MEASURES, learn, measured, pictures_of, prompts_for, references

ALWAYS = (0, 1000)
# (low, high, strength) of an attribute alone, and (of the shape, of the appearance) of both.
ALONE = {
    "appearance": [(0, 1000, 1.0), (0, 800, 1.0), (0, 600, 1.0), (0, 400, 1.0)],
    "shape": [(0, 1000, 1.0), (200, 1000, 1.0), (400, 1000, 1.0), (600, 1000, 1.0), (300, 1000, 1.2)],
}
COMPOSED = [
    ((0, 1000), (0, 1000)),
    ((0, 1000), (0, 600)),
    ((400, 1000), (0, 600)),
    ((400, 1000), (0, 400)),
    ((600, 1000), (0, 600)),
]
PARTNERS = (1, 3)  # whose appearance a shape gets, counted from its own reference


def main() -> None:
    """Learn, sample at every range, measure, and write ``timesteps.md``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    judges = load_judges()
    all_ = references("composed", given.count, judges)
    pipeline, digest = load_pipeline(BASE), weights_digest(BASE)
    learned: dict[str, list[Attribute]] = {attribute: [] for attribute in ALONE}
    for name, picture in zip(all_.names, all_.pictures, strict=True):
        source = given.out / "references" / f"{name}.png"
        write_whole(source, png_bytes(picture))
        for attribute, ones in learned.items():
            path = given.out / "default" / "seed0" / attribute / name
            ones.append(learn(path, source, attribute, {"seed": 0, "sampling_timesteps": ALWAYS}))

    lines: list[str] = []

    def say(cells: Sequence[object]) -> None:
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], flush=True)

    say(["attribute", "acts at", "strength", *MEASURES])
    say(["---"] * (3 + len(MEASURES)))
    for attribute, ones in learned.items():
        for low, high, strength in ALONE[attribute]:
            found = []
            for index, one in enumerate(ones):
                prompts = prompts_for(attribute, one.word)
                made = pictures_of(
                    pipeline, [one], prompts, digest, timesteps=[(low, high)], strength=strength
                )
                found.append(measured(judges, all_, index, attribute, made))
            means = [f"{100 * np.mean([row[name] for row in found]):.1f}" for name in MEASURES]
            say([attribute, f"{low} to {high}", strength, *means])
    say(["shape acts at", "appearance acts at", "shape right", "appearance right", "both"])
    say(["---"] * 5)
    for ranges in COMPOSED:
        shares = []
        for i, shape in enumerate(learned["shape"]):
            for j in ((i + offset) % given.count for offset in PARTNERS):
                pair = [shape, learned["appearance"][j]]
                said = f"a {pair[0].word} made of {pair[1].word}"
                asked = [said, f"{said} on a white background"]
                seen = as_seen(pictures_of(pipeline, pair, asked, digest, timesteps=ranges))
                right = [
                    (EMBED[name](judges, seen) @ all_.galleries[name].T).argmax(-1) == index
                    for name, index in (("shape", i), ("appearance", j))
                ]
                shares.append([np.mean(right[0]), np.mean(right[1]), np.mean(right[0] & right[1])])
        means = [f"{100 * value:.1f}" for value in np.mean(shares, axis=0)]
        say([*(f"{low} to {high}" for low, high in ranges), *means])
    write_whole(given.out / "timesteps.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
