"""Checkpoints of training: a directory for each step, written in the background, read back if undamaged."""

import logging as python_logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from attrjax.parallel.start import together

CHECKPOINTS = "checkpoints"  # their directory in that of a run
CORRUPT = ".corrupt"


def open_checkpoints(directory: str | Path, *, keep: int = 2) -> ocp.CheckpointManager:
    """The checkpoints of a directory, which is made if it is not there.

    What an interrupted save left behind is removed: a step is there in full or not at all. One run at a time
    may have a directory open.

    Args:
        directory: on a disk that all processes see.
        keep: how many checkpoints stay, the newest; 1 or more.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} checkpoints: it must be 1 or more")
    # Orbax tells of every file that it writes.
    logging.get_absl_logger().addFilter(_worth_telling)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    handler = ocp.StandardCheckpointHandler()  # named, so that metadata can be read before anything was saved
    return _Manager(Path(directory).resolve(), options=options, item_handlers=handler)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves it to ``parallel.start.told_anywhere`` to ask whether SIGTERM came.

    In a save Orbax asks, too, and by the number of the step.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _worth_telling(record: python_logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname or record.levelno >= python_logging.WARNING


def save_checkpoint(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Begin to save a state; its buffers are free to be given away when this returns.

    A step that is there already is left as it is. Errors of the save before are raised here, or by
    ``manager.wait_until_finished()``.
    """
    if step not in manager.all_steps():
        manager.save(step, args=ocp.args.StandardSave(state), force=True)


def restore_newest(manager: ocp.CheckpointManager, state: Any) -> tuple[Any, int]:
    """The newest readable checkpoint.

    A damaged one is renamed to ``STEP.corrupt`` with a warning, and the one before it is read.

    Args:
        manager: of ``open_checkpoints``.
        state: what is wanted: its structure, shapes, types, and where it lies. It may have been saved from
            another mesh.

    Returns:
        The state and its step; the given state and 0 where nothing was ever saved.

    Raises:
        ValueError: every checkpoint is damaged, or the newest readable one is of something else.
    """
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    directory = Path(manager.directory)
    for step in sorted(manager.all_steps(), reverse=True):
        error = _try(lambda step=step: _check(manager, step, wanted))
        if error is None:
            restored: list[Any] = []
            error = _try(lambda step=step, to=restored: to.append(_read(manager, step, wanted)))
        if _on_any_process(error is not None):
            _quarantine(directory, step, error)
            manager.reload()
            continue
        return restored[0], step
    if damaged := sorted(path.name for path in directory.glob(f"*{CORRUPT}*")):
        raise ValueError(
            f"no checkpoint in {directory} can be read ({', '.join(damaged)}): begin in another --workdir"
        )
    return state, 0


class Mismatch(ValueError):
    """A readable checkpoint is not of what is being trained."""


def _check(manager: ocp.CheckpointManager, step: int, wanted: Any) -> None:
    """Whether a checkpoint has the wanted leaves. That it has others is no damage, and it is left alone."""
    tree = manager.item_metadata(step)
    if tree is None:
        raise ValueError("its metadata cannot be read")
    there, here = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_leaves_with_path(t) for t in (tree, wanted))
    )
    if there != here:
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise Mismatch(
            f"checkpoint {step} in {manager.directory} is of another network or optimizer: {len(names)}"
            f" leaves differ, such as {names[0]}: {there.get(names[0])} there, {here.get(names[0])} here"
        )


def _read(manager: ocp.CheckpointManager, step: int, wanted: Any) -> Any:
    """What a checkpoint holds; each process reads its own part of it.

    Not by ``manager.restore``, in which all wait for each other at the end: where one cannot read its part,
    the others would wait in vain.
    """
    folder = manager.directory / str(step) / ocp.checkpoint_manager.DEFAULT_ITEM_NAME
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(wanted))


def _try(action: Any) -> Exception | None:
    """The error by which a damaged file shows, if any. Others say nothing of the file, and are raised."""
    try:
        action()
    except (Mismatch, PermissionError):
        raise
    except (ValueError, OSError, KeyError, TypeError) as error:
        return error
    except Exception as error:
        # Where an array's own data cannot be read, Orbax raises an Exception of no class of its own.
        if type(error) is not Exception:
            raise
        return error
    return None


def _on_any_process(flag: bool) -> bool:
    """Whether a flag is set on any process, the same answer on all."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _quarantine(directory: Path, step: int, error: Exception | None) -> None:
    """Rename a damaged checkpoint, on the first process."""
    if jax.process_index() == 0:
        names = (f"{step}{CORRUPT}{suffix}" for suffix in ("", *(f".{i}" for i in range(1, 1000))))
        target = next(directory / name for name in names if not (directory / name).exists())
        (directory / str(step)).rename(target)
        reason = str(error or "another process could not read it").split("\n")[0][:200]
        logging.warning("checkpoint %d is damaged and is now %s: %s", step, target, reason)
    together(f"quarantine {step}")


def drop_checkpoints(directory: Path) -> None:
    """Remove checkpoints that nothing goes on from any more. What cannot be removed stays, with a warning."""

    def tell(_: Any, path: str, error: Any) -> None:
        logging.warning("%s cannot be removed, and is of no use any more: %s", path, error[1])

    if directory.exists():
        shutil.rmtree(directory, onerror=tell)
