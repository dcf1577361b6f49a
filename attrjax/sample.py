"""The task ``sample``: pictures from prompts into a run directory (``configs/sample.py`` says what can be
set).
"""

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from attrjax.attributes.apply import Applied, Painting, apply_attributes, guidance_of, other_word
from attrjax.attributes.painting import make_with, painted_word, share_of
from attrjax.attrworld.bundled import base_or_bundled, usual_guidance
from attrjax.checkpoints.attribute import OTHER, Attribute, load_attribute, weights_digest
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.lora import load_lora
from attrjax.checkpoints.pipeline import REQUIRED, Pipeline, load_pipeline
from attrjax.checkpoints.textual_inversion import load_textual_inversion, with_words
from attrjax.data.pictures import load_picture, png_bytes
from attrjax.data.references import load_cover
from attrjax.diffusion.guidance import check_guidance
from attrjax.diffusion.samplers import is_stochastic
from attrjax.diffusion.steps import plan, start_index
from attrjax.generate import (
    Job,
    Settings,
    choose_sampler,
    devices_of,
    latent_shape,
    make_jobs,
    vae_factor,
)
from attrjax.models.adapters import Tree, bind, combine
from attrjax.parallel.mesh import make_mesh
from attrjax.parallel.start import end_on_sigterm, together
from attrjax.report.grid import labelled_grid
from attrjax.runs import check_run, compile_seconds, slug, timed, use_compile_cache, write_record, write_whole

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
T = TypeVar("T")
# A run that goes on may be asked for more pictures, and may make them at another pace.
MAY_CHANGE = ("prompts", "seeds", "batch_size", "cache_dir", "progress", "mesh")
# Values that leave to the attributes' files, and without any to ``Settings``, how guidance acts.
UNSET: dict[str, Any] = {"guidance_interval": (), "guidance_rescale": -1.0}
AS_FILES_SAY = -1.0  # leaves to the attributes' files how pictures are painted


def sample(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Make the pictures that the config describes, and write them to the run directory.

    It gets ``samples/PROMPT-SEED.png`` for every prompt and seed, ``grid.png`` with all of them, and
    ``run.json`` with config, versions, what was chosen and how long it took. With ``resume``, pictures that
    are there are kept.

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
    settings = make_settings(config)
    mesh = devices_of(make_mesh(**config["mesh"]))
    use_compile_cache(config["cache_dir"])

    timings: dict[str, float] = {}
    with timed(timings, "load"):
        pipeline = load_base(config)
        adapters = load_adapters(pipeline, config["loras"], config["lora_strengths"])
        learned = [load_attribute(path) for path in config["attributes"]]
        applied = with_attributes(pipeline, adapters, learned, config)
    pipeline = applied.pipeline
    # What is said of guidance goes before what the attributes' files say.
    guidance = {name: getattr(settings, name) for name in UNSET if config[name] != UNSET[name]}
    if config["negative_attributes"]:
        said = [settings.negative_prompt] if settings.negative_prompt else []
        away = ", ".join([*said, *(other_said(one) for one in learned)])
        settings = settings._replace(negative_prompt=away)
    height, width = (side * vae_factor(pipeline) for side in latent_shape(pipeline, settings, jobs)[:2])
    init_picture = init_cover = None
    if config["init_image"]:
        init_picture = load_picture(config["init_image"], height, width)
        init_cover = load_cover(config["init_image"], config["init_mask"], height, width)
    painted = [prompt for prompt in config["prompts"] if painted_word(applied, prompt)]
    if config["init_mask"] and (init_picture is None or not painted):
        raise ValueError(
            "init_mask says what of init_image is painted, and nothing is: name an init_image, and in "
            "attributes an appearance that was learned with a paint_strength"
        )
    sampler, schedule = choose_sampler(pipeline, settings)

    def evaluations_of(prompt: str) -> int:
        """How often the network is evaluated for a picture."""
        whole, word = len(plan(schedule, settings.steps).timesteps), painted_word(applied, prompt)
        if init_picture is not None:
            return whole - start_index(settings.strength, settings.steps)
        if word is None:
            return whole
        return 2 * whole - start_index(share_of(applied.paintings[word], settings.steps), settings.steps)

    directory, first = Path(workdir), jax.process_index() == 0
    paths = [picture_path(directory, job) for job in jobs]
    missing = [(job, path) for job, path in zip(jobs, paths, strict=True) if not path.exists()]
    together("looked")  # before one of the processes writes
    if first:
        write_record(directory, config)
    own = missing[jax.process_index() :: jax.process_count()]
    chosen = {
        "base": str(pipeline.path),
        "sampler": sampler,
        "stochastic": is_stochastic(sampler, settings.eta),
        "guidance": settings.guidance,
        "evaluations": max(evaluations_of(job.prompt) for job in jobs),
        "painted": painted,
        "height": height,
        "width": width,
        "pictures": [str(path.relative_to(directory)) for path in paths],
    }
    logging.info(
        "%d pictures of %d x %d: %s, %d steps, guidance %g, %s; %d are there already",
        *(len(jobs), width, height, sampler, settings.steps, settings.guidance, config["dtype"]),
        len(jobs) - len(missing),
    )
    stepwise = per_step_progress(config["progress"])
    at_once = settings.batch_size * (mesh.size if mesh else 1)
    total = sum(evaluations_of(job.prompt) for job, _ in own)
    if stepwise and own:  # batches are filled up
        total = total * -(-len(own) // at_once) * at_once // len(own)
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

        pictures = make_with(
            applied,
            [job for job, _ in own],
            settings,
            guidance=guidance,
            init_picture=init_picture,
            init_cover=init_cover,
            mesh=mesh,
            on_step=on_step if stepwise else None,
        )
        for picture, (job, path) in zip(pictures, own, strict=True):
            write_whole(path, png_bytes(picture))
            if not stepwise:
                bar.update(evaluations_of(job.prompt))
    timings["compile"] = round(sum(compiling), 3)
    if own:
        timings["per_picture"] = round((timings["make"] - timings["compile"]) / len(own), 3)
    together("made")
    if not first:
        return
    write_record(directory, config, {"chosen": chosen, "timings": timings})
    name = config["base"] or "the bundled base"
    made_with = f"{name} · {sampler}, {settings.steps} steps, guidance {settings.guidance:g}"
    write_whole(directory / "grid.png", png_bytes(grid_of(jobs, paths, made_with)))
    logging.info(
        "wrote %d pictures (%.1f s each, %.1f s to compile) and %s",
        *(len(missing), timings.get("per_picture", 0.0), timings["compile"], directory / "grid.png"),
    )


def make_settings(config: Mapping[str, Any]) -> Settings:
    """The config's settings, where batch_size 0 becomes what keeps the device busy, guidance 0 what suits the
    base, and what is ``UNSET`` what ``Settings`` has.
    """
    settings = Settings(**{name: config[name] for name in Settings._fields})
    usual = Settings()._asdict()
    settings = settings._replace(**{name: usual[name] for name in UNSET if config[name] == UNSET[name]})
    check_guidance(settings.guidance_interval, settings.guidance_rescale)
    if not settings.guidance:
        settings = settings._replace(guidance=usual_guidance(config["base"]))
    if settings.batch_size < 0:
        raise ValueError(f"batch_size={settings.batch_size} must be 1 or more, or 0 to choose it")
    return settings._replace(batch_size=settings.batch_size or (1 if jax.default_backend() == "cpu" else 4))


def load_base(config: Mapping[str, Any]) -> Pipeline:
    """The base model in the config's type, with its learned words."""
    base = find_base(base_or_bundled(config["base"]), config["variant"] or None)
    second = [name for name in ("text_encoder_2", "tokenizer_2") if (base / name).is_dir()]
    pipeline = load_pipeline(
        base,
        dtype=DTYPES[config["dtype"]],
        param_dtype=DTYPES[config["dtype"]],
        components=(*REQUIRED, *second),
        variant=config["variant"] or None,
        attention_implementation=None if config["attention"] == "auto" else config["attention"],
    )
    for path in config["learned_words"]:
        pipeline = with_words(pipeline, load_textual_inversion(path))
    return pipeline


def with_attributes(
    pipeline: Pipeline, adapters: dict[str, Any], learned: Sequence[Attribute], config: Mapping[str, Any]
) -> Applied:
    """The base and its adapters with the config's learned attributes, each at its strength and timesteps.

    Raises:
        ValueError: strengths or timesteps do not fit the attributes, no prompt has an attribute's word, or as
            ``apply_attributes``.
    """
    if not learned:
        return Applied(pipeline, adapters, [], guidance_of([]), {})
    chosen = with_strengths(learned, config["attribute_strengths"], "attribute")
    timesteps = [tuple(pair) for pair in config["attribute_timesteps"]]
    if timesteps and len(timesteps) != len(learned):
        raise ValueError(
            f"{len(timesteps)} attribute_timesteps for {len(learned)} attributes: give one (low, high) each, "
            "or none"
        )
    for one in learned:
        if not any(one.word in prompt for prompt in config["prompts"]):
            raise ValueError(
                f"no prompt has {one.word} in it, the word of the {one.attribute} that was learned: write it "
                f"where the {one.attribute} belongs, as in {one.recipe.get('example', f'a red {one.word}')!r}"
            )
    digest = weights_digest(pipeline.path, config["variant"] or None)
    applied = apply_attributes(
        pipeline,
        chosen,
        digest=digest,
        timesteps=timesteps or None,
        paint_strength=None if config["paint_strength"] == AS_FILES_SAY else config["paint_strength"],
        force=config["force"],
    )
    return _beside(applied, adapters)


def _beside(applied: Applied, adapters: dict[str, Any]) -> Applied:
    """Learned attributes with other adapters beside them, where a form is laid out, too."""

    def added(bound: Tree) -> Tree:
        return combine([adapters["unet"], bound]) if "unet" in adapters else bound

    stages = [stage._replace(adapters=added(stage.adapters)) for stage in applied.stages]
    unet = added(applied.adapters.get("unet", {}))
    paintings = {
        word: painting._replace(layout=functools.partial(_laid_out_beside, painting, adapters))
        for word, painting in applied.paintings.items()
    }
    return applied._replace(
        adapters=adapters | ({"unet": unet} if unet else {}), stages=stages, paintings=paintings
    )


def _laid_out_beside(painting: Painting, adapters: dict[str, Any]) -> Applied:
    return _beside(painting.layout(), adapters)


def other_said(learned: Attribute) -> str:
    """A prompt for the other attribute of what something was learned from.

    Raises:
        ValueError: that attribute is not known.
    """
    if learned.other is None:
        raise ValueError(
            f"the file of {learned.word} does not hold its reference's {OTHER[learned.attribute]}, for its "
            "base has no filter for that: sample without --config.negative_attributes"
        )
    word = other_word(learned.word, learned.attribute)
    return f"an object made of {word}" if learned.attribute == "shape" else f"a {word}"


def with_strengths(things: Sequence[T], strengths: Sequence[Any], what: str) -> list[tuple[T, Any]]:
    """Files or attributes, each with its strength; without any strengths it is 1.

    Raises:
        ValueError: there are not as many strengths as things.
    """
    if strengths and len(strengths) != len(things):
        raise ValueError(
            f"{len(strengths)} {what}_strengths for {len(things)} {what}s: give one each, or none"
        )
    return list(zip(things, strengths or [1.0] * len(things), strict=True))


def load_adapters(pipeline: Pipeline, files: Sequence[str], strengths: Sequence[Any]) -> dict[str, Any]:
    """LoRA files as one bound adapter for each component that they change.

    Args:
        pipeline: the base that they are for.
        files: diffusers', PEFT's or kohya's.
        strengths: one for each file, a number or a dict of blocks as in diffusers (``down``, ``mid``, ``up``,
            ``text_encoder``); none for 1 each.
    """
    components = ("unet", "text_encoder", "text_encoder_2")
    trees = {
        name: getattr(pipeline, name).params for name in components if getattr(pipeline, name) is not None
    }
    bound: dict[str, list] = {}
    for path, strength in with_strengths(files, strengths, "lora"):
        blocks = dict(strength) if isinstance(strength, Mapping) else strength
        text = blocks.pop("text_encoder", 1.0) if isinstance(blocks, dict) else strength
        for component, adapter in load_lora(path, trees).items():
            factor = blocks if component == "unet" else text
            bound.setdefault(component, []).append(bind(adapter, factor, network=trees[component]))
    return {component: combine(collections) for component, collections in bound.items()}


def read_latents(path: str) -> np.ndarray | None:
    """Initial noise from an ``.npy`` file; None where no file is named.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no array of finite numbers.
    """
    if not path:
        return None
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file of latents {path}")
    try:
        latents = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not an .npy file of numbers: {error}") from error
    if not np.issubdtype(latents.dtype, np.floating) or not np.isfinite(latents).all():
        raise ValueError(f"{path} must hold finite floating-point numbers, and is of type {latents.dtype}")
    return latents


def picture_path(directory: Path, job: Job) -> Path:
    """Where a picture is written."""
    return directory / "samples" / f"{slug(job.prompt)}-{job.seed}.png"


def per_step_progress(choice: str) -> bool:
    """Whether the progress bar moves with every step, or with every picture.

    For a bar of steps the sampling program is called once for each, and waited for. That costs nothing on a
    CPU, where steps are long; an accelerator would stand still between them.
    """
    if choice not in ("auto", "step", "picture"):
        raise ValueError(f"progress={choice!r} must be auto, step or picture")
    return choice == "step" or (choice == "auto" and jax.default_backend() == "cpu")


def grid_of(jobs: Sequence[Job], paths: Sequence[Path], caption: str) -> Image.Image:
    """All pictures of a run: a row for each prompt, a column for each seed."""
    rows = list(dict.fromkeys(job.prompt for job in jobs))
    columns = list(dict.fromkeys(job.seed for job in jobs))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    table = [pictures[i : i + len(columns)] for i in range(0, len(pictures), len(columns))]
    return labelled_grid(table, rows, [f"seed {seed}" for seed in columns], caption)
