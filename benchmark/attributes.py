"""Attributes of held-out references, learned and measured.

python -m benchmark.attributes --out=runs/attributes

A reference is a render of a shape and a material that no part of the base was trained on. Its shape and its
appearance are learned by the default recipes, or by others (``--set=NAME:partition=decoder,steps=50``), and
pictures are made of prompts that name the other attribute. The judges of attrworld say what is in them:

* own: the learned attribute is nearest to the reference's among those of all references;
* prompted: the other attribute is the one that the prompt names, among those of training;
* leaked: the other attribute is nearest to the reference's among those of all references (chance: 1 / n);
* both: own and prompted at once; of composed attributes, both are those of their references.

Every run is kept in ``--out`` and skipped when the command is given again. References of the set
``composed`` are random compositions in random patterns, as in training: recipes are chosen on them, so that
the held-out ones stay unseen. Intervals are 95 % percentiles of a bootstrap over references.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.customize import customize
from attrjax.attributes.painting import make_with
from attrjax.attrworld import held_out_looks, held_out_shapes
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.captions import prompt
from attrjax.attrworld.evaluate import seen
from attrjax.attrworld.judges import (
    Judges,
    classify_appearance,
    classify_shape,
    embed_appearance,
    embed_shape,
    load_judges,
)
from attrjax.attrworld.scenes import Drawn, draw_scenes
from attrjax.checkpoints.attribute import OTHER, Attribute, load_attribute, weights_digest
from attrjax.checkpoints.pipeline import Pipeline, load_pipeline
from attrjax.data.pictures import png_bytes, to_floats
from attrjax.generate import Settings, make_jobs
from attrjax.report.grid import labelled_grid
from attrjax.runs import write_whole
from configs import appearance, shape

EMBED = {"shape": embed_shape, "appearance": embed_appearance}
CLASSIFY = {"shape": classify_shape, "appearance": classify_appearance}
CONFIGS = {"shape": shape, "appearance": appearance}
RENDERS = 16  # of a gallery's entry
SEEDS = (100, 101)  # of pictures; the probes of a run have others
# What prompts name beside the learned attribute: families of training, the same for every reference.
PROMPTED = {
    "shape": ("red", "blue", "gold", "marble", "brick", "zebra", "wood", "checkerboard"),
    "appearance": ("ball", "vase", "chair", "mug", "star", "mushroom", "house", "gear"),
}
MEASURES = ("own", "prompted", "leaked", "both")


class References(NamedTuple):
    """Pictures to learn from.

    Attributes:
        names: of each.
        pictures: [n, 64, 64, 3].
        galleries: for each attribute what the judge sees of it, one unit vector for each reference.
    """

    names: list[str]
    pictures: UInt8[np.ndarray, "n 64 64 3"]
    galleries: dict[str, Float[np.ndarray, "n d"]]


def references(kind: str, count: int, judges: Judges) -> References:
    """The first references of a set, ``held_out`` or ``composed``, with all galleries.

    Of n held-out families of each attribute, every one is in one reference.
    """
    if kind == "held_out":
        generator = np.random.default_rng(11)
        shape_names, material_names = list(held_out_shapes.FAMILIES), list(held_out_looks.FAMILIES)
        material_names = [material_names[(5 * i + 2) % len(material_names)] for i in range(len(shape_names))]
    else:
        generator = np.random.default_rng(12)
        shape_names = material_names = [""] * 14
    drawn = draw_scenes(
        generator, len(shape_names), shape_names=shape_names, material_names=material_names, views=False
    )
    names = [
        f"{i:02d}-{s or 'composition'}-{m or 'pattern'}"
        for i, (s, m) in enumerate(zip(shape_names, material_names, strict=True))
    ]
    galleries = {}
    for attribute in EMBED:
        # The same variant of the shape, or of the material, in all else as in training.
        again = draw_scenes(generator, len(names) * RENDERS).scene
        leaf = "shape" if attribute == "shape" else "material"
        own = jax.tree.map(lambda x: np.repeat(x, RENDERS, 0), getattr(drawn.scene, leaf))
        pictures = seen(Drawn(again._replace(**{leaf: own}), []))
        embeddings = EMBED[attribute](judges, to_floats(pictures)).reshape(len(names), RENDERS, -1).mean(1)
        galleries[attribute] = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return References(names[:count], seen(drawn)[:count], galleries)


def learn(path: Path, picture: Path, attribute: str, changes: dict[str, Any]) -> Attribute:
    """The attribute of a picture, learned or read from where it was."""
    if not (path / "index.html").exists():
        config = CONFIGS[attribute].get_config()
        config.reference = str(picture)
        config.update_from_flattened_dict(changes)
        customize(config, str(path), resume=(path / "run.json").exists())
    return load_attribute(path)


def pictures_of(
    pipeline: Pipeline,
    learned: Sequence[Attribute],
    prompts: Sequence[str],
    digest: str,
    *,
    timesteps: Sequence[tuple[int, int]] | None = None,
    strengths: Sequence[float] | None = None,
    negative: str = "",
    guidance: Mapping[str, Any] | None = None,
    paint_strength: float | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """A picture of each prompt and seed, with what was learned; where none are given, strengths are 1 and
    timesteps the files' own, as are painting and how guidance acts beside what ``guidance`` has of
    ``Settings``.
    """
    pairs = list(zip(learned, strengths or [1.0] * len(learned), strict=True))
    applied = apply_attributes(
        pipeline, pairs, digest=digest, timesteps=timesteps, paint_strength=paint_strength
    )
    jobs = make_jobs(prompts, SEEDS)
    settings = Settings(negative_prompt=negative, steps=20, guidance=4.0, batch_size=8)
    return np.stack(list(make_with(applied, jobs, settings, guidance=guidance)))


def measured(
    judges: Judges, all_: References, index: int, attribute: str, pictures: UInt8[np.ndarray, "n h w 3"]
) -> dict[str, float]:
    """Shares of pictures with one learned attribute, as the module says."""
    other = OTHER[attribute]
    seen_ = to_floats(pictures)
    nearest = {
        name: (EMBED[name](judges, seen_) @ all_.galleries[name].T).argmax(-1) == index for name in EMBED
    }
    names = judges.materials if attribute == "shape" else judges.shapes
    wanted = np.repeat([names.index(name) for name in PROMPTED[attribute]], len(SEEDS))
    right = np.asarray(CLASSIFY[other](judges, seen_)).argmax(-1) == wanted
    found = {"own": nearest[attribute], "prompted": right, "leaked": nearest[other]}
    found["both"] = found["own"] & found["prompted"]
    return {name: float(np.mean(share)) for name, share in found.items()}


def right_in_both(
    judges: Judges, all_: References, shape: int, appearance: int, pictures: UInt8[np.ndarray, "n h w 3"]
) -> tuple[float, float, float]:
    """Shares of pictures whose shape is nearest to that of one reference, whose appearance is nearest to that
    of another, and of which both are so.
    """
    seen_ = to_floats(pictures)
    first, second = (
        (EMBED[name](judges, seen_) @ all_.galleries[name].T).argmax(-1) == index
        for name, index in (("shape", shape), ("appearance", appearance))
    )
    return float(np.mean(first)), float(np.mean(second)), float(np.mean(first & second))


def prompts_for(attribute: str, word: str) -> list[str]:
    """The prompts of a learned attribute."""
    if attribute == "appearance":
        return [f"{prompt(name, '')} made of {word}" for name in PROMPTED[attribute]]
    return [prompt("", name).replace("object", word).replace("an ", "a ", 1) for name in PROMPTED[attribute]]


def interval(values: Sequence[float], generator: np.random.Generator) -> tuple[float, float]:
    """95 % percentiles of the mean over references drawn again."""
    drawn = generator.choice(np.asarray(values), (4000, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def in_percent(values: Sequence[float], generator: np.random.Generator) -> str:
    """A cell of a table: the mean of shares, with its ``interval``."""
    low, high = interval(values, generator)
    return f"{100 * np.mean(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def recipe(text: str) -> tuple[str, dict[str, Any]]:
    """A recipe's name and what it changes, of NAME:key=value,key=value."""
    name, _, changes = text.partition(":")
    # A comma within brackets belongs to a value.
    pairs = (pair.partition("=") for pair in re.split(r",(?![^\[]*\])", changes) if pair)
    read = {
        key: json.loads(value) if value[:1] in "-0123456789[" or value in ("true", "false") else value
        for key, _, value in pairs
    }
    return name, {key: tuple(value) if isinstance(value, list) else value for key, value in read.items()}


def main() -> None:
    """Learn, make pictures, measure, and write ``results.json``, ``results.md`` and grids."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--references", choices=("held_out", "composed"), default="held_out")
    parser.add_argument("--count", type=int, default=14)
    parser.add_argument("--attributes", nargs="+", choices=list(EMBED), default=list(EMBED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="recipes", nargs="+", type=recipe, default=[("default", {})])
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)

    judges = load_judges()
    all_ = references(given.references, given.count, judges)
    pipeline, digest = load_pipeline(BASE), weights_digest(BASE)
    rows: list[dict[str, Any]] = []
    for name, picture in zip(all_.names, all_.pictures, strict=True):
        write_whole(given.out / "references" / f"{name}.png", png_bytes(picture))
    for recipe_name, changes in given.recipes:
        for seed in given.seeds:
            learned: dict[str, list[Attribute]] = {attribute: [] for attribute in given.attributes}
            for attribute in given.attributes:
                shown = []
                for index, name in enumerate(all_.names):
                    path = given.out / recipe_name / f"seed{seed}" / attribute / name
                    source = given.out / "references" / f"{name}.png"
                    one = learn(path, source, attribute, {**changes, "seed": seed})
                    learned[attribute].append(one)
                    made = pictures_of(pipeline, [one], prompts_for(attribute, one.word), digest)
                    shown.append([all_.pictures[index], *made[:: len(SEEDS)]])
                    found = measured(judges, all_, index, attribute, made)
                    chosen = json.loads((path / "run.json").read_text())["results"]
                    found |= {"step": chosen["chosen"]["step"], "seconds": chosen["timings"]["all"]}
                    key = {"recipe": recipe_name, "attribute": attribute, "reference": name, "seed": seed}
                    rows.append(key | found)
                    print(json.dumps(rows[-1]), flush=True)
                grid = labelled_grid(shown, all_.names, ["reference", *PROMPTED[attribute]], "")
                where = given.out / recipe_name / f"seed{seed}-{attribute}.png"
                write_whole(where, png_bytes(grid))
            if len(learned) == len(EMBED):
                rows += _composed(pipeline, digest, judges, all_, learned, recipe_name, seed, given.out)
    write_whole(given.out / "results.json", json.dumps(rows, indent=1).encode())
    table = as_markdown(rows)
    write_whole(given.out / "results.md", table.encode())
    print(table)


def _composed(
    pipeline: Pipeline,
    digest: str,
    judges: Judges,
    all_: References,
    learned: dict[str, list[Attribute]],
    recipe_name: str,
    seed: int,
    out: Path,
) -> list[dict[str, Any]]:
    """Every reference's shape with the next one's appearance."""
    rows, shown = [], []
    count = len(all_.names)
    for i in range(count):
        j = (i + 1) % count
        pair = [learned["shape"][i], learned["appearance"][j]]
        said = f"a {pair[0].word} made of {pair[1].word}"
        on_white = f"{said} on a white background"
        made = pictures_of(pipeline, pair, [said, on_white], digest)
        shown.append([all_.pictures[i], all_.pictures[j], *made])
        own, prompted, both = right_in_both(judges, all_, i, j, made)
        rows.append(
            {
                "recipe": recipe_name,
                "attribute": "composed",
                "reference": f"{all_.names[i]} + {all_.names[j]}",
                "seed": seed,
                "own": own,
                "prompted": prompted,
                "both": both,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    columns = ["shape of", "appearance of", *(f"{what} {s}" for what in ("", "on white") for s in SEEDS)]
    names = [f"{i + 1}" for i in range(count)]
    write_whole(
        out / recipe_name / f"seed{seed}-composed.png", png_bytes(labelled_grid(shown, names, columns, ""))
    )
    return rows


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Means over references and seeds, in percent, with intervals."""
    generator = np.random.default_rng(0)
    lines = [
        "| recipe | attribute | references | own | prompted | leaked | both |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe_name, attribute in dict.fromkeys((row["recipe"], row["attribute"]) for row in rows):
        some = [row for row in rows if (row["recipe"], row["attribute"]) == (recipe_name, attribute)]
        names = list(dict.fromkeys(row["reference"] for row in some))
        cells = []
        for measure in MEASURES:
            if measure not in some[0]:
                cells.append("")
                continue
            values = [np.mean([row[measure] for row in some if row["reference"] == name]) for name in names]
            cells.append(in_percent(values, generator))
        lines.append(f"| {recipe_name} | {attribute} | {len(names)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
