"""The task ``demo``: the base's shapes in its materials, two attributes learned, and a page about them."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image
from safetensors import safe_open
from tqdm import tqdm

from attrjax.attributes.base import why_not_learned
from attrjax.attrworld.bundled import base_or_bundled
from attrjax.attrworld.captions import prompt
from attrjax.attrworld.contact_sheet import material_label, shape_label
from attrjax.attrworld.scenes import unseen
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.pipeline import components_of, load_pipeline
from attrjax.data.pictures import png_bytes
from attrjax.demo_attributes import Learned, learn, learned_section
from attrjax.generate import Job, Settings, choose_sampler, make_pictures
from attrjax.report import page
from attrjax.report.grid import labelled_grid
from attrjax.runs import (
    RECORD,
    check_run,
    compile_seconds,
    timed,
    use_compile_cache,
    versions,
    write_record,
    write_whole,
)
from attrjax.sample import picture_path

# A run that goes on may make its pictures at another pace.
MAY_CHANGE = ("batch_size", "cache_dir")
OWN_PROMPT = "a star made of gold on a blue background"


def demo(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Make a picture of every shape in every material, learn two attributes, and write a page about them.

    The run directory gets ``index.html``, which needs nothing else, ``grid.png``, ``samples/PROMPT-SEED.png``
    and ``run.json``; ``shape`` and ``appearance`` in it are the runs that learn. With ``resume``, pictures
    that are there are kept. Of a base that attributes cannot be learned of the pictures alone are made.

    Raises:
        ValueError, FileNotFoundError: a word is not of the world, or there is no such base.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    base = find_base(base_or_bundled(config["base"]))
    shapes, materials = config["shapes"], config["materials"]
    jobs = [Job(prompt(shape, material), config["seed"]) for shape in shapes for material in materials]
    reasons = (why_not_learned(base, run["image_encoder"]) for run in config["learn"].values())
    unlearned = next(filter(None, reasons), "")
    check_run(workdir, config, resume=resume, may_change=MAY_CHANGE)
    if unlearned:
        logging.info("pictures of the base are made, and nothing is learned: %s", unlearned)
    use_compile_cache(config["cache_dir"])
    directory = Path(workdir)
    paths = [picture_path(directory, job) for job in jobs]
    missing = [(job, path) for job, path in zip(jobs, paths, strict=True) if not path.exists()]
    # The time of a run that goes on is that of all its parts.
    record = directory / RECORD
    timings = json.loads(record.read_text()).get("timings", {}) if record.exists() else {}
    write_record(directory, config, {"timings": timings})

    if missing:
        with timed(timings, "load"):
            drawing = [name for name in components_of(base) if name != "image_encoder"]
            pipeline = load_pipeline(base, components=drawing)
        chosen = {name: config[name] for name in ("sampler", "steps", "guidance", "batch_size")}
        settings = Settings(**chosen)
        sampler, _ = choose_sampler(pipeline, settings)
        logging.info(
            "%d pictures: %s, %d steps, %d at a time; compiling comes first",
            *(len(missing), sampler, settings.steps, settings.batch_size),
        )
        bar = tqdm(total=len(missing), unit="picture", leave=False)
        with timed(timings, "make"), compile_seconds() as compiling, bar:
            pictures = make_pictures(pipeline, [job for job, _ in missing], settings)
            for picture, (_, path) in zip(pictures, missing, strict=True):
                write_whole(path, png_bytes(picture))
                bar.update()
        timings["compile"] = round(timings.get("compile", 0.0) + sum(compiling), 3)

    made = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    table = [made[first : first + len(materials)] for first in range(0, len(made), len(materials))]
    rows, columns = [shape_label(name) for name in shapes], [material_label(name) for name in materials]
    how = f"{config['sampler']}, {config['steps']} steps, guidance {config['guidance']:g}"
    caption = f"{config['base'] or 'the bundled base'} · {how}, seed {config['seed']}"
    write_whole(directory / "grid.png", png_bytes(labelled_grid(table, rows, columns, caption)))
    names = [str(path.relative_to(directory)) for path in paths]
    learned = None
    if config["learn"] and not unlearned:
        with timed(timings, "learn"):
            learned = learn(config, base, directory)
    write_record(directory, config, {"base": str(base), "pictures": names, "timings": timings})
    text = demo_page(config, base, table, (rows, columns), timings, learned, unlearned)
    write_whole(directory / "index.html", text.encode())
    logging.info("wrote %d pictures and %s", len(missing), directory / "index.html")


def demo_page(
    config: Mapping[str, Any],
    base: Path,
    pictures: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    labels: tuple[Sequence[str], Sequence[str]],
    timings: Mapping[str, float],
    learned: Learned | None,
    unlearned: str = "",
) -> page.Html:
    """The page about a run.

    Args:
        config: of the run.
        base: its base's directory.
        pictures: [shape][material].
        labels: of the shapes and of the materials.
        timings: seconds for each part.
        learned: attributes, where some were.
        unlearned: why there are none, where some were asked for.
    """
    shapes, materials = config["shapes"], config["materials"]
    count = len(shapes) * len(materials)
    own = f"--config.base={shlex.quote(config['base'])} " if config["base"] else ""
    height, width = pictures[0][0].shape[:2]
    prompts = [[prompt(shape, material) for material in materials] for shape in shapes]
    # Which pairs training never showed is known of the bundled base alone.
    pairs = [(r, c) for r in range(len(shapes)) for c in range(len(materials))]
    marked = [] if config["base"] else [(r, c) for r, c in pairs if unseen(shapes[r], materials[c])]
    caption = f"A picture for every shape and material, {width} x {height} pixels, all from the same noise."
    if marked:
        caption += (
            f" The base learned each of these words, but never saw the {len(marked)} outlined pairs together."
        )
    parts = {
        "Reading the base": timings.get("load", 0.0),
        "Compiling, once: the programs are kept for the next run": timings.get("compile", 0.0),
        f"Making {count} pictures": timings.get("make", 0.0) - timings.get("compile", 0.0),
    }
    if learned:
        parts["Learning two attributes, and pictures with them"] = timings.get("learn", 0.0)
    seconds: list[list[Any]] = [[name, round(value, 1)] for name, value in parts.items()]
    own_keys = {key: value for key, value in config.items() if key != "learn"}
    seconds.append(["All of it", round(sum(parts.values()), 1)])
    facts = {
        "Sampler": config["sampler"],
        "Steps": config["steps"],
        "Guidance": config["guidance"],
        "Seed": config["seed"],
        "Pictures at a time": config["batch_size"],
        "Computed on": versions()["device"],
        "Base": config["base"] or "the one that comes with attrjax",
    }
    return page.page(
        "One attribute of one picture" if learned else f"{len(shapes)} shapes in {len(materials)} materials",
        [
            *([learned_section(learned)] if learned else []),
            *([page.paragraph(f"No attribute was learned: {unlearned}.")] if unlearned else []),
            page.heading(f"The base: {len(shapes)} shapes in {len(materials)} materials"),
            page.paragraph(
                "A text-to-image diffusion model that is small enough to come with the package made these "
                "pictures on this computer, each from a sentence such as “"
                f"{prompts[0][-1]}”. It is the base that attrjax learns new shapes and appearances on."
            ),
            page.picture_table(pictures, *labels, caption=caption, alts=prompts, marked=marked),
            page.section(
                "With your own words",
                page.paragraph(
                    "Run this in the repository. Any of the words above will do, and a backdrop's colour."
                ),
                page.code_block(
                    f"{python_name()} -m attrjax.main --config=configs/sample.py {own}\\\n"
                    f"    --config.prompts='(\"{OWN_PROMPT}\",)' --workdir=runs/mine"
                ),
            ),
            page.section(
                "How they were made",
                page.facts_table(facts, "Settings"),
                page.data_table(("Part", "Seconds"), seconds, "Time that each part took"),
                page.folded(
                    "The command that makes the same pictures again, with all settings",
                    page.code_block(
                        page.command("configs/demo.py", "runs/demo-again", own_keys, python_name())
                    ),
                ),
            ),
            page.section(
                "The base",
                page.data_table(
                    ("Part", "Parameters", "Files"), base_sizes(base), "What the base is made of"
                ),
                page.paragraph(
                    "It is a directory in the layout of diffusers: torch diffusers loads it, too. Any Stable "
                    "Diffusion 1.x, 2.x or XL can take its place with --config.base; attributes are learned "
                    "of 1.x and 2.x, with an image encoder."
                ),
            ),
            page.section(
                "The prompts",
                page.data_table(
                    ("Column", "Prompt"),
                    list(zip(labels[1], prompts[0], strict=True)),
                    "Of the first row; in the others another shape takes the place of the first",
                ),
            ),
        ],
        footer="Made with attrjax. This file holds all that it shows, and fetches nothing.",
    )


def base_sizes(base: Path) -> list[list[Any]]:
    """Name, parameters and size of each part of a base, and of all together."""
    rows: list[list[Any]] = []
    total = [0, 0]
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        parameters, size = 0, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="np") as weights:
                names = weights.keys()
                parameters += sum(int(np.prod(weights.get_slice(name).get_shape())) for name in names)
        rows.append([folder.name, parameters or "", megabytes(size)])
        total = [total[0] + parameters, total[1] + size]
    return [*rows, ["all", total[0], megabytes(total[1])]]


def megabytes(size: int) -> str:
    """A file's size as people say it."""
    return f"{size / 1e6:.1f}\u00a0MB" if size >= 1e5 else f"{max(1, round(size / 1e3))}\u00a0kB"


def python_name() -> str:
    """How this Python is called from here: its path where it is below this directory, else its name."""
    name = os.path.relpath(sys.executable)
    return "python" if name.startswith("..") else name
