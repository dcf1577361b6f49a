"""Safetensors files and the weight files of one component folder: found, memory-mapped and written without
torch.

The format (https://huggingface.co/docs/safetensors): a little-endian uint64 N, N bytes of JSON that give each
tensor's type, shape and place, then the numbers. It is read here and not by the safetensors library because
the library keeps every page that it has touched: a component would take its size twice. Here pages are given
back once copied.
"""

import json
import math
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from absl import logging

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LARGEST_HEADER = 100_000_000  # bytes; the limit that the safetensors library sets


class StoredTensor(NamedTuple):
    """A tensor in a memory-mapped file; ``view`` reads it.

    Attributes:
        file: where it is stored.
        dtype, shape: as stored, in torch's layout.
        start, stop: the bytes of the file that hold it.
        mapping: the whole file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    mapping: mmap.mmap

    def view(self) -> np.ndarray:
        """The tensor without a copy, read-only: pages are read when they are touched."""
        count = math.prod(self.shape)
        return np.frombuffer(self.mapping, self.dtype, count, self.start).reshape(self.shape)

    def release(self) -> None:
        """Give the pages back to the system. Views stay valid: they read the file again."""
        if hasattr(mmap, "MADV_DONTNEED") and self.stop > self.start:
            first = self.start - self.start % mmap.PAGESIZE
            self.mapping.madvise(mmap.MADV_DONTNEED, first, self.stop - first)


class NewTensor(NamedTuple):
    """A tensor to be written; ``make`` gives its numbers when its turn comes, so that memory holds one."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ValueError: naming the file, where it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file ({error}); download or copy it again") from error


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with a final newline. A file of that name is replaced when the new one is whole."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write in the place of another, whose name it takes at the end of the block."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    yield partial
    os.replace(partial, path)


def open_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; no numbers are read yet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or is no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise ValueError(
                f"{path} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder"
            )
        length = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + length > size or length > _LARGEST_HEADER:
            raise _damaged(path, f"its header does not fit into the file's {size} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            tensors = {k: _stored(path, v, 8 + length, mapping) for k, v in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, f"its header cannot be read: {error!r}") from error
    wanted = max((tensor.stop for tensor in tensors.values()), default=8 + length)
    if wanted > size:
        raise _damaged(path, f"its header promises {wanted} bytes and it has {size}")
    return tensors


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is damaged or is not a safetensors file ({why}); download or copy it again")


def _stored(path: Path, entry: dict[str, Any], data: int, mapping: mmap.mmap) -> StoredTensor:
    """One entry of a header; ``data`` is where the numbers begin."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"numbers of type {entry['dtype']}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
    start, stop = (int(n) for n in entry["data_offsets"])
    if min(start, stop, *shape, 0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {start} to {stop} do not hold {dtype} {list(shape)}")
    return StoredTensor(path, dtype, shape, data + start, data + stop, mapping)


def weight_names(stem: str, variant: str | None) -> list[str]:
    """File names that may hold a component's weights, or the index of their shards, the preferred first."""
    if variant is None:
        return [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    return [
        f"{stem}.{variant}.safetensors",
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.{variant}.safetensors.index.json",
    ]


def find_weights(directory: Path, stem: str, variant: str | None = None) -> Path:
    """The weight file of a component's folder, or the index of its shards.

    Args:
        directory: the folder.
        stem: ``diffusion_pytorch_model`` (diffusers) or ``model`` (transformers).
        variant: such as "fp16". A folder that has no such files but has plain ones gives those, and this is
            logged.

    Raises:
        FileNotFoundError: no folder, or no weights in it: says what was looked for and what is there.
        ValueError: there are pickled weights only: says how to convert them.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory}")
    names = weight_names(stem, variant)
    there = next((directory / name for name in names if (directory / name).is_file()), None)
    if there is not None:
        return there
    plain = weight_names(stem, None)
    if variant is not None and any((directory / name).is_file() for name in plain):
        logging.warning("%s has no weights of variant %r: the plain ones are read", directory, variant)
        return find_weights(directory, stem)
    held = sorted(path.name for path in directory.iterdir())
    pickles = [name for name in held if name.endswith(PICKLES)]
    others = [name for name in held if name.endswith((".safetensors", ".safetensors.index.json"))]
    if pickles and not others:
        raise ValueError(pickle_message(directory, stem, variant, pickles))
    looked_for = " or ".join(names)
    raise FileNotFoundError(
        f"no weights in {directory}: looked for {looked_for}; it holds {', '.join(held) or 'nothing'}"
        + ("; name one of these variants or none" if others else "")
    )


def pickle_message(directory: Path, stem: str, variant: str | None, pickles: Sequence[str]) -> str:
    """Why pickled weights are refused, and the command that converts them."""
    old = stem if stem.startswith("diffusion") else f"pytorch_{stem}"
    ending = "" if variant is None else f".{variant}"
    parts = (
        rf"{re.escape(old + ending)}(-\d+-of-\d+)?\.bin|{re.escape(old)}(-\d+-of-\d+){re.escape(ending)}\.bin"
    )
    chosen = [name for name in pickles if re.fullmatch(parts, name)] or list(pickles[:1])
    return (
        f"{directory} has pickled weights only ({', '.join(pickles)}), which can run any code when "
        "they are read. If you trust them, convert them where torch is installed: python -c "
        '"import torch, safetensors.torch as s; '
        f"f = {[str(directory / name) for name in chosen]}; "
        "d = {k: v.clone() for p in f for k, v in "
        "torch.load(p, map_location='cpu', weights_only=True).items()}; "
        f"s.save_file(d, '{directory / weight_names(stem, variant)[0]}', metadata={{'format': 'pt'}})\""
    )


def open_weights(directory: Path, stem: str, variant: str | None = None) -> dict[str, StoredTensor]:
    """The tensors of a component's folder by name, from one file or from shards; no numbers are read yet.

    Raises:
        FileNotFoundError, ValueError: as ``find_weights`` and ``open_safetensors``; an index that leaves the
            folder, or that does not fit its shards.
    """
    path = find_weights(directory, stem, variant)
    if path.suffix != ".json":
        return open_safetensors(path)
    places = _read_index(path)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(places.values())):
        shard = directory / name
        if not shard.is_file():
            raise FileNotFoundError(
                f"{path} names the shard {name}, which is not in the folder; download it again"
            )
        tensors |= open_safetensors(shard)
    lost = [
        key for key, name in places.items() if key not in tensors or tensors[key].file.name != Path(name).name
    ]
    if lost:
        raise ValueError(f"{path} puts tensors into shards that do not hold them: {', '.join(lost)}")
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """The map from tensor to shard, whose names come from outside: they must stay in the folder."""
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path} has no weight_map of tensor names to file names; download or copy it again")
    folder = path.parent.resolve()
    for name in set(places.values()):
        # A shard itself may be a link (the Hub's cache is made of them); the folder that it lies in may not.
        parts = re.split(r"[/\\]", name)
        inside = (folder / name).parent.resolve().is_relative_to(folder)
        if (
            ".." in parts
            or parts[0] == ""
            or ":" in parts[0]
            or not inside
            or not name.endswith(".safetensors")
        ):
            raise ValueError(
                f"{path} names the shard {name!r}: only .safetensors files inside {path.parent} are read"
            )
    return places


def write_safetensors(
    path: Path, tensors: Sequence[NewTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file as torch's loaders expect it (metadata ``format: pt``), tensor by tensor.

    A file of that name is replaced when the new one is whole.
    The same tensors and metadata give the same bytes, which safetensors' own writer does not promise.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    place = 0
    for tensor in tensors:
        offsets = [place, place + tensor.size]
        header[tensor.name] = {
            "dtype": codes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        place += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            numbers = np.asarray(tensor.make(), tensor.dtype, order="C")
            if numbers.shape != tensor.shape:
                raise ValueError(f"{tensor.name} was announced as {tensor.shape} and is {numbers.shape}")
            file.write(numbers.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())  # a full disk may be noticed only here


def write_weights(directory: Path, stem: str, tensors: Sequence[NewTensor], max_shard_size: int) -> None:
    """Write a component's weights, as one file or, beyond ``max_shard_size`` bytes, shards with an index."""
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > max_shard_size:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_safetensors(directory / f"{stem}.safetensors", tensors)
        return
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(directory / name, shard)
    places = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(tensor.size for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(directory / f"{stem}.safetensors.index.json", index)
