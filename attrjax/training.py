"""The train step and the loop around it, for everything that is trained here.

What a run ends with is a function of its arguments alone: the key of a step is folded from the root key and
the step's number, and a batch is a function of that number too. So a run that is killed at any moment and
started again ends with the same bytes as one that was not.
"""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Key, PyTree
from tqdm import tqdm

from attrjax.checkpoints.training import CHECKPOINTS, open_checkpoints, restore_newest, save_checkpoint
from attrjax.compiling import cost_of, quick, told_of
from attrjax.metrics_log import MetricsLog
from attrjax.parallel.mesh import AUTO, Rules, place_batch, place_state, shard_state, traced_for
from attrjax.parallel.start import told_anywhere
from attrjax.prefetch import in_background
from attrjax.profiling import profiled

EXIT_SAVED = 42  # a run that was told to stop has saved its state, and goes on when it is started again
# How many steps the host runs ahead of the device: enough to keep it busy, few enough that the bar, the time
# limit and a non-finite loss are noticed when they happen.
AHEAD = 2

Metrics = Mapping[str, Float[Array, ""]]
# loss_fn(params, batch, key) or, where there are frozen weights, loss_fn(params, batch, key, frozen)
LossFn = Callable[..., tuple[Float[Array, ""], Metrics]]
# step(state, batch, root_key, frozen) -> (state, metrics), of ``jax.jit``
StepFn = jax.stages.Wrapped


class TrainState(NamedTuple):
    """Everything that a step changes, and all that a checkpoint holds.

    Attributes:
        step: how many updates were made.
        params: what is trained.
        opt_state: optax's.
        ema: the moving average of ``params``, or None.
    """

    step: Int32[Array, ""]
    params: PyTree
    opt_state: PyTree
    ema: PyTree

    @property
    def averaged(self) -> PyTree:
        """What is used of what was trained: the moving average, where there is one."""
        return self.params if self.ema is None else self.ema


def make_optimizer(
    learning_rate: float,
    steps: int | Int32[Array, ""],
    *,
    warmup: int = 0,
    decay: str = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW on clipped gradients, with a warm-up.

    Args:
        learning_rate: at its highest, positive.
        steps: of the whole run; inside ``jit`` it may be traced, and is then not checked.
        warmup: steps in which the rate rises linearly, fewer than ``steps``; the first has 1/warmup of it.
        decay: ``cosine`` falls to 0 at ``steps``, ``constant`` stays.
        weight_decay: of leaves with two dimensions or more; biases and the scales of norms are left alone.
        clip: largest global norm of the gradient; 0 for none.
        b1, b2, eps: Adam's: decays of the gradient's mean and of its square's, in [0, 1); positive.

    Raises:
        ValueError: an argument is out of its range.
    """
    if decay not in ("cosine", "constant"):
        raise ValueError(f"decay={decay!r} must be cosine or constant")
    if warmup < 0 or (isinstance(steps, int) and warmup >= steps):
        raise ValueError(f"warmup={warmup} must be at least 0 and less than steps={steps}")
    if learning_rate <= 0 or weight_decay < 0 or clip < 0:
        raise ValueError("learning_rate must be positive, weight_decay and clip must not be negative")

    def rate(count: Int32[Array, ""]) -> Float[Array, ""]:
        rising = jnp.minimum(1.0, (count + 1) / max(warmup, 1))
        if decay == "constant":
            return learning_rate * rising
        along = jnp.clip((count - warmup) / (steps - warmup), 0.0, 1.0)
        return learning_rate * rising * 0.5 * (1 + jnp.cos(jnp.pi * along))

    def matrices(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=matrices),
    )


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool = False,
    rules: Rules = AUTO,
) -> TrainState:
    """The state before the first step, on the mesh by ``rules``. ``params`` stay usable: it shares no memory
    with them.
    """

    def init(params: PyTree) -> TrainState:
        return first_state(params, optimizer, ema=ema)

    params = place_state(mesh, params, rules)
    return jax.jit(init, out_shardings=shard_state(mesh, jax.eval_shape(init, params), rules))(params)


def first_state(params: PyTree, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first step, in arrays of its own: a step gives its buffers away, each once."""
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.int32(0), jax.tree.map(jnp.copy, params), optimizer.init(params), average)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema_decay: float = 0.9999,
    rules: Rules = AUTO,
) -> StepFn:
    """The train step, ``step(state, batch, root_key, frozen=None) -> (state, metrics)``, compiled.

    Its state is used up: only the one that it returns can be used. ``frozen`` is neither differentiated nor
    used up.

    Args:
        loss_fn: ``loss_fn(params, batch, key)``, or with ``frozen`` as a fourth argument where it is given:
            the loss, a scalar, and a dict of further scalars to log. It sees the whole batch, however that is
            divided over the mesh.
        optimizer: of ``make_optimizer`` or optax.
        mesh: that state and batch lie on.
        ema_decay: of the moving average where the state has one, in [0, 1). At step n, counted from 0, it is
            min(ema_decay, (1 + n) / (10 + n)), so that the beginning is soon forgotten.
        rules: of where the state lies (``parallel.mesh``).

    Returns:
        The step. Its metrics are ``loss``, ``grad_norm`` (before clipping) and what the loss function adds.
    """

    def step(
        state: TrainState, batch: PyTree, root_key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[TrainState, Metrics]:
        with traced_for(mesh):
            state, metrics = update(loss_fn, optimizer, state, batch, root_key, frozen, ema_decay=ema_decay)
        # It stays where it lies, or the next step would be compiled again.
        return jax.lax.with_sharding_constraint(state, shard_state(mesh, state, rules)), metrics

    return jax.jit(step, donate_argnames="state", compiler_options=quick())


def update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: PyTree,
    root_key: Key[Array, ""],
    frozen: PyTree = None,
    *,
    ema_decay: float,
) -> tuple[TrainState, Metrics]:
    """What a step of ``make_step`` does, wherever its arguments lie: a function to ``vmap``, too."""
    key = jax.random.fold_in(root_key, state.step)
    arguments = (batch, key) if frozen is None else (batch, key, frozen)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, *arguments)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(
            lambda mean, new: (decay * mean + (1 - decay) * new).astype(mean.dtype), ema, params
        )
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
    return TrainState(state.step + 1, params, opt_state, ema), metrics


class Result(NamedTuple):
    """What training ended with.

    Attributes:
        state: the last one, which is saved.
        step: its number.
        finished: whether all steps were made, or ``every`` said that it is enough; if not, the time was up.
    """

    state: TrainState
    step: int
    finished: bool


def as_floats(step: int, metrics: Metrics) -> dict[str, float]:
    """The metrics of a step as numbers.

    Raises:
        ValueError: the loss or the gradient is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    for name in ("loss", "grad_norm"):
        if not np.isfinite(values[name]):
            raise ValueError(
                f"{name} is {values[name]} at step {step}: lower the learning rate or look at the data"
            )
    return values


def train(
    state: TrainState,
    step_fn: StepFn,
    batch_at: Callable[[int], PyTree],
    *,
    root_key: Key[Array, ""] | None,
    steps: int,
    workdir: str | Path,
    mesh: Mesh,
    begun: int = 0,
    frozen: PyTree = None,
    rules: Rules = AUTO,
    log_every: int = 50,
    save_every: int = 1000,
    keep: int = 2,
    prefetch: int = 2,
    max_seconds: float | None = None,
    profile: tuple[int, int] = (0, 0),
    on_save: Callable[[int, TrainState], None] | None = None,
    every: tuple[int, Callable[[int, TrainState], bool | None]] | None = None,
    read: Callable[[int, Metrics], dict[str, float]] = as_floats,
) -> Result:
    """Train to a number of steps, from the newest checkpoint in the run directory if there is one.

    The directory gets ``checkpoints/STEP``, ``metrics.jsonl`` and TensorBoard's events in ``tensorboard``.
    Step n is the state after n updates, and the metrics of the update that led to it.

    SIGTERM, or Ctrl-C once, saves the current step and ends the program with exit code 42 (Ctrl-C twice ends
    it without saving). With several processes SIGTERM to one of them ends all, at the same step.

    Args:
        state: of ``init_state``, which fixes structure, types and where things lie. It is used up.
        step_fn: of ``make_step``.
        batch_at: the batch of the update from step n to n + 1: numpy arrays or arrays of this process's
            devices, the rows that this process contributes. It is called in another thread and must depend
            on n alone.
        root_key: of everything random in a step; passed on to ``step_fn``.
        steps: how many updates there are in all, 1 or more.
        workdir: the run directory. ``runs.check_run`` says before whether this run may use it.
        mesh: that the step was made for.
        begun: the step that ``state`` is of, where it is not the beginning.
        frozen: what the loss uses and does not train, the same on every process.
        rules: of where it lies.
        log_every: steps between lines of metrics; the first and the last step have one too.
        save_every: steps between checkpoints; the last step has one too.
        keep: how many checkpoints stay.
        prefetch: how many batches may wait on the device.
        max_seconds: stop at the end of the step in which this time is over (with several processes, of one
            with a line of metrics), save, and return; saving comes on top. None for no limit.
        profile: the first and the last step that XProf's trace in ``profile`` is of; (0, 0) for none.
        on_save: called with step and state when a save has begun.
        every: (n, function of step and state), called after every n steps, before a save. Where it returns
            True, on all processes alike, the step is saved and training ends. Functions must not keep the
            state's arrays, which the next step takes.
        read: from the number of a step and its metrics to what is logged, of which ``loss`` is one; called
            for every step, in order. It raises a ValueError for what must not go on.

    Raises:
        ValueError: a number is out of its range, the loss or the gradient is not finite (what was saved
            before stays), or there are checkpoints and none can be used.
        Exception: what ``batch_at`` raised.
    """
    if min(steps, log_every, save_every, prefetch) < 1:
        raise ValueError(f"{steps=}, {log_every=}, {save_every=} and {prefetch=} must be 1 or more")
    if tuple(profile) != (0, 0) and not 0 < profile[0] <= profile[1]:
        raise ValueError(f"profile={tuple(profile)} must be a first and a last step from 1, or (0, 0)")
    start_time, workdir = time.monotonic(), Path(workdir)
    several, first = jax.process_count() > 1, jax.process_index() == 0
    manager = open_checkpoints(workdir / CHECKPOINTS, keep=keep)
    log: MetricsLog | None = None
    try:
        state, saved = restore_newest(manager, state)
        start = max(begun, saved)
        if start > steps:
            raise ValueError(f"the run in {workdir} is at step {start} already, beyond steps={steps}")
        if start:
            logging.info("going on from step %d of %d", start, steps)
        log = MetricsLog(workdir, start) if first else None
        frozen = place_state(mesh, frozen, rules)
        waiting: deque[tuple[int, Metrics]] = deque()  # steps of which the host has not seen the metrics

        def settle(left: int) -> None:
            """Look at the metrics of all but the last few steps."""
            while len(waiting) > left:
                step, metrics = waiting.popleft()
                # What is not finite once may be hidden later, so every step is looked at.
                try:
                    values = read(step, metrics)
                except ValueError as error:
                    newest = manager.latest_step() or 0
                    raise ValueError(f"{error}; the newest checkpoint is of step {newest}") from None
                if log and (step % log_every == 0 or step in (1, steps)):
                    log.write(step, values)
                    bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)

        def out_of_time(step: int) -> bool:
            if max_seconds is None or (several and step % log_every):
                return False
            over = time.monotonic() - start_time > max_seconds
            return bool(multihost_utils.broadcast_one_to_all(np.array(over))) if several else over

        batches = in_background(lambda step: place_batch(mesh, batch_at(step)), range(start, steps), prefetch)
        bar = tqdm(total=steps, initial=start, unit="step", leave=False, delay=0.001, disable=not first)
        trace = profiled(workdir / "profile", *profile, settle=lambda: settle(0))
        with bar, closing(batches), told_to_stop(several) as told, trace as traced:
            for step, batch in zip(range(start + 1, steps + 1), batches, strict=True):
                if log and step == start + 1:
                    program = step_fn.lower(state, batch, root_key, frozen).compile()
                    log.rates |= told_of(cost_of(program))
                with traced(step):
                    state, metrics = step_fn(state, batch, root_key, frozen)
                    waiting.append((step, metrics))
                settle(AHEAD)
                if step == start + 1:
                    bar.unpause()  # so that the time left does not count compilation
                bar.update()
                enough = step == steps
                if every and step % every[0] == 0:
                    settle(0)
                    enough = bool(every[1](step, state)) or enough
                stop = told_anywhere() if several else told.is_set()
                late = out_of_time(step)
                if step % save_every == 0 or enough or stop or late:
                    # The lines of these steps come first: they are there when the checkpoint is.
                    settle(0)
                    if log:
                        log.flush()
                    save_checkpoint(manager, step, state)
                    if on_save:
                        on_save(step, state)
                # After the last step, too, for what follows may be long, or the next training.
                if stop or (late and step < steps):
                    manager.wait_until_finished()
                    logging.info("saved step %d of %d; start it again to go on", step, steps)
                    if stop:
                        sys.exit(EXIT_SAVED)
                    return Result(state, step, finished=False)
                if enough:
                    manager.wait_until_finished()
                    return Result(state, step, finished=True)
        return Result(state, start, finished=True)  # it had made all its steps before
    finally:
        if log:
            log.close()
        manager.close()  # waits for a save that is under way


@contextmanager
def told_to_stop(several: bool) -> Iterator[threading.Event]:
    """An event that SIGTERM sets, and Ctrl-C once.

    With several processes jax has its own way to notice SIGTERM, by which all stop at the same step. Outside
    the main thread signals cannot be caught.
    """
    told = threading.Event()
    if several or threading.current_thread() is not threading.main_thread():
        yield told
        return

    def handle(number: int, _: Any) -> None:
        told.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second Ctrl-C ends the program
        print(f"\n{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
