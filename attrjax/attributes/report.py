"""The page about a learned attribute: what was there, what came of it, and how it was measured."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from attrjax.attributes.measure import Probe
from attrjax.checkpoints.attribute import OTHER
from attrjax.data.pictures import to_uint8
from attrjax.data.references import Reference
from attrjax.metrics_log import METRICS
from attrjax.report import page, plot
from attrjax.runs import versions, write_whole

Pictures = UInt8[np.ndarray, "n h w 3"]


def write_report(
    directory: Path,
    config: Mapping[str, Any],
    reference: Reference,
    jobs: Sequence[tuple[str, int]],
    before: Pictures,
    after: Pictures,
    probes: Sequence[Probe],
    results: Mapping[str, Any],
    painted: UInt8[np.ndarray, "h w 3"] | None = None,
) -> None:
    """Write ``index.html``.

    Args:
        directory: of the run; it has the metrics already.
        config: of the run.
        reference: that was learned from.
        jobs: prompt and seed of each picture.
        before, after: pictures without and with the attribute, from the same noise.
        probes: what was measured.
        results: ``chosen``, ``bytes``, ``peak_memory``, ``timings``, ``mask``, ``tuned``.
        painted: the first of ``before``, painted, where those of ``after`` were made from such pictures.
    """
    attribute, chosen = config["attribute"], results["chosen"]
    picture, mask = to_uint8(reference.picture[None])[0], np.round(255 * reference.mask).astype(np.uint8)
    origins = {
        "given": "the mask that was given",
        "alpha": "the picture's transparency",
        "segmenter": "found by the segmenter",
        "whole": "the whole picture",
    }
    shown, names = [picture, np.repeat(mask[..., None], 3, -1)], ["reference", "its foreground"]
    after_words = "after, with what was learned."
    if painted is not None:
        shown, names = [*shown, painted], [*names, "its material on a form"]
        after_words = (
            "after, with what was learned: the reference's material was laid on the form, noise was added to "
            "that, and what was learned made a picture of it."
        )
    prompts = list(dict.fromkeys(prompt for prompt, _ in jobs))
    seeds = list(dict.fromkeys(seed for _, seed in jobs))
    table, columns = [], [f"seed {seed}, {when}" for seed in seeds for when in ("before", "after")]
    for row in range(len(prompts)):
        at = range(row * len(seeds), (row + 1) * len(seeds))
        table.append([picture for i in at for picture in (before[i], after[i])])
    path = directory / METRICS  # there is none where nothing was tuned
    metrics = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    loss = {
        name: [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        for name in ("pairs", "prior")
    }
    curves = {
        f"gain: {attribute}": [(one.step, one.gain) for one in probes],
        f"leakage: {OTHER[attribute]}": [(one.step, one.leakage) for one in probes],
        "chosen step": [(chosen["step"], chosen["gain"]), (chosen["step"], chosen["leakage"])],
    }
    loss = {name: points for name, points in loss.items() if points}
    plots = [plot.line_plot(curves, "step", "change of similarity", "Gain and leakage")]
    if loss:
        plots.append(plot.line_plot(loss, "step", "loss", "Training loss"))
    facts = {
        "Chosen step": chosen["step"],
        f"Gain in {attribute}": round(chosen["gain"], 3),
        f"Leakage of {OTHER[attribute]}": round(chosen["leakage"], 3),
        "Foreground": origins[results["mask"]],
        "Peak memory": f"{results['peak_memory'] / 1e9:.1f} GB",
        "Size of the learned file": f"{results['bytes'] / 1e6:.2f} MB",
        "Tuned": results["tuned"][0].removeprefix("tuned: "),
        "Computed on": versions()["device"],
    }
    seconds = [[name, round(value, 1)] for name, value in results["timings"].items()]
    word = config["placeholder"]
    text = page.page(
        f"The {attribute} of one picture",
        [
            page.paragraph(
                f"attrjax learned the {attribute} of the picture below, and no more of it. In prompts {word} "
                f"stands for it. Every pair of pictures was made from the same noise: before, with "
                f"“{config['initial']}” in the place of {word}, by the base as it was; {after_words}"
            ),
            page.picture_table(
                [shown],
                ["learned from"],
                names,
                caption="The reference",
                cell=128,
            ),
            page.picture_table(table, prompts, columns, caption="Before and after"),
            page.section(
                "With your own words",
                page.code_block(
                    f"python -m attrjax.main --config=configs/sample.py {base_flags(config)}\\\n"
                    f"    --config.attributes='(\"{directory}\",)' \\\n"
                    f"    --config.prompts='(\"{prompts[0]}\",)' --workdir=runs/mine"
                ),
            ),
            page.section(
                "What was measured",
                page.paragraph(
                    f"Gain is by how much the pictures come nearer to the reference in {attribute}, leakage "
                    f"by how much they come nearer in {OTHER[attribute]}, which they should not; both in "
                    "similarity (of what is the same it is 1), against the untuned base. The step with the "
                    "largest gain less leakage is kept, of steps that are alike the last."
                ),
                *plots,
                page.facts_table(facts, "Results"),
                page.data_table(("Part", "Seconds"), seconds, "Time that each part took"),
                page.paragraph(" · ".join(line.strip() for line in results["tuned"])),
            ),
            page.section(
                "Made again by",
                page.folded(
                    "The command with all settings",
                    page.code_block(page.command(f"configs/{attribute}.py", "runs/again", config)),
                ),
            ),
        ],
        footer="Made with attrjax. This file holds all that it shows, and fetches nothing.",
    )
    write_whole(directory / "index.html", text.encode())


def base_flags(config: Mapping[str, Any]) -> str:
    """What a command of ``configs/sample.py`` must say of a run's base and size, each with a space behind."""
    said = {name: config[name] for name in ("base", "variant")}
    said |= {"height": config["size"], "width": config["size"]}
    return "".join(f"--config.{name}={shlex.quote(str(value))} " for name, value in said.items() if value)
