"""Networks that are traced for the shapes of their parameters alone, which each start does.

Layers then leave out what changes no shape, and with it a good third of the time that it takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHAPES_ALONE: ContextVar[bool] = ContextVar("shapes alone", default=False)


def shapes_alone() -> bool:
    """Whether no values come of what is traced now."""
    return _SHAPES_ALONE.get()


@contextmanager
def for_shapes() -> Iterator[None]:
    """Inside, networks are traced for shapes alone: under ``jax.eval_shape``, for values would be wrong."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)
