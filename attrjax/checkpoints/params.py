"""A component's parameters from and to its weight files, leaf by leaf."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from jax.typing import DTypeLike

from attrjax.checkpoints.files import NewTensor, StoredTensor, open_weights, write_weights
from attrjax.checkpoints.names import current_names, from_torch, path_to_key, to_torch, torch_shape
from attrjax.prefetch import side_by_side

Params = dict[str, Any]
ShardingRule = Callable[[str, tuple[int, ...]], Sharding | None]
_ALIGNMENT = (
    64  # bytes; where a host array begins at such an address, JAX's CPU backend takes it without a copy
)


def load_params(
    directory: Path,
    stem: str,
    abstract: Mapping[str, Any],
    *,
    dtype: DTypeLike = np.float32,
    variant: str | None = None,
    sharding: ShardingRule | None = None,
) -> Params:
    """Read a component's weights into the tree of its network.

    Files are memory-mapped and leaves go to their devices as they are read, so that the host never holds more
    than the few that its threads have in hand beside what stays on it. Of a leaf that is split over devices
    each host reads its own part only.

    Args:
        directory, stem, variant: see ``files.find_weights``.
        abstract: the tree with shapes, as ``jax.eval_shape`` of the network's ``init`` gives it.
        dtype: type of all leaves, whatever the file holds.
        sharding: from a leaf's "/"-path and shape to where it goes; None, or a result of None, is JAX's
            default device.

    Raises:
        ValueError: with all keys that are missing, unexpected, or of another shape or kind than the
            network's.
        FileNotFoundError, ValueError: as ``files.open_weights``.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_dict(dict(abstract), sep="/").items()}
    stored = match_tensors(directory, open_weights(directory, stem, variant), shapes)
    dtype = np.dtype(dtype)

    def read(path: str) -> jax.Array:
        shape, tensor = shapes[path], stored[path]
        view = from_torch(path, tensor.view(), shape)
        assert view is not None, path  # match_tensors has seen to it
        leaf = _place(view, dtype, None if sharding is None else sharding(path, shape))
        tensor.release()
        return leaf

    # In the file's order, which a disk reads fastest.
    order = sorted(shapes, key=lambda path: (stored[path].file, stored[path].start))
    leaves = dict(zip(order, side_by_side(read, order), strict=True))
    return unflatten_dict({path: leaves[path] for path in shapes}, sep="/")


def match_tensors(
    directory: Path, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """The stored tensor of each leaf.

    Args:
        directory: named in the error.
        tensors: what the files hold.
        shapes: path -> shape of every leaf.

    Raises:
        ValueError: where files and network do not agree, with everything on which they do not.
    """
    paths = {path_to_key(path): path for path in shapes}
    found, unexpected = current_names(tensors, paths)
    wrong = []
    for key, name in found.items():
        path, tensor = paths[key], tensors[name]
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            wrong.append(f"{name}: {tensor.dtype} in the file, floating point in the network")
        elif from_torch(path, tensor.view(), shapes[path]) is None:
            expected = torch_shape(path, shapes[path])
            wrong.append(f"{name}: {list(tensor.shape)} in the file, {list(expected)} in the network")
    missing = [key for key in paths if key not in found]
    problems = {"missing": missing, "unexpected": unexpected, "of the wrong shape or type": wrong}
    if any(problems.values()):
        counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in problems.items() if keys)
        lists = "".join(f"\n  {kind}: {key}" for kind, keys in problems.items() for key in sorted(keys))
        raise ValueError(
            f"the weights in {directory} do not fit the network that its config.json describes ({counts}); "
            f"use the two files that belong together{lists}"
        )
    return {paths[key]: tensors[name] for key, name in found.items()}


def _host_copy(view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in C order that JAX's CPU backend can take as it is."""
    size = view.size * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + size].view(dtype).reshape(view.shape)
    np.copyto(copy, view, casting="unsafe")
    return copy


def _place(view: np.ndarray, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
    """A leaf on its devices. Waits for the transfer, so that host copies do not pile up."""
    if sharding is None or len(sharding.device_set) == 1:
        return jax.block_until_ready(jax.device_put(_host_copy(view, dtype), sharding))
    copies: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        key = tuple((s.start, s.stop) for s in index)
        if key not in copies:  # replicas share one copy
            copies[key] = _host_copy(view[index], dtype)
        return copies[key]

    return jax.block_until_ready(jax.make_array_from_callback(view.shape, sharding, part))


def save_params(
    directory: Path,
    stem: str,
    params: Mapping[str, Any],
    *,
    dtype: DTypeLike = np.float32,
    max_shard_size: int = 10 * 10**9,
) -> None:
    """Write a network's tree as safetensors under torch's names, fetching one leaf at a time from its
    devices.

    Args:
        directory: an existing folder.
        stem: ``diffusion_pytorch_model`` (diffusers) or ``model`` (transformers).
        params: the tree.
        dtype: type of all tensors in the file: float16, bfloat16 or float32.
        max_shard_size: bytes beyond which the file is split.

    Raises:
        ValueError: a leaf has numbers beyond the range of ``dtype``, or lies on other hosts.
    """
    dtype = np.dtype(dtype)

    def host(path: str, leaf: Any) -> np.ndarray:
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(
                f"{path} is split over several hosts: gather the parameters before they are saved"
            )
        value = np.asarray(leaf)
        with np.errstate(over="ignore"):
            cast = value.astype(dtype)
        if np.isinf(cast).sum() > np.isinf(value).sum():
            raise ValueError(f"{path} has numbers beyond the range of {dtype}: save with dtype=float32")
        return to_torch(path, cast)

    tensors = [
        NewTensor(
            path_to_key(path),
            dtype,
            torch_shape(path, leaf.shape),
            partial(host, path, leaf),
        )
        for path, leaf in sorted(flatten_dict(dict(params), sep="/").items())
    ]
    write_weights(directory, stem, tensors, max_shard_size)
