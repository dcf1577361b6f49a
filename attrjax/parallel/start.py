"""Runs of several processes: they find each other before jax looks for devices, and wait for each other."""

import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

# Longer than any process may take; of one that has died the others hear at once.
DAY = 24 * 60 * 60 * 1000
_numbers = itertools.count()
_questions = itertools.count(1)
COORDINATOR, PROCESSES, PROCESS = "ATTRJAX_COORDINATOR", "ATTRJAX_PROCESSES", "ATTRJAX_PROCESS"


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes of a run, where there are others.

    On CPUs the processes talk over gloo, jax's default there. From here on SIGTERM to one of several is
    noticed by all, and ``training.train`` stops all at the same step. A process that is alone it ends, until
    ``training.train`` catches it.

    Args:
        coordinator: HOST:PORT of process 0, where all meet. "auto": jax finds it, and the rest, on Cloud TPU,
            GKE, Slurm and Open MPI (https://docs.jax.dev/en/latest/multi_process.html). None or "" is a run
            of one process.
        processes: how many there are; None under "auto".
        process: which one this is, from 0; None under "auto".
        What is None is taken from the environment: ``ATTRJAX_COORDINATOR``, ``ATTRJAX_PROCESSES``,
        ``ATTRJAX_PROCESS``.

    Raises:
        ValueError: the three do not fit together, or jax finds nothing to take them from.
    """
    if coordinator is None:
        coordinator = os.environ.get(COORDINATOR, "")
    if processes is None:
        processes = _number(PROCESSES)
    if process is None:
        process = _number(PROCESS)
    if coordinator == "auto":
        if processes is not None or process is not None:
            raise ValueError("coordinator=auto finds out how many processes there are: leave the rest out")
    elif coordinator:
        _check(coordinator, processes, process)
    elif processes is not None or process is not None:
        raise ValueError("several processes need coordinator=HOST:PORT, an address of process 0, or auto")
    else:
        return end_on_sigterm()
    if coordinator == "auto":
        _initialize_by_itself()
    else:
        # Of a scheduler around it jax would take what it is not told, such as this process's devices.
        jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")
    if jax.process_count() == 1:
        end_on_sigterm()


def _initialize_by_itself() -> None:
    try:
        jax.distributed.initialize()
    except ValueError as error:  # it found no scheduler that it knows; a network that fails raises others
        raise ValueError(
            "coordinator=auto, and this is no host of a TPU slice and no task of Slurm or Open MPI:"
            " name coordinator=HOST:PORT, processes and process"
        ) from error


def end_on_sigterm() -> None:
    """SIGTERM ends this process at once from here on, where jax has taken it for what saves its step.

    The first process of a container is given no signal that it does not handle, so that one ends itself.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end if os.getpid() == 1 else signal.SIG_DFL)


def _end(number: int, _: object) -> None:
    os._exit(128 + number)


def told_anywhere() -> bool:
    """Whether all of several processes stop here, since one of them got SIGTERM; the same answer on all.

    When it comes, jax chooses the first question that none has asked yet, by its number. It is not to be the
    number of a step: a run that goes on begins far behind 0, and what is trained next at 1 again. So all
    questions of a process are counted, and nothing else may put one to jax.
    """
    return multihost_utils.reached_preemption_sync_point(next(_questions))


def together(where: str) -> None:
    """Wait here for all processes, as long as it takes.

    They meet at the coordinator before they do in a collective, for gloo gives up where processes come to
    their first one more than 30 s apart.

    Args:
        where: a name for this place in the program, the same in all of them.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost  # here, for it takes a second and one process never needs it

        multihost.get_barrier_sync_fn()(key=f"{where} {next(_numbers)}", timeout_ms=DAY)
        multihost_utils.sync_global_devices(where)


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator={coordinator} must be HOST:PORT, such as localhost:12355, or auto")
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"coordinator={coordinator} needs the number of processes and this one's index,"
            f" 0 <= process < processes; they are {process} and {processes}"
        )


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise ValueError(f"{name}={text} in the environment must be a number")
    return int(text) if text else None
