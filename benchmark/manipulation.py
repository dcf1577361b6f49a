"""A learned appearance on a picture of one's own: example-based manipulation, by strength.

python -m benchmark.attributes --out=runs/attributes --attributes appearance      # what it takes
python -m benchmark.manipulation --out=runs/attributes

Each reference's picture is what sampling begins from (img2img), with the appearance of the next reference,
whose material its foreground is painted with, or not.
The judges say, of the pictures at each strength, in how many the shape is still nearest to the picture's own,
and the appearance to that which was learned, among all references (chance: 1 / n). Writes
``manipulation.md`` and ``manipulation.png``.
"""

import argparse
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.painting import make_with
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.judges import load_judges
from attrjax.checkpoints.attribute import Attribute, load_attribute, weights_digest
from attrjax.checkpoints.pipeline import Pipeline, load_pipeline
from attrjax.data.pictures import png_bytes, to_floats
from attrjax.generate import Settings, make_jobs
from attrjax.report.grid import labelled_grid
from attrjax.runs import write_whole
from benchmark.attributes import SEEDS, in_percent, references, right_in_both

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
Way = tuple[bool, float]  # whether it is painted, and the strength


def main() -> None:
    """Make the pictures, measure, and write the table and the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=14)
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    judges, pipeline, digest = load_judges(), load_pipeline(BASE), weights_digest(BASE)
    all_ = references("held_out", given.count, judges)
    where = given.out / "default" / "seed0" / "appearance"
    learned = [load_attribute(where / name) for name in all_.names]

    shown = []
    ways = [(painted, strength) for painted in (True, False) for strength in STRENGTHS]
    rights: dict[Way, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for i, picture in enumerate(all_.pictures):
        j = (i + 1) % len(learned)
        made = {way: redrawn(pipeline, learned[j], digest, picture, *way) for way in ways}
        for way, pictures in made.items():
            rights[way].append(right_in_both(judges, all_, i, j, pictures))
        shown.append([picture, all_.pictures[j], *(pictures[0] for pictures in made.values())])
    table = as_markdown(rights)
    write_whole(given.out / "manipulation.md", table.encode())
    columns = [
        "picture",
        "appearance of",
        *(f"{'painted' if painted else 'plain'} {strength}" for painted, strength in ways),
    ]
    rows = [f"{i + 1}" for i in range(len(shown))]
    write_whole(given.out / "manipulation.png", png_bytes(labelled_grid(shown, rows, columns)))
    print(table)


def redrawn(
    pipeline: Pipeline,
    attribute: Attribute,
    digest: str,
    picture: UInt8[np.ndarray, "h w 3"],
    painted: bool,
    strength: float,
) -> UInt8[np.ndarray, "n h w 3"]:
    """A picture made anew from part of the way, with an appearance, once for each seed."""
    applied = apply_attributes(
        pipeline, [(attribute, 1.0)], digest=digest, paint_strength=None if painted else 0.0
    )
    jobs = make_jobs([f"an object made of {attribute.word}"], SEEDS)
    settings = Settings(steps=20, guidance=4.0, strength=strength, batch_size=len(SEEDS))
    return np.stack(list(make_with(applied, jobs, settings, init_picture=to_floats(picture))))


def as_markdown(rights: dict[Way, list[tuple[float, float, float]]]) -> str:
    """Means over references in percent, with 95 % bootstrap intervals, painted or not and by strength."""
    generator = np.random.default_rng(0)
    lines = ["| painted | strength | shape kept | appearance found | both |", "|---|---:|---|---|---|"]
    for (painted, strength), shares in rights.items():
        cells = [in_percent(values, generator) for values in zip(*shares, strict=True)]
        lines.append(f"| {'yes' if painted else 'no'} | {strength} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
