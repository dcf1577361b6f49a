"""Traces of training steps, for XProf (TensorBoard's profile plugin) or Perfetto."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import jax
from absl import logging


@contextmanager
def profiled(
    directory: Path, first: int, last: int, settle: Callable[[], None]
) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """A trace of some steps; what is yielded is entered around each step, with its number.

    Args:
        directory: gets ``plugins/profile/TIME/HOST.xplane.pb``, of each process its own.
        first, last: steps that are traced; (0, 0) for none. A run that ends or goes on between them has a
            trace of those that it makes.
        settle: returns when the device has made what it was told to; steps are dispatched ahead of it.
    """
    running = False

    @contextmanager
    def around(step: int) -> Iterator[None]:
        nonlocal running
        if not running and first <= step <= last and first:
            jax.profiler.start_trace(str(directory))
            running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if running and step >= last:
            settle()
            jax.profiler.stop_trace()
            running = False
            logging.info("wrote a trace of steps to %s", directory)

    try:
        yield around
    finally:
        if running:
            jax.profiler.stop_trace()
