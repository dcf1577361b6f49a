"""Weights of a network that change with the timestep: what acts while noise takes form need not act later."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

Tree = dict[str, Any]


class Stage(NamedTuple):
    """Weights of a network for a range of timesteps: those below the stage before it, down to ``low``.

    Attributes:
        low: the lowest timestep that has them.
        params: the network's parameters.
        adapters: bound low-rank changes of them (``adapters.bind``); empty for none.
    """

    low: int
    params: Tree
    adapters: Tree


def stacked(stages: Sequence[Stage]) -> tuple[Tree, Tree, Int[np.ndarray, " stages-1"]]:
    """Variables of a network at all stages, without copies of what they share.

    Args:
        stages: from high timesteps to low ones, with trees of one structure.

    Returns:
        the variables that are the same array in all stages; the others, with a leading axis of stages; and
        the lowest timestep of each stage but the last.
    """
    flat = [flatten_dict({"params": stage.params, "adapters": stage.adapters}) for stage in stages]
    same = {path for path, leaf in flat[0].items() if all(other[path] is leaf for other in flat)}
    shared = {path: flat[0][path] for path in same}
    differing = {path: jnp.stack([leaves[path] for leaves in flat]) for path in flat[0] if path not in same}
    lows = np.asarray([stage.low for stage in stages[:-1]], np.int32)
    return unflatten_dict(shared), unflatten_dict(differing), lows


def at_timestep(t: Float[Array, ""], shared: Tree, differing: Tree, lows: Int[Array, " stages-1"]) -> Tree:
    """The variables of the stage that a timestep belongs to; ``shared``, ... are those of ``stacked``."""
    stage = (t < lows).sum()
    chosen = {path: leaf[stage] for path, leaf in flatten_dict(differing).items()}
    return unflatten_dict(flatten_dict(shared) | chosen)
