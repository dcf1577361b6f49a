"""From a config and a loss to trained parameters: what training tasks have in common."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from attrjax.arguments import read_rules
from attrjax.parallel.mesh import Rules, batch_shapes, make_mesh, on_host, state_shapes
from attrjax.parallel.start import together
from attrjax.prefetch import beside
from attrjax.runs import check_run, use_compile_cache, write_record
from attrjax.training import (
    LossFn,
    StepFn,
    TrainState,
    first_state,
    init_state,
    make_optimizer,
    make_step,
    train,
)

# What a run's root key is folded with for the keys of its steps; callers fold it with small numbers.
STEPS = 2**32 - 1
# What may differ in a run that goes on. With other steps the rate falls along another curve from there.
MAY_CHANGE = (
    "steps",
    "max_seconds",
    "log_every",
    "save_every",
    "cache_dir",
    "mesh",
    "sharding",
    "profile",
    "keep_checkpoints",
)


def begin(config: Mapping[str, Any], workdir: str, resume: bool) -> tuple[Path, Key[Array, ""]]:
    """The run directory, checked and recorded, and the run's root key.

    All processes meet here, at what each of them comes to soon: later they compile beside each other.

    Raises:
        ValueError, FileExistsError: as ``runs.check_run``.
    """
    check_run(workdir, config, resume=resume, may_change=MAY_CHANGE)
    use_compile_cache(config["cache_dir"])
    together("checked")  # before one of the processes writes
    if jax.process_index() == 0:
        write_record(Path(workdir), config)
    return Path(workdir), jax.random.key(config["seed"])


def compile_early(
    config: Mapping[str, Any],
    root: Key[Array, ""],
    params: PyTree,
    loss_fn: LossFn,
    batch_like: Callable[[], PyTree],
    *,
    frozen: PyTree = None,
) -> Callable[[], StepFn]:
    """Begin to compile the step of ``fit`` in another thread, beside what is made before training.

    Args:
        config, root, params, loss_fn, frozen: of ``fit``.
        batch_like: gives the shapes of a batch with all its rows; called in that thread.

    Returns:
        ``step_fn`` of ``fit``.
    """
    mesh, rules, optimizer, step_fn = _parts(config, loss_fn)

    def make() -> StepFn:
        state = jax.eval_shape(lambda: first_state(params, optimizer, ema=config["ema_decay"] > 0))
        step_fn.lower(
            state_shapes(mesh, state, rules),
            batch_shapes(mesh, batch_like()),
            jax.random.fold_in(root, STEPS),
            state_shapes(mesh, frozen, rules),
        ).compile()
        return step_fn

    return beside(make).result


def fit(
    config: Mapping[str, Any],
    directory: Path,
    root: Key[Array, ""],
    params: PyTree,
    loss_fn: LossFn,
    batch_at: Callable[[int], PyTree],
    *,
    frozen: PyTree = None,
    every: tuple[int, Callable[[int, TrainState], bool | None]] | None = None,
    until: int | None = None,
    step_fn: Callable[[], StepFn] | None = None,
) -> PyTree | None:
    """Train as the config says.

    Args:
        config: ``steps``, ``optimizer`` (arguments of ``make_optimizer``), ``ema_decay``, ``mesh``
            (arguments of ``make_mesh``), ``sharding`` (rules of ``parallel.mesh``), ``log_every``,
            ``save_every``, ``max_seconds`` (0 is no limit), ``profile``. With ``ema_decay`` 0 there is no
            moving average.
        directory, root: of ``begin``.
        params: to begin with.
        loss_fn, batch_at, frozen, every: as in ``training.train``.
        until: the last step, where ``every`` has ended the run before; None for ``steps``.
        step_fn: of ``compile_early`` with the same; None to compile when the first batch is there.

    Returns:
        the moving average of the parameters at the end, or without one the parameters; None where the time
        was up before.
    """
    mesh, rules, optimizer, own = _parts(config, loss_fn)
    result = train(
        init_state(params, optimizer, mesh, ema=config["ema_decay"] > 0, rules=rules),
        step_fn() if step_fn else own,
        batch_at,
        root_key=jax.random.fold_in(root, STEPS),
        steps=until or config["steps"],
        workdir=directory,
        mesh=mesh,
        frozen=frozen,
        rules=rules,
        log_every=config["log_every"],
        save_every=config["save_every"],
        max_seconds=config["max_seconds"] or None,
        profile=config["profile"],
        every=every,
    )
    if not result.finished:
        logging.info("the time is up: go on with --resume")
        return None
    return on_host(result.state.averaged)


def layout_of(config: Mapping[str, Any]) -> tuple[Mesh, Rules]:
    """The config's ``mesh``, and by which rules of its ``sharding`` a train state lies on it.

    Raises:
        ValueError: the devices do not fit, or the rules are none.
    """
    return make_mesh(**config["mesh"]), read_rules(config["sharding"], "sharding")


def _parts(
    config: Mapping[str, Any], loss_fn: LossFn
) -> tuple[Mesh, Rules, optax.GradientTransformation, StepFn]:
    """The config's mesh, what lies where on it, its optimizer, and the step of a loss with them, which is not
    compiled yet.
    """
    mesh, rules = layout_of(config)
    optimizer = make_optimizer(steps=config["steps"], **config["optimizer"])
    step_fn = make_step(loss_fn, optimizer, mesh, ema_decay=config["ema_decay"], rules=rules)
    return mesh, rules, optimizer, step_fn
