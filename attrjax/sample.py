"""The task ``sample``: pictures from prompts into a run directory (``configs/sample.py`` says what can be
set).
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from attrjax.attributes.apply import Applied
from attrjax.attributes.painting import make_with, painted_word, share_of
from attrjax.attrworld.bundled import base_or_bundled
from attrjax.checkpoints.attribute import load_attribute, weights_digest
from attrjax.data.pictures import load_picture, png_bytes
from attrjax.data.references import load_cover
from attrjax.diffusion.samplers import is_stochastic
from attrjax.diffusion.steps import plan, start_index
from attrjax.generate import Job, Settings, choose_sampler, devices_of, latent_shape, make_jobs, vae_factor
from attrjax.parallel.mesh import make_mesh
from attrjax.parallel.start import end_on_sigterm, together
from attrjax.report.grid import labelled_grid
from attrjax.runs import check_run, compile_seconds, slug, timed, use_compile_cache, write_record, write_whole
from attrjax.sample_parts import (
    DTYPES,
    UNSET,
    attribute_sets,
    load_adapters,
    load_base,
    make_settings,
    other_said,
    prompts_with,
    read_latents,
    with_attributes,
)

# A run that goes on may be asked for more pictures, and may make them at another pace.
MAY_CHANGE = ("prompts", "seeds", "batch_size", "cache_dir", "progress", "mesh")


class Part(NamedTuple):
    """The pictures that are made with one set of attributes.

    Attributes:
        name: of the set; "" where there is only one.
        applied: the base with its attributes; where there are several sets, none before their turn.
        settings: how pictures are made.
        jobs, paths: the pictures, and where they are written.
        evaluations: how often the network is evaluated for a picture of each prompt.
        painted: prompts whose pictures are painted.
    """

    name: str
    applied: Applied | None
    settings: Settings
    jobs: list[Job]
    paths: list[Path]
    evaluations: dict[str, int]
    painted: list[str]


def sample(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Make the pictures that the config describes, and write them to the run directory.

    It gets ``samples/PROMPT-SEED.png`` for every prompt and seed, ``grid.png`` with all of them, and
    ``run.json`` with config, versions, what was chosen and how long it took. Of several sets of attributes
    each has a directory in ``samples`` and rows in the grid. With ``resume``, pictures that are there are
    kept.

    Pictures are divided over the devices. Each of several processes makes and writes a share of its own, and
    the first one writes the rest when all are there.

    Raises:
        ValueError, FileNotFoundError: the config does not fit the base or itself, or files are missing or
            damaged.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    end_on_sigterm()  # what was made is there
    if config["dtype"] not in DTYPES:
        raise ValueError(f"dtype={config['dtype']!r} must be one of {', '.join(DTYPES)}")
    base_or_bundled(config["base"])
    check_run(workdir, config, resume=resume, may_change=MAY_CHANGE)
    jobs = make_jobs(config["prompts"], config["seeds"], read_latents(config["latents"]))
    settings, sets = make_settings(config), attribute_sets(config)
    mesh = devices_of(make_mesh(**config["mesh"]))
    use_compile_cache(config["cache_dir"])

    directory, first = Path(workdir), jax.process_index() == 0
    timings: dict[str, float] = {}
    with timed(timings, "load"):
        pipeline = load_base(config)
        adapters = load_adapters(pipeline, config["loras"], config["lora_strengths"])
        learned = {path: load_attribute(path) for one in sets.values() for path in one["attributes"]}
        digest = weights_digest(pipeline.path, config["variant"] or None) if learned else ""
    words = {attribute.word for attribute in learned.values()}
    sampler, schedule = choose_sampler(pipeline, settings)
    height, width = (side * vae_factor(pipeline) for side in latent_shape(pipeline, settings, jobs)[:2])
    init_picture = init_cover = None
    if config["init_image"]:
        init_picture = load_picture(config["init_image"], height, width)
        init_cover = load_cover(config["init_image"], config["init_mask"], height, width)

    def part_of(name: str) -> Part:
        own = [learned[path] for path in sets[name]["attributes"]]
        prompts = config["prompts"]
        if name:
            prompts = prompts_with({one.word for one in own}, words, prompts, name)
        applied = applied_of(name, prompts)
        how = settings
        if config["negative_attributes"]:
            said = [settings.negative_prompt] if settings.negative_prompt else []
            how = settings._replace(negative_prompt=", ".join([*said, *(other_said(one) for one in own)]))
        chosen = [job for job in jobs if job.prompt in prompts]
        paths = [picture_path(directory, job, name) for job in chosen]
        painted = [prompt for prompt in prompts if painted_word(applied, prompt)]
        evaluations = {prompt: evaluations_of(applied, prompt) for prompt in prompts}
        return Part(name, None if name else applied, how, chosen, paths, evaluations, painted)

    def applied_of(name: str, prompts: Sequence[str]) -> Applied:
        own = [learned[path] for path in sets[name]["attributes"]]
        try:
            return with_attributes(pipeline, adapters, own, sets[name] | {"prompts": prompts}, digest)
        except ValueError as error:
            raise ValueError(f"with {name} alone: {error}" if name else str(error)) from None

    def evaluations_of(applied: Applied, prompt: str) -> int:
        whole, word = len(plan(schedule, settings.steps).timesteps), painted_word(applied, prompt)
        if init_picture is not None:
            return whole - start_index(settings.strength, settings.steps)
        if word is None:
            return whole
        return 2 * whole - start_index(share_of(applied.paintings[word], settings.steps), settings.steps)

    with timed(timings, "load"):
        parts = [part_of(name) for name in sets]
    painted = {part.name: part.painted for part in parts}
    known = {prompt for part in parts for prompt in part.evaluations}
    if unknown := [prompt for prompt in config["prompts"] if prompt not in known]:
        raise ValueError(
            f"no set of attributes makes {unknown[0]!r}: a prompt has words of one set and none that only "
            "others have; one without any is for an empty set"
        )
    if config["init_mask"] and (init_picture is None or not any(painted.values())):
        raise ValueError(
            "init_mask says what of init_image is painted, and nothing is: name an init_image, and in "
            "attributes an appearance that was learned with a paint_strength"
        )
    every = [(number, i) for number, part in enumerate(parts) for i in range(len(part.jobs))]
    missing = [(number, i) for number, i in every if not parts[number].paths[i].exists()]
    together("looked")  # before one of the processes writes
    if first:
        write_record(directory, config)
    own = missing[jax.process_index() :: jax.process_count()]
    chosen = {
        "base": str(pipeline.path),
        "sampler": sampler,
        "stochastic": is_stochastic(sampler, settings.eta),
        "guidance": settings.guidance,
        "evaluations": max(max(part.evaluations.values()) for part in parts),
        "painted": painted.get("", painted),
        "height": height,
        "width": width,
        "pictures": [str(parts[number].paths[i].relative_to(directory)) for number, i in every],
    }
    logging.info(
        "%d pictures of %d x %d: %s, %d steps, guidance %g, %s; %d are there already",
        *(len(every), width, height, sampler, settings.steps, settings.guidance, config["dtype"]),
        len(every) - len(missing),
    )
    stepwise = per_step_progress(config["progress"])
    at_once = settings.batch_size * (mesh.size if mesh else 1)
    shares = [[i for of, i in own if of == number] for number in range(len(parts))]
    total = 0
    for part, share in zip(parts, shares, strict=True):
        steps = sum(part.evaluations[part.jobs[i].prompt] for i in share)
        # Batches are filled up.
        total += steps * -(-len(share) // at_once) * at_once // len(share) if stepwise and share else steps
    logging.info("compiling; the bar begins with the first %s", "step" if stepwise else "picture")
    # A delay keeps it away until then.
    bar = tqdm(total=total, unit="step", leave=False, delay=0.001, disable=not first)
    with timed(timings, "make"), compile_seconds() as compiling, bar:

        def on_step(_: int) -> None:
            # Where nobody reads the bar any more (a closed pipe) pictures are made all the same.
            with contextlib.suppress(OSError):
                if not bar.n:
                    bar.unpause()  # so that the time left does not count compilation
                bar.update(at_once)

        for part, share in zip(parts, shares, strict=True):
            if not share:
                continue
            pictures = make_with(
                part.applied or applied_of(part.name, list(part.evaluations)),
                [part.jobs[i] for i in share],
                part.settings,
                # What is said of guidance goes before what the attributes' files say.
                guidance={name: getattr(settings, name) for name in UNSET if config[name] != UNSET[name]},
                init_picture=init_picture,
                init_cover=init_cover,
                mesh=mesh,
                on_step=on_step if stepwise else None,
            )
            for picture, i in zip(pictures, share, strict=True):
                write_whole(part.paths[i], png_bytes(picture))
                if not stepwise:
                    bar.update(part.evaluations[part.jobs[i].prompt])
    timings["compile"] = round(sum(compiling), 3)
    if own:
        timings["per_picture"] = round((timings["make"] - timings["compile"]) / len(own), 3)
    together("made")
    if not first:
        return
    write_record(directory, config, {"chosen": chosen, "timings": timings})
    name = config["base"] or "the bundled base"
    made_with = f"{name} · {sampler}, {settings.steps} steps, guidance {settings.guidance:g}"
    write_whole(directory / "grid.png", png_bytes(grid_of(parts, made_with)))
    logging.info(
        "wrote %d pictures (%.1f s each, %.1f s to compile) and %s",
        *(len(missing), timings.get("per_picture", 0.0), timings["compile"], directory / "grid.png"),
    )


def picture_path(directory: Path, job: Job, of: str = "") -> Path:
    """Where a picture is written; ``of`` is the name of its set of attributes, where there are several."""
    return directory / "samples" / of / f"{slug(job.prompt)}-{job.seed}.png"


def per_step_progress(choice: str) -> bool:
    """Whether the progress bar moves with every step, or with every picture.

    For a bar of steps the sampling program is called once for each, and waited for. That costs nothing on a
    CPU, where steps are long; an accelerator would stand still between them.
    """
    if choice not in ("auto", "step", "picture"):
        raise ValueError(f"progress={choice!r} must be auto, step or picture")
    return choice == "step" or (choice == "auto" and jax.default_backend() == "cpu")


def grid_of(parts: Sequence[Part], caption: str) -> Image.Image:
    """All pictures of a run: a row for each prompt with each set of attributes, a column for each seed."""
    seeds = list(dict.fromkeys(job.seed for part in parts for job in part.jobs))
    rows, table = [], []
    for part in parts:
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in part.paths]
        table += [pictures[i : i + len(seeds)] for i in range(0, len(pictures), len(seeds))]
        prompts = dict.fromkeys(job.prompt for job in part.jobs)
        rows += [f"{part.name}: {prompt}" if part.name else prompt for prompt in prompts]
    return labelled_grid(table, rows, [f"seed {seed}" for seed in seeds], caption)
