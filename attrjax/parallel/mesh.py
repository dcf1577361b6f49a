"""The mesh of devices, and where a train state and its batches lie on it.

Axis ``data`` divides batches and copies the state; axis ``fsdp`` divides both. The compiler derives the
rest from where the arguments lie, so the same train step runs on one device and on a pod. Axis ``concept``
divides what is learned side by side (``attributes.stack``); to a task that learns one thing it is ``data``.

What ``fsdp`` divides is said by an ordered list of (regex, rule), as what is tuned is
(``attributes.partition``). The first regex that matches the end of a leaf's "/"-path, from the beginning of a
name on, decides: so the moments and the average of a parameter lie where it lies. A rule is ``auto``
(``shard_leaf``), ``copy``, or the number of the dimension that is divided.
"""

import functools
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

AXES = ("concept", "data", "fsdp")
# Leaves up to this size are copied to every device: dividing them saves no memory worth a message.
LARGEST_COPIED = 2**14
Rules = Sequence[tuple[str, str]]
AUTO: Rules = ((".*", "auto"),)


def make_mesh(
    concept: int = 1, data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of devices with the axes ``concept``, ``data`` and ``fsdp``.

    Args:
        concept: over how many devices concepts are spread, each of which is learned on one of them.
        data: how many parts of a batch there are with a copy of the state each.
        fsdp: how many devices share one copy of the state.
            One of the three can be -1, which takes the devices that the others leave.
        devices: the devices to use, by default all of all processes.

    Raises:
        ValueError: a size is neither -1 nor positive, several are -1, or their product is not the number of
            devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"concept": concept, "data": data, "fsdp": fsdp}
    for name, size in sizes.items():
        if size == 0 or size < -1:
            raise ValueError(
                f"the mesh's {name}={size} must be 1 or more, or -1 for the devices that are left"
            )
    if list(sizes.values()).count(-1) > 1:
        raise ValueError("only one of the mesh's concept, data and fsdp can be -1")
    known = math.prod(size for size in sizes.values() if size > 0)
    if -1 in sizes.values() and len(devices) % known == 0:
        sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"a mesh of concept={concept}, data={data}, fsdp={fsdp} does not fit {len(devices)} devices"
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes[name] for name in AXES), AXES, axis_types=types, devices=devices)


def local_mesh(mesh: Mesh) -> Mesh:
    """This process's devices of a mesh, all on ``data``, for what processes do without each other."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    # Not by ``jax.make_mesh``: a part of a TPU slice need not be one that it knows, and how devices are
    # connected is no matter where they have nothing to tell each other.
    return Mesh(np.reshape(own, (1, -1, 1)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shard_leaf(mesh: Mesh, path: str, shape: Sequence[int], rules: Rules = AUTO) -> NamedSharding:
    """Where a leaf of a train state, or of frozen weights, lies.

    By ``auto`` one of more than ``LARGEST_COPIED`` elements is divided over ``fsdp`` along its largest
    dimension that this axis divides, the last one where several are equal; the others are copied to every
    device.

    Args:
        mesh: of ``make_mesh``.
        path: of the leaf.
        shape: of the leaf.
        rules: ordered (regex, rule) pairs.

    Raises:
        ValueError: no rule matches, the one that does is none, or its dimension is not there or cannot be
            divided evenly.
    """
    parts, rule = mesh.shape["fsdp"], _rule_of(path, tuple(map(tuple, rules)))
    if rule == "auto":
        fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or math.prod(shape) <= LARGEST_COPIED or not fitting:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(fitting, key=lambda axis: (shape[axis], axis))
    elif rule == "copy":
        return NamedSharding(mesh, PartitionSpec())
    elif rule.isdecimal():
        axis = int(rule)
        if axis >= len(shape) or shape[axis] % parts:
            raise ValueError(
                f"dimension {axis} of {path} {tuple(shape)} cannot be divided over fsdp={parts} devices: "
                "take auto, copy or another dimension in config.sharding"
            )
    else:
        raise ValueError(f"the rule {rule!r} for {path} in config.sharding must be auto, copy or a dimension")
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))


@functools.cache
def _rule_of(path: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, rule in rules:
        if re.fullmatch(f"(?:.*/)?(?:{pattern})", path):
            return rule
    raise ValueError(f"no rule of config.sharding matches {path}: end the list with '.* auto'")


def shard_state(mesh: Mesh, tree: Any, rules: Rules = AUTO) -> Any:
    """``shard_leaf`` of each leaf of a tree of arrays, or of anything else that has a ``shape``."""

    def where(path: Any, leaf: Any) -> NamedSharding:
        return shard_leaf(mesh, keystr(path, simple=True, separator="/"), np.shape(leaf), rules)

    return jax.tree_util.tree_map_with_path(where, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where an array of a batch lies: its leading axis is divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def traced_for(mesh: Mesh) -> AbstractContextManager[Any]:
    """Inside, programs are traced with the mesh in sight, so that custom kernels are divided over its rows
    (``models.attention``); all else is divided by the compiler, as without.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def place_state(mesh: Mesh, tree: Any, rules: Rules = AUTO) -> Any:
    """Put a train state, or frozen weights, where ``shard_state`` says. Every process has all of it."""
    return jax.device_put(tree, shard_state(mesh, tree, rules))


def state_shapes(mesh: Mesh, tree: Any, rules: Rules = AUTO) -> Any:
    """What ``place_state`` gives, without its values; of arrays or anything else with shape and type."""

    def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, shard_state(mesh, tree, rules))


def batch_shapes(mesh: Mesh, batch: Any) -> Any:
    """What ``place_batch`` gives, without its values, of a batch with the rows of all processes."""
    sharding, copied = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        where = sharding if leaf.shape else copied
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(shape, batch)


def on_host(tree: Any) -> Any:
    """A train state, or parts of one, as numpy arrays. Every process gets all of it, and all have to ask."""
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Put a batch on the mesh, divided along its leading axis; scalars are copied to every device.

    Args:
        mesh: of ``make_mesh``.
        batch: numpy arrays or arrays of this process's devices: the rows that this process contributes, which
            with one process are all of them. Rows are in order of process.

    Raises:
        ValueError: an array's rows cannot be divided evenly.
    """
    sharding, copied = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    processes = len({device.process_index for device in mesh.devices.flat})
    local_devices, own = mesh.size // processes, batch_sharding(local_mesh(mesh))

    def place(leaf: Any) -> jax.Array:
        if np.ndim(leaf) == 0:
            return jax.device_put(leaf, copied)
        if len(leaf) % local_devices:
            raise ValueError(
                f"a batch of {len(leaf)} rows a process cannot be divided over its {local_devices} devices"
            )
        if processes == 1:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(
            own, leaf.ndim
        ):  # where it belongs already
            parts = [shard.data for shard in leaf.addressable_shards]
            shape = (len(leaf) * processes, *leaf.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, parts)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, batch)


def own_rows(batch: Any) -> Any:
    """Of a batch that every process has drawn alike, the rows that this one contributes to ``place_batch``.

    Args:
        batch: arrays of all rows. Each is divided by itself, for not all have the same number.

    Raises:
        ValueError: rows cannot be divided evenly.
    """
    processes, here = jax.process_count(), jax.process_index()

    def part(leaf: Any) -> np.ndarray:
        if len(leaf) % processes:
            raise ValueError(
                f"{len(leaf)} rows of a batch cannot be divided over {processes} processes: choose a number "
                "of rows that can, for a picture --config.batch_size and --config.prior.rows"
            )
        return np.split(np.asarray(leaf), processes)[here]

    return batch if processes == 1 else jax.tree.map(part, batch)
