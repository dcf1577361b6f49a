"""Between the paths of a linen tree and torch's parameter names, and between the two layouts.

The map is mechanical: a list's entry ``resnets_1`` is ``resnets.1``, and the last part tells what a weight
is. A linear ``kernel`` [in, out] is ``weight`` [out, in]; a convolution's [kh, kw, in, out] is
[out, in, kh, kw]; ``scale`` of a norm and ``embedding`` of a table are ``weight`` as they stand; ``bias`` and
bare parameters such as ``class_embedding`` keep their names.

    down_blocks_0/resnets_1/conv1/kernel        down_blocks.0.resnets.1.conv1.weight
    time_embedding/linear_1/kernel              time_embedding.linear_1.weight
    conv_norm_out/scale                         conv_norm_out.weight
    text_model/embeddings/token_embedding/embedding
                                                text_model.embeddings.token_embedding.weight
"""

import re
from collections.abc import Collection, Iterable

import numpy as np

LISTS = (
    "down_blocks",
    "up_blocks",
    "resnets",
    "attentions",
    "downsamplers",
    "upsamplers",
    "transformer_blocks",
    "to_out",
    "net",
    "layers",
)
_ENTRY = re.compile(rf"({'|'.join(LISTS)})_(\d+)")
_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}  # torch's order of a kernel's axes: [in, out] and HWIO
_OLD_ATTENTION = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TOWERS = ("text_model.", "vision_model.")
_PROJECTIONS = ("text_projection.weight", "visual_projection.weight")


def path_to_key(path: str) -> str:
    """The torch name of a leaf: ``mid_block/resnets_0/conv1/bias`` is ``mid_block.resnets.0.conv1.bias``."""
    *modules, leaf = path.split("/")
    modules = [_ENTRY.sub(r"\1.\2", module) if _ENTRY.fullmatch(module) else module for module in modules]
    return ".".join([*modules, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """A leaf in torch's layout, as a view."""
    return value.transpose(_AXES[value.ndim]) if path.endswith("/kernel") else value


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that ``to_torch`` gives a leaf."""
    return tuple(shape[axis] for axis in _AXES[len(shape)]) if path.endswith("/kernel") else tuple(shape)


def from_torch(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A stored tensor in the layout of the leaf ``path`` of that shape, as a view; None where it does not
    fit.

    A 1x1 convolution and a linear layer are the same map, and files differ in which of them they store
    (projections of attention blocks before diffusers 0.17): both are read.
    """
    stored = torch_shape(path, shape)
    if value.shape != stored:
        if not path.endswith("/kernel") or _without_ones(value.shape) != _without_ones(stored):
            return None
        value = value.reshape(stored)
    return value.transpose(np.argsort(_AXES[value.ndim])) if path.endswith("/kernel") else value


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[out, in] of a linear layer and of a 1x1 convolution."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def current_names(keys: Iterable[str], expected: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """From the names in a file to the names of today, for the names that a network expects.

    Read are: the attention of autoencoders before diffusers 0.17 (``query``, ``key``, ``value``,
    ``proj_attn``), and CLIP towers with and without the prefix ``text_model.`` or ``vision_model.``
    (transformers 5 leaves it out where there is no projection). Left out are: ``position_ids``, which count
    upwards in every file; and, in the file of a whole CLIP, which ``logit_scale`` gives away, what belongs to
    the other tower and the unused projection.

    Args:
        keys: names in the file.
        expected: names of the network.

    Returns:
        name of today -> name in the file, and the names in the file that are neither expected nor left out.
    """
    keys = list(keys)
    whole_clip = "logit_scale" in keys and any(name.startswith(_TOWERS) for name in expected)
    found: dict[str, str] = {}
    unexpected = []
    for key in keys:
        name = key
        old = _OLD_ATTENTION.fullmatch(key)
        if old:
            name = f"{old[1]}.{_NEW_NAMES[old[2]]}.{old[3]}"
        name = next((tower + name for tower in _TOWERS if tower + name in expected), name)
        if name in expected and name not in found:
            found[name] = key
        elif name.split(".")[-1] == "position_ids":
            continue
        elif whole_clip and name not in expected and _of_whole_clip(name, expected):
            continue
        else:
            unexpected.append(key)
    return found, unexpected


def _of_whole_clip(name: str, expected: Collection[str]) -> bool:
    """Whether a name that a tower does not expect is one that a whole CLIP has beside that tower."""
    other = tuple(tower for tower in _TOWERS if not any(key.startswith(tower) for key in expected))
    return name == "logit_scale" or name in _PROJECTIONS or name.startswith(other)
