"""Reading and writing the small weight files that users pass around: LoRA, textual inversion, IP-Adapter."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from attrjax.checkpoints.files import PICKLES, NewTensor, open_safetensors, write_safetensors


def read_exchange_file(
    path: str | Path, names: Sequence[str]
) -> tuple[Path, dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a safetensors file, and the text in its header.

    Args:
        path: the file, or a directory that holds one of ``names``.
        names: file names to look for in a directory, the first that exists is read.

    Returns:
        the file's path, its tensors, its metadata.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a pickled file, and for one that is no, or only a part of a, safetensors file.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        there = [path / name for name in names if (path / name).is_file()]
        if not there:
            raise FileNotFoundError(f"{path} holds none of {', '.join(names)}")
        file = there[0]
    if file.is_file() and file.suffix in PICKLES:
        raise ValueError(
            f"{file} is a pickle, which can run any code when it is read; if you trust it, convert it where "
            'torch is installed: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{file}', map_location='cpu', weights_only=True), "
            f"'{file.with_suffix('.safetensors')}')\""
        )
    tensors = {key: np.array(stored.view()) for key, stored in open_safetensors(file).items()}
    with safe_open(file, framework="numpy") as stored:
        return file, tensors, stored.metadata() or {}


def write_exchange_file(
    path: str | Path, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors to ``path`` if it ends in ``.safetensors``, else to ``name`` in the directory ``path``.

    A file of that name is replaced when the new one is whole. The same content gives the same bytes.

    Raises:
        ValueError: where ``path`` ends as pickles do.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: weights are written as .safetensors only")
    file = path if path.suffix == ".safetensors" else path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.asarray(tensor) for key, tensor in sorted(tensors.items())}
    announced = [
        NewTensor(key, array.dtype, array.shape, functools.partial(np.asarray, array))
        for key, array in arrays.items()
    ]
    write_safetensors(file, announced, metadata)
    return file
