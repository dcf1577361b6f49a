"""The task ``customize``: one attribute of one picture is learned into a small file.

Read from top to bottom: the reference is seen and its attribute's filter made; the UNet is split; pairs that
destroy the other attribute are drawn; the step trains filter, fusion and the UNet's part on them; every few
steps pictures are made with and without what was learned, and what they have of the reference decides which
step is kept. Of a list of pictures ``many`` learns all of them side by side.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Key

from attrjax.attributes.batches import batches, make_tools, prior
from attrjax.attributes.learner import (
    Base,
    begun_of,
    check_config,
    first_params,
    frozen_of,
    load_base,
    loss_of,
    make_learner,
)
from attrjax.attributes.many import customize_list
from attrjax.attributes.partition import describe
from attrjax.attributes.probing import (
    Run,
    ended,
    finish,
    look,
    look_first,
    open_run,
    pictures_before,
    read_probes,
)
from attrjax.fit import begin, fit
from attrjax.parallel.mesh import own_rows
from attrjax.runs import timed
from attrjax.training import TrainState


def customize(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Learn the config's attribute of its reference, and write it to ``workdir/attribute.safetensors``.

    With 0 steps nothing is tuned: the file holds what the base's own filter recognizes in the reference.

    The run directory also gets ``index.html``, which shows what was learned, ``probes.jsonl`` with what was
    measured, and what every training run has. With ``resume`` it goes on from the newest checkpoint.
    ``config.references`` names a list of pictures: ``many.customize_list`` says what comes of them.

    Raises:
        ValueError, FileNotFoundError: the reference, its mask or the base cannot be used, or the config does
            not fit itself.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    check_config(config)
    if config["references"]:
        return customize_list(config, workdir, resume=resume)
    timings: dict[str, float] = {}
    started = time.monotonic()
    with timed(timings, "load"):
        base = load_base(config)
        learner = make_learner(config, base)
    # What cannot be learned leaves no run behind that the next attempt would have to go on with.
    directory, root = begin(config, workdir, resume)
    if config["steps"]:
        logging.info("%s", "\n".join(describe(learner.partition)))
    with timed(timings, "before and after"):
        before = pictures_before(config, base.pipeline)
    run = open_run(config, base, learner, directory, before, timings)
    with timed(timings, "train and probe"):
        if jax.process_index() == 0:
            look_first(run, first_params(learner))
        if config["steps"] and not _tune(run, base, root):
            return
    if jax.process_index() == 0:
        finish(run, started)


def _tune(run: Run, base: Base, root: Key[Array, ""]) -> bool:
    """Train, and look every few steps; false where the time was up before the end."""
    config, learner = run.config, run.learner
    with timed(run.timings, "prior, of that"):
        tools = make_tools(config, learner.pipeline)
        own = prior(config, base, tools, root)

    several, first = jax.process_count() > 1, jax.process_index() == 0
    batch_of = batches(config, learner, root, tools, own)

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

    until = ended(config, read_probes(run.directory)) or 0
    if several:
        until = int(multihost_utils.broadcast_one_to_all(np.array(until)))
    trained = fit(
        config,
        run.directory,
        root,
        first_params(learner),
        loss_of(config, learner),
        batch_at,
        frozen=frozen_of(config, learner) | {"begun": begun_of(learner)},
        every=(config["probe"]["every"], look_at),
        until=until or None,
    )
    return trained is not None
