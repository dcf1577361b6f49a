"""Concepts side by side: one compiled step in which each is learned as it would be alone.

What is trained has one more axis, of concepts, which is divided over the mesh's axis ``concept``; the frozen
base has not, and lies on every device in one copy. Each device makes the update of its own concepts
(``vmap`` inside of ``shard_map``), so there is nothing that devices would have to tell each other: gradients
are clipped, moments kept and rates set for each concept by itself.

A stack has rows, the same number on each device, and a row holds a concept, by its number. Where concepts
have ended their rows are given up as soon as half of a device's rows are enough: each number of rows is a
program to compile, so there are as few of them as halvings, and less than half of the rows is idle. A concept
stays on the device that it began on.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from attrjax.compiling import quick
from attrjax.parallel.mesh import place_batch
from attrjax.training import LossFn, Metrics, StepFn, TrainState, first_state, make_optimizer, update

Rows = list[list[int]]  # for each device of the mesh, in its order: the concepts of its rows
CONCEPTS = PartitionSpec("concept")


def make_stacked_step(
    loss_fn: LossFn, optimizer: Mapping[str, Any], mesh: Mesh, *, ema_decay: float
) -> StepFn:
    """The train step of a stack, ``step(state, batch, root_key, frozen) -> (state, metrics)``, compiled.

    It is called as that of ``training.make_step`` is, and uses its state up. ``root_key`` is not used, for
    each concept has its own in the batch.

    Args:
        loss_fn: of one concept, ``loss_fn(params, batch, key, frozen)``; ``frozen`` then has ``begun``, too.
        optimizer: arguments of ``make_optimizer`` without ``steps``.
        mesh: with one device for each place on the axis ``concept``.
        ema_decay: as in ``make_step``.

    Returns:
        the step. Leaves of state, batch and metrics have a leading axis of all rows. The batch is that of
        ``own_of`` with ``pairs``, the batch of ``loss_fn``.
    """

    def one(state: TrainState, batch: dict[str, Any], frozen: Any) -> tuple[TrainState, Metrics]:
        def loss(params: Any, pairs: Any, key: Key[Array, ""], frozen: Any) -> Any:
            return loss_fn(params, pairs, key, {**frozen, "begun": batch["begun"]})

        rule = make_optimizer(steps=batch["steps"], **optimizer)
        root_key = jax.random.wrap_key_data(batch["root"])
        return update(loss, rule, state, batch["pairs"], root_key, frozen, ema_decay=ema_decay)

    divided = jax.shard_map(
        jax.vmap(one, in_axes=(0, 0, None)),
        mesh=mesh,
        in_specs=(CONCEPTS, CONCEPTS, PartitionSpec()),
        out_specs=CONCEPTS,
        check_vma=False,  # nothing crosses devices, so there is nothing to check
    )

    def step(state: TrainState, batch: Any, root_key: None, frozen: Any) -> tuple[TrainState, Metrics]:
        return divided(state, batch, frozen)

    return jax.jit(step, donate_argnames="state", compiler_options=quick())


def own_of(begun: Array, root_key: Key[Array, ""], steps: int) -> dict[str, np.ndarray]:
    """What a concept has of its own in every batch.

    Args:
        begun: of ``learner.begun_of``.
        root_key: of its steps.
        steps: by which its learning rate falls.
    """
    root = np.asarray(jax.random.key_data(root_key))
    return {"begun": np.asarray(begun), "root": root, "steps": np.asarray(steps, np.int32)}


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Trees of arrays as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def first_stack(
    params: Sequence[PyTree], optimizer: Mapping[str, Any], mesh: Mesh, *, ema: bool
) -> TrainState:
    """The state of a stack before the first step, on the mesh.

    Args:
        params: of this process's rows, in order.
        optimizer: arguments of ``make_optimizer`` without ``steps``.
        mesh: as in ``make_stacked_step``.
        ema: whether there is a moving average.
    """
    # What an optimizer begins with does not depend on the number of steps, as long as there are enough.
    rule = make_optimizer(steps=2**30, **optimizer)
    begin = jax.vmap(lambda params: first_state(params, rule, ema=ema))
    return jax.jit(begin, out_shardings=NamedSharding(mesh, CONCEPTS))(place_batch(mesh, stacked(params)))


def rows_of(held: Sequence[Sequence[int]], over: Collection[int], most: int) -> Rows:
    """The rows of a stack.

    Args:
        held: for each device the concepts that it has: those it was dealt, at least one, or its rows so far.
        over: concepts that have ended.
        most: rows of a device in the largest stack; a smaller one has a half of them, a half of that, ...

    Returns:
        the concepts of each row; those that have ended fill up what the others leave, and are not learned
        from. No rows at all where all have ended.
    """
    needed = max(sum(concept not in over for concept in concepts) for concepts in held)
    if not needed:
        return [[] for _ in held]
    count = most
    while -(-count // 2) >= needed and count > 1:
        count = -(-count // 2)
    rows = []
    for concepts in held:
        order = sorted(dict.fromkeys(concepts), key=lambda concept: concept in over)
        rows.append([order[row % len(order)] for row in range(count)])
    return rows


def local_places(mesh: Mesh) -> list[int]:
    """Which of the mesh's devices are this process's, by their places on the axis ``concept``."""
    here = jax.process_index()
    return [place for place, device in enumerate(mesh.devices.flat) if device.process_index == here]


def at(tree: PyTree, mesh: Mesh, place: int) -> PyTree:
    """The rows of one of this process's devices, on the host."""
    device = mesh.devices.flat[place]

    def read(leaf: jax.Array) -> np.ndarray:
        return next(np.asarray(shard.data) for shard in leaf.addressable_shards if shard.device == device)

    return jax.tree.map(read, tree)


def taken(tree: PyTree, row: int) -> PyTree:
    """One row of a tree on the host."""
    return jax.tree.map(lambda leaf: leaf[row], tree)


def restack(state: TrainState, mesh: Mesh, before: Rows, after: Rows) -> TrainState:
    """The state of a stack with other rows, each of them with what it has learned."""
    parts = []
    for place in local_places(mesh):
        kept = [before[place].index(concept) for concept in after[place]]
        parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], at(state, mesh, place)))
    local = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    # Copies, for the step gives its state's buffers away, and those of numpy are not its own.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=NamedSharding(mesh, CONCEPTS))
    return copy(place_batch(mesh, local))
