"""The training of a turn of concepts: a sequence of phases, in each of which the stack has the same rows.

A phase is one call of ``training.train``, and ends with a measurement after which fewer rows are enough. What
was measured is on disk and says where phases end: a run that goes on walks through them again, and those
that were made give back their last checkpoint at once.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from attrjax.attributes import stack
from attrjax.attributes.concepts import Concept
from attrjax.attributes.probing import Run, last_probe, look
from attrjax.metrics_log import MetricsLog
from attrjax.training import Result, StepFn, TrainState, as_floats, train


class Turn(NamedTuple):
    """Concepts that are learned side by side, by their numbers 0, 1, ...

    Attributes:
        config: of the list.
        mesh: of the devices; concept i belongs to device i modulo their number.
        most: rows of a device in the largest stack.
        concepts: all of them.
        runs: of those that this process measures and writes.
        batches_of: from the concepts of this process's rows to their ``batch_at``.
        ends: the steps at which concepts have ended, None where that is not known yet; it changes.
        step_fn: of ``stack.make_stacked_step``.
        frozen: of ``learner.frozen_of``.
        directory: of the turn's checkpoints.
        deadline: by ``time.monotonic``; None for none.
    """

    config: Mapping[str, Any]
    mesh: Mesh
    most: int
    concepts: list[Concept]
    runs: Mapping[int, Run]
    batches_of: Callable[[list[int]], Callable[[int], Any]]
    ends: dict[int, int | None]
    step_fn: StepFn
    frozen: Any
    directory: Path
    deadline: float | None


def train_phases(turn: Turn, rows: stack.Rows, first: list[Any]) -> bool:
    """Train all concepts to their ends; false where the time was up before.

    Args:
        turn: that is made.
        rows: of the first phase.
        first: what is trained, before it is, of each of this process's rows.
    """
    ema = turn.config["ema_decay"] > 0
    state, step = stack.first_stack(first, turn.config["optimizer"], turn.mesh, ema=ema), 0
    while rows[0]:
        result = train_phase(turn, rows, state, step)
        if not result.finished:
            return False
        before, step = rows, result.step
        rows = stack.rows_of(before, over(turn, step), turn.most)
        if rows[0]:
            state = stack.restack(result.state, turn.mesh, before, rows)
    return True


def train_phase(turn: Turn, rows: stack.Rows, state: TrainState, first: int) -> Result:
    """Train a stack from a step on, until fewer rows are enough."""
    config, mesh, ends = turn.config, turn.mesh, turn.ends
    every, longest = config["probe"]["every"], max(last_probe(concept.config) for concept in turn.concepts)
    places = stack.local_places(mesh)
    local = [i for place in places for i in rows[place]]
    # Where the concepts are that this process writes; a repeated row, or one of an ended concept, is nowhere.
    learned = {
        i: (place, rows[place].index(i))
        for place in places
        for i in rows[place]
        if i % mesh.size == place and i not in over(turn, first)
    }
    logs: dict[int, MetricsLog] = {}

    def read(step: int, metrics: Any) -> dict[str, float]:
        """The metrics of each concept into its own log, and their means for that of the stack."""
        parts = {place: stack.at(dict(metrics), mesh, place) for place in places}
        found = []
        for i, (place, row) in learned.items():
            if i in over(turn, step - 1):
                continue
            try:
                found.append(as_floats(step, {name: leaf[row] for name, leaf in parts[place].items()}))
            except ValueError as error:
                raise ValueError(f"{turn.concepts[i].place}: {error}, or take it out of the list") from None
            if i not in logs:
                logs[i] = MetricsLog(turn.runs[i].directory, step - 1)
            if step % config["log_every"] == 0 or step in (1, last_probe(turn.concepts[i].config)):
                logs[i].write(step, found[-1])
        names = found[0] if found else ("loss",)
        return {name: float(np.mean([one[name] for one in found])) if found else np.nan for name in names}

    def look_at(step: int, state: TrainState) -> bool:
        for place in places:
            params = stack.at(state.averaged, mesh, place)
            for i, (where, row) in learned.items():
                if where == place and i not in over(turn, step - 1):
                    if look(turn.runs[i], step, stack.taken(params, row)):
                        ends[i] = step
        share(ends, step)
        return fewer(step)

    def fewer(step: int) -> bool:
        """Whether fewer rows are enough after a step."""
        return len(stack.rows_of(rows, over(turn, step), turn.most)[0]) < len(rows[0])

    try:
        return train(
            state,
            turn.step_fn,
            turn.batches_of(local),
            root_key=None,
            begun=first,
            steps=next(filter(fewer, range(first + every, longest, every)), longest),
            workdir=turn.directory / str(first),
            mesh=mesh,
            frozen=turn.frozen,
            log_every=config["log_every"],
            save_every=config["save_every"],
            max_seconds=turn.deadline and max(0.0, turn.deadline - time.monotonic()),
            profile=config["profile"],
            every=(every, look_at),
            read=read,
        )
    finally:
        for log in logs.values():
            log.close()


def over(turn: Turn, step: int) -> set[int]:
    """The concepts that have ended at a step or before."""
    return {i for i, end in turn.ends.items() if end is not None and end <= step}


def share(ends: dict[int, int | None], step: int) -> None:
    """Tell all processes which concepts have ended at a step."""
    if jax.process_count() > 1:
        here = np.array([end == step for _, end in sorted(ends.items())])
        anywhere = np.any(multihost_utils.process_allgather(here), axis=0)
        ends.update({i: step for i in np.flatnonzero(anywhere).tolist()})
