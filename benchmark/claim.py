"""Does a UNet's encoder carry shape and its decoder appearance? The same recipe with other parts tuned.

python -m benchmark.claim --out=runs/claim --seeds 0 1 2

Each held-out reference's shape and appearance are learned with each of PARTS, all else being equal: the
same steps, rate, pairs and random numbers. What was tuned acts at all timesteps. Measured are, at the step
that the run keeps:

* gain, leakage: of the judges' cosine similarity to the reference, in the learned attribute and in the other
  one, against the base's pictures from the same noise (``attributes.measure``);
* own, prompted, leaked: shares of pictures, as ``benchmark.attributes`` has them.

The references of a seed, an attribute and a part are learned as one list, one after the other, so that they
share the base's own pictures and the compiled step.

Intervals are 95 % percentiles of a bootstrap over references. Parts are compared with ``full`` in pairs: the
difference on the same reference, averaged over seeds. Every run is kept in ``--out`` and skipped when the
command is given again; with ``--shares`` another process does every n-th list, and the last command without
it collects all.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from attrjax.attributes.customize import customize
from attrjax.attributes.probing import read_probes
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.judges import load_judges
from attrjax.checkpoints.attribute import OTHER, load_attribute, weights_digest
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.data.pictures import png_bytes
from attrjax.report import page, plot
from attrjax.runs import RECORD, write_whole
from benchmark.attributes import CONFIGS, interval, measured, pictures_of, prompts_for, references

PARTS = ("encoder", "mid", "decoder", "full", "cross_attention", "decoder_attention")
AGAINST = "full"
MEASURES = ("gain", "leakage", "own", "prompted", "leaked")
SHARES = MEASURES[2:]
MEASURED = "measured.json"
# What is the same in all runs. One at a time, for a stack is no gain on a CPU.
ALIKE = {
    "steps": 75,
    "probe.every": 25,
    "stack": 1,
    "timesteps": (0, 1000),
    "sampling_timesteps": (0, 1000),
    "guidance_interval": (0, 1000),
    "guidance_rescale": 0.0,
    "paint_strength": 0.0,
}


def main() -> None:
    """Learn with every part, measure, and write ``rows.jsonl``, ``claim.md`` and ``index.html``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--references", choices=("held_out", "composed"), default="held_out")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--attributes", nargs="+", choices=list(OTHER), default=list(OTHER))
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--shares", default="0/1", help="I/N: only lists I, I + N, ...")
    parser.add_argument("--collect", action="store_true", help="only what is there already")
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    first, every = map(int, given.shares.split("/"))

    judges = load_judges()
    all_ = references(given.references, given.count, judges)
    pipeline, digest = load_pipeline(BASE), weights_digest(BASE)
    rows = []
    for name, picture in zip(all_.names, all_.pictures, strict=True):
        write_whole(given.out / "references" / f"{name}.png", png_bytes(picture))
    lists = itertools.product(given.seeds, given.attributes, given.parts)
    for seed, attribute, part in itertools.islice(lists, first, None, every):
        where = given.out / f"seed{seed}" / attribute / part
        if not given.collect:
            learn_list(where, given.out / "references", all_.names, attribute, part, seed)
        for index, name in enumerate(all_.names):
            path = where / name
            found = path / MEASURED
            if not found.exists() and given.collect:
                continue
            if not found.exists():
                one = load_attribute(path)
                made = pictures_of(pipeline, [one], prompts_for(attribute, one.word), digest)
                shares = measured(judges, all_, index, attribute, made)
                write_whole(found, json.dumps(shares).encode())
            rows.append(row_of(path, attribute, name, part, seed))
            print(json.dumps({key: rows[-1][key] for key in rows[-1] if key != "curve"}), flush=True)
    if every > 1:
        return
    write_whole(given.out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    table = as_markdown(rows)
    write_whole(given.out / "claim.md", table.encode())
    write_whole(given.out / "index.html", as_page(rows).encode())
    print(table)


def learn_list(
    where: Path, pictures: Path, names: Sequence[str], attribute: str, part: str, seed: int
) -> None:
    """Learn the attribute of each picture by one part of the UNet, all but those that were measured before.

    Args:
        where: gets a directory for each name.
        pictures: has NAME.png of each name.
    """
    references = where / "references.jsonl"
    lines = [
        {"reference": str(pictures / f"{name}.png"), "name": name}
        for name in names
        if not (where / name / MEASURED).exists()
    ]
    if not lines:
        return
    if not references.exists():
        write_whole(references, "".join(json.dumps(line) + "\n" for line in lines).encode())
    config = CONFIGS[attribute].get_config()
    config.references, config.partition, config.seed = str(references), part, seed
    config.update_from_flattened_dict(ALIKE)
    customize(config, str(where), resume=(where / RECORD).exists())


def row_of(path: Path, attribute: str, reference: str, part: str, seed: int) -> dict[str, Any]:
    """What a run measured, with its curve: (step, gain, leakage) of each probe."""
    chosen = json.loads((path / "run.json").read_text())["results"]["chosen"]
    key = {"attribute": attribute, "reference": reference, "part": part, "seed": seed}
    numbers = {name: chosen[name] for name in ("step", "gain", "leakage")}
    curve = [(one.step, one.gain, one.leakage) for one in read_probes(path)]
    return key | numbers | json.loads((path / "measured.json").read_text()) | {"curve": curve}


def by_reference(
    rows: Sequence[dict[str, Any]], attribute: str, part: str, measure: str
) -> dict[str, dict[int, float]]:
    """A measure of each reference's runs, by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if (row["attribute"], row["part"]) == (attribute, part):
            found.setdefault(row["reference"], {})[row["seed"]] = row[measure]
    return found


def paired(
    rows: Sequence[dict[str, Any]], attribute: str, part: str, against: str, measure: str
) -> list[float]:
    """Differences of two parts, one for each reference that has both: the mean over seeds that have both."""
    one, other = (by_reference(rows, attribute, name, measure) for name in (part, against))
    differences = []
    for reference in one.keys() & other.keys():
        seeds = one[reference].keys() & other[reference].keys()
        if seeds:
            differences.append(float(np.mean([one[reference][s] - other[reference][s] for s in seeds])))
    return differences


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Two tables for each attribute: the measures of each part, and its differences from AGAINST."""
    generator = np.random.default_rng(0)

    def cell(values: Sequence[float], measure: str, signed: bool) -> str:
        scale, digits = (100, 1) if measure in SHARES else (1, 2)
        numbers = [scale * x for x in (np.mean(values), *interval(values, generator))]
        mean, low, high = (f"{x:{'+' if signed else ''}.{digits}f}" for x in numbers)
        # A difference counts where its interval leaves 0 out.
        sure = signed and numbers[1] * numbers[2] > 0
        return f"**{mean}** [{low}, {high}]" if sure else f"{mean} [{low}, {high}]"

    lines = []
    for attribute in dict.fromkeys(row["attribute"] for row in rows):
        parts = list(dict.fromkeys(row["part"] for row in rows if row["attribute"] == attribute))
        head = f"| {attribute}: " + "{} | references (runs) | " + " | ".join(MEASURES) + " |"
        lines += [head.format("tuned"), "|---" * (2 + len(MEASURES)) + "|"]
        for part in parts:
            runs = sum((row["attribute"], row["part"]) == (attribute, part) for row in rows)
            cells = []
            for measure in MEASURES:
                found = by_reference(rows, attribute, part, measure).values()
                cells.append(cell([float(np.mean(list(seeds.values()))) for seeds in found], measure, False))
            lines.append(f"| {part} | {len(found)} ({runs}) | " + " | ".join(cells) + " |")
        lines += ["", head.format(f"less {AGAINST}"), "|---" * (2 + len(MEASURES)) + "|"]
        for part in parts:
            differences = {m: paired(rows, attribute, part, AGAINST, m) for m in MEASURES}
            if part == AGAINST or not differences["gain"]:
                continue
            cells = [cell(values, measure, True) for measure, values in differences.items()]
            lines.append(f"| {part} | {len(differences['gain'])} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def as_page(rows: Sequence[dict[str, Any]]) -> str:
    """Curves over steps: means over all runs."""
    blocks = []
    for attribute in dict.fromkeys(row["attribute"] for row in rows):
        mine = [row for row in rows if row["attribute"] == attribute]
        plots = []
        for column, label in ((1, f"gain in {attribute}"), (2, f"leakage of {OTHER[attribute]}")):
            series = {}
            for part in dict.fromkeys(row["part"] for row in mine):
                curves = np.asarray([row["curve"] for row in mine if row["part"] == part])
                mean = curves.mean(0)
                series[part] = [(float(point[0]), float(point[column])) for point in mean]
            plots.append(plot.line_plot(series, "step", f"{label}, cosine", f"{label.capitalize()}"))
        blocks.append(page.section(f"The {attribute} of a picture", *plots))
    intro = page.paragraph(
        "The same recipe with other parts of the UNet tuned. Each line is the mean over references and "
        "seeds, measured by attrworld's judges against pictures of the untuned base from the same noise; "
        "step 0 is what the base's filter recognizes without any tuning."
    )
    return page.page("What each part of the UNet learns", [intro, *blocks])


if __name__ == "__main__":
    main()
