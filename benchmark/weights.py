"""Random weights of published size, written to safetensors files one tensor at a time."""

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# A file holds at most so many bytes; larger components are split as published ones are.
SHARD_BYTES = 5_000_000_000


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 weights that keep activations of order 1; they depend on the name and the shape alone.

    Matrices and kernels have variance 1/fan-in, so that no layer grows or shrinks what passes through it;
    scales of norms lie near 1 and biases near 0, but not at them, so that a missing one shows.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(shape, np.float32)
    if len(shape) > 1:
        values *= np.float32(np.prod(shape[1:]) ** -0.5)
    else:
        values *= np.float32(0.1)
        if name.endswith("weight"):
            values += 1
    return values


def write_component(directory: Path, stem: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write ``stem.safetensors``, or its shards and index where it is large, with ``random_tensor``.

    Never holds more than one tensor: to make a network in memory and save it would take twice SDXL.
    """
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        count = 4 * int(np.prod(shape))
        if size + count > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += count
    directory.mkdir(parents=True, exist_ok=True)
    if len(shards) == 1:
        _write_file(directory / f"{stem}.safetensors", shards[0])
        return
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file, shard)
        index |= dict.fromkeys(shard, file)
    total = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (directory / f"{stem}.safetensors.index.json").write_text(text)


def _write_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """One safetensors file: the header's length, the header, the tensors (safetensors' README)."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            file.write(random_tensor(name, shape).data)
