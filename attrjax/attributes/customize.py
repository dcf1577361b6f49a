"""The task ``customize``: one attribute of one picture is learned into a small file.

Read from top to bottom: the reference is seen and its attribute's filter made; the UNet is split; pairs that
destroy the other attribute are drawn; the step trains filter, fusion and the UNet's part on them; every few
steps pictures are made with and without what was learned, and what they have of the reference decides which
step is kept. Of a list of pictures ``many`` learns all of them side by side.
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Key

from attrjax.attributes.base import Base, load_base
from attrjax.attributes.batches import Tools, batch_like, batches, compile_draw, make_tools, prior
from attrjax.attributes.learner import (
    Learner,
    begun_of,
    check_config,
    first_params,
    frozen_of,
    loss_of,
    make_learner,
)
from attrjax.attributes.many import customize_list
from attrjax.attributes.partition import describe
from attrjax.attributes.probing import (
    Run,
    ended,
    finish,
    is_made,
    look,
    look_first,
    open_run,
    pictures_before,
    read_probes,
)
from attrjax.checkpoints.training import CHECKPOINTS, drop_checkpoints
from attrjax.fit import MAY_CHANGE, begin, compile_early, fit
from attrjax.parallel.mesh import own_rows
from attrjax.parallel.start import together
from attrjax.prefetch import beside
from attrjax.runs import RECORD, check_run, timed, use_compile_cache
from attrjax.training import LossFn, StepFn, TrainState


def customize(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Learn the config's attribute of its reference, and write it to ``workdir/attribute.safetensors``.

    With 0 steps nothing is tuned: the file holds what the base's own filter recognizes in the reference.

    The run directory also gets ``index.html``, which shows what was learned, ``probes.jsonl`` with what was
    measured, and what every training run has. With ``resume`` it goes on from the newest checkpoint; a run
    that has ended drops its checkpoints unless ``config.keep_checkpoints``, and then has nothing left to do.
    ``config.references`` names a list of pictures: ``many.customize_list`` says what comes of them.

    Raises:
        ValueError, FileNotFoundError: the reference, its mask or the base cannot be used, or the config does
            not fit itself.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    check_config(config)
    use_compile_cache(config["cache_dir"])
    if config["references"]:
        return customize_list(config, workdir, resume=resume)
    if resume and (ended_as := _ended_as(config, Path(workdir))):
        logging.info("the run in %s has ended: see %s/index.html", workdir, workdir)
        if jax.process_index() == 0 and not ended_as.get("keep_checkpoints", True):
            # They are there where it was killed between its page and this.
            drop_checkpoints(Path(workdir) / CHECKPOINTS)
        return
    timings: dict[str, float] = {}
    started = time.monotonic()
    with timed(timings, "load"):
        base = load_base(config)
        learner = make_learner(config, base)
    # What cannot be learned leaves no run behind that the next attempt would have to go on with.
    directory, root = begin(config, workdir, resume)
    tuning = None
    if config["steps"]:
        logging.info("%s", "\n".join(describe(learner.partition, learner.begun)))
        tuning = _ready(config, base, learner, root)
    with timed(timings, "before and after"):
        before = pictures_before(config, base.pipeline)
    run = open_run(config, base, learner, directory, before, timings)
    with timed(timings, "train and probe"):
        if jax.process_index() == 0:
            look_first(run, first_params(learner))
        if tuning and not _tune(run, base, root, tuning):
            return
    if jax.process_index() == 0:
        finish(run, started)
        if not config["keep_checkpoints"]:
            drop_checkpoints(directory / CHECKPOINTS)
    together("finished")  # at their end processes wait for each other for minutes alone


def _ended_as(config: Mapping[str, Any], directory: Path) -> dict[str, Any] | None:
    """The config of the run in a directory where that has nothing left to do, else None.

    Raises:
        ValueError: it had another config; or it is to have other steps, and has no checkpoints to go on from.
    """
    if not is_made(directory):
        return None
    check_run(directory, config, resume=True, may_change=MAY_CHANGE)
    before: dict[str, Any] = json.loads((directory / RECORD).read_text())["config"]
    if config["steps"] == before["steps"]:
        return before
    if not (directory / CHECKPOINTS).exists():
        raise ValueError(
            f"the run in {directory} has ended, of {before['steps']} steps, and its checkpoints are dropped: "
            "take another --workdir, with --config.keep_checkpoints=True where it is to go on behind its end"
        )
    return None


class Tuning(NamedTuple):
    """What a learner is trained with.

    Attributes:
        tools: that draw batches.
        loss_fn, frozen: of the step.
        step_fn: of ``fit.compile_early``.
    """

    tools: Tools
    loss_fn: LossFn
    frozen: dict[str, Any]
    step_fn: Callable[[], StepFn]


def _ready(config: Mapping[str, Any], base: Base, learner: Learner, root: Key[Array, ""]) -> Tuning:
    """Make the step, which is compiled while the first pictures are made."""
    tools = make_tools(config, base.pipeline)
    loss_fn = loss_of(config, learner)
    frozen = frozen_of(config, learner) | {"begun": begun_of(learner)}
    shapes = functools.partial(batch_like, config, learner, tools)
    step_fn = compile_early(config, root, first_params(learner), loss_fn, shapes, frozen=frozen)
    return Tuning(tools, loss_fn, frozen, step_fn)


def _tune(run: Run, base: Base, root: Key[Array, ""], tuning: Tuning) -> bool:
    """Train, and look every few steps; false where the time was up before the end."""
    config, learner = run.config, run.learner
    with timed(run.timings, "prior, of that"):
        own = prior(config, base, tuning.tools, root)

    several, first = jax.process_count() > 1, jax.process_index() == 0
    batch_of = batches(config, learner, root, tuning.tools, own)

    def look_at(step: int, state: TrainState) -> bool:
        # The first process looks and writes, and the others do as it says.
        params = state.averaged
        if several:
            params = multihost_utils.process_allgather(params, tiled=True)
        enough = look(run, step, params) if first else False
        return bool(multihost_utils.broadcast_one_to_all(np.array(enough))) if several else enough

    def batch_at(step: int) -> Any:
        # Every process draws the same batch, so that what is learned does not depend on their number.
        return own_rows(batch_of(step))

    # What draws pairs is compiled while the step still is.
    drawing = beside(functools.partial(compile_draw, config, learner, root, tuning.tools, own))

    def step_fn() -> StepFn:
        drawing.result()
        return tuning.step_fn()

    until = ended(config, read_probes(run.directory)) or 0
    if several:
        until = int(multihost_utils.broadcast_one_to_all(np.array(until)))
    trained = fit(
        config,
        run.directory,
        root,
        first_params(learner),
        tuning.loss_fn,
        batch_at,
        frozen=tuning.frozen,
        every=(config["probe"]["every"], look_at),
        until=until or None,
        step_fn=step_fn,
    )
    return trained is not None
