"""A learned appearance on a picture of one's own: example-based manipulation, by strength.

python -m benchmark.attributes --out=runs/attributes --attributes appearance      # what it takes
python -m benchmark.manipulation --out=runs/attributes

Each reference's picture is what sampling begins from (img2img), with the appearance of the next reference.
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
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.judges import load_judges
from attrjax.checkpoints.attribute import Attribute, load_attribute, weights_digest
from attrjax.checkpoints.pipeline import Pipeline, load_pipeline
from attrjax.data.pictures import png_bytes
from attrjax.generate import Settings, generate
from attrjax.report.grid import labelled_grid
from attrjax.runs import write_whole
from benchmark.attributes import SEEDS, in_percent, references, right_in_both

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


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
    rights: dict[float, list[tuple[float, float, float]]] = {strength: [] for strength in STRENGTHS}
    for i, picture in enumerate(all_.pictures):
        j = (i + 1) % len(learned)
        made = redrawn(pipeline, learned[j], digest, picture)
        for strength, pictures in made.items():
            rights[strength].append(right_in_both(judges, all_, i, j, pictures))
        shown.append([picture, all_.pictures[j], *(pictures[0] for pictures in made.values())])
    table = as_markdown(rights)
    write_whole(given.out / "manipulation.md", table.encode())
    columns = ["picture", "appearance of", *(f"strength {strength}" for strength in STRENGTHS)]
    rows = [f"{i + 1}" for i in range(len(shown))]
    write_whole(given.out / "manipulation.png", png_bytes(labelled_grid(shown, rows, columns)))
    print(table)


def redrawn(
    pipeline: Pipeline, attribute: Attribute, digest: str, picture: UInt8[np.ndarray, "h w 3"]
) -> dict[float, UInt8[np.ndarray, "n h w 3"]]:
    """A picture made anew from part of the way, with an appearance: by strength, one of each seed."""
    tuned, adapters, stages, guidance = apply_attributes(pipeline, [(attribute, 1.0)], digest=digest)
    return {
        strength: generate(
            tuned,
            [f"an object made of {attribute.word}"],
            SEEDS,
            Settings(steps=20, guidance=4.0, strength=strength, batch_size=len(SEEDS), **guidance),
            init_picture=picture.astype(np.float32) / 127.5 - 1,
            adapters=adapters,
            stages=stages,
        )
        for strength in STRENGTHS
    }


def as_markdown(rights: dict[float, list[tuple[float, float, float]]]) -> str:
    """Means over references in percent, with 95 % bootstrap intervals, by strength."""
    generator = np.random.default_rng(0)
    lines = ["| strength | shape kept | appearance found | both |", "|---:|---|---|---|"]
    for strength, shares in rights.items():
        cells = [in_percent(values, generator) for values in zip(*shares, strict=True)]
        lines.append(f"| {strength} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
