"""The demo's second half: an attribute of one picture, another of a second, and both in one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.customize import customize
from attrjax.attributes.painting import make_with
from attrjax.attrworld.bundled import REFERENCES
from attrjax.checkpoints.attribute import ATTRIBUTES, load_attribute, weights_digest
from attrjax.checkpoints.pipeline import REQUIRED, load_pipeline
from attrjax.data.pictures import png_bytes
from attrjax.generate import Settings, make_jobs
from attrjax.report import page
from attrjax.report.grid import labelled_grid
from attrjax.runs import plain, write_whole

# {0} is the word of the shape, {1} that of the appearance.
PROMPTS = {
    "shape": ("a red {0}", "a {0} made of marble", "a {0} with zebra stripes", "a wooden {0}"),
    "appearance": ("a ball made of {1}", "a vase made of {1}", "a chair made of {1}", "a house made of {1}"),
    "both": ("a {0} made of {1}", "a {0} made of {1} on a pink background"),
}
TITLES = {
    "shape": "Its shape, and no more of it",
    "appearance": "Its appearance, and no more of it",
    "both": "The shape of the first with the appearance of the second",
}
SEEDS = (0, 1, 2, 3)


class Learned(NamedTuple):
    """What the page shows.

    Attributes:
        references: for each attribute the picture that it was learned from.
        prompts: for each of ``PROMPTS`` with the words in it.
        pictures: for each of ``PROMPTS`` [prompt, seed].
    """

    references: dict[str, UInt8[np.ndarray, "h w 3"]]
    prompts: dict[str, list[str]]
    pictures: dict[str, UInt8[np.ndarray, "p s h w 3"]]


def learn(config: Mapping[str, Any], base: Path, directory: Path) -> Learned:
    """Learn both attributes, each in a run directory of its own, and make pictures with them.

    What is learned already is kept, and what was begun goes on.

    Args:
        config: of the demo; ``learn`` has the two runs' configs.
        base: the base's directory.
        directory: of the demo's run.

    Raises:
        ValueError, FileNotFoundError: as ``customize``.
    """
    # Not in the config's own order, which is the alphabet's: the page speaks of the first and the second.
    runs = {name: plain(config["learn"][name]) | {"base": config["base"]} for name in ATTRIBUTES}
    for attribute, run in runs.items():
        where = directory / attribute
        if not (where / "index.html").exists():
            logging.info("learning the %s of %s", attribute, run["reference"] or "a picture of the package")
            customize(run, str(where), resume=(where / "run.json").exists())
    attributes = {name: load_attribute(directory / name) for name in runs}
    words = [attributes[name].word for name in ("shape", "appearance")]
    pipeline, digest = load_pipeline(base, components=REQUIRED), weights_digest(base)
    settings = Settings(**{name: config[name] for name in ("sampler", "steps", "guidance", "batch_size")})
    prompts, pictures = {}, {}
    for name, asked in PROMPTS.items():
        chosen = attributes.values() if name == "both" else [attributes[name]]
        applied = apply_attributes(pipeline, [(one, 1.0) for one in chosen], digest=digest)
        prompts[name] = [prompt.format(*words) for prompt in asked]
        jobs = make_jobs(prompts[name], SEEDS)
        made = np.stack(list(make_with(applied, jobs, settings)))
        pictures[name] = made.reshape(len(asked), len(SEEDS), *made.shape[1:])
        grid = labelled_grid(list(pictures[name]), prompts[name], [f"seed {seed}" for seed in SEEDS], "")
        write_whole(directory / f"{name}.png", png_bytes(grid))
    references = {
        name: np.asarray(Image.open(run["reference"] or REFERENCES / f"{name}.png").convert("RGB"))
        for name, run in runs.items()
    }
    return Learned(references, prompts, pictures)


def learned_section(learned: Learned) -> page.Html:
    """What the page says of it."""
    columns = [f"seed {seed}" for seed in SEEDS]
    blocks = [
        page.paragraph(
            "From each of the two pictures below one attribute was learned: of the first its shape, of the "
            "second its appearance. The base has never seen either shape or material. In prompts, a "
            "placeholder stands for what was learned."
        ),
        page.picture_table(
            [list(learned.references.values())],
            ["learned from"],
            [f"for its {name}" for name in learned.references],
            caption="The references",
            cell=128,
        ),
    ]
    blocks += [
        page.picture_table(list(learned.pictures[name]), learned.prompts[name], columns, caption=title)
        for name, title in TITLES.items()
    ]
    blocks.append(
        page.paragraph(
            "shape/index.html and appearance/index.html beside this file show each of them before and after, "
            "what was measured on the way, and the command that learns it."
        )
    )
    return page.section("Learned from two pictures", *blocks)
