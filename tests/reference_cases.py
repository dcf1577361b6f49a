"""Pictures to learn from, and configs that learn little of them in little time."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image


def write_disc(
    directory: Path, name: str = "disc", colour: tuple[int, int, int] = (200, 40, 30), radius: int = 18
) -> tuple[Path, Path]:
    """A picture of a striped disc, and its mask."""
    rows, columns = np.mgrid[:64, :64]
    mask = (rows - 30) ** 2 + (columns - 34) ** 2 < radius**2
    stripes = np.where(rows[..., None] // 4 % 2, colour, (240, 230, 60))
    picture = np.where(mask[..., None], stripes, (120, 140, 200)).astype(np.uint8)
    paths = directory / f"{name}.png", directory / f"{name}-mask.png"
    Image.fromarray(picture).save(paths[0])
    Image.fromarray(255 * mask.astype(np.uint8)).save(paths[1])
    return paths


def small(config: ConfigDict, base: Path, reference: tuple[Path, Path], **changes) -> ConfigDict:
    """Two steps of two pairs, a picture for each probe."""
    config.update({"base": str(base), "reference": str(reference[0]), "mask": str(reference[1])})
    config.update({"steps": 2, "batch_size": 2, "save_every": 1, "log_every": 1})
    config.cache_dir = str(reference[0].parent / "jit")
    config.update({"initial": "at", "num_tokens": 2})
    config.optimizer.warmup = 1
    config.crossed = 0.0
    config.prior.update({"count": 2, "rows": 1, "prompts": ("a {}",), "objects": ("at",)})
    config.probe.update({"every": 1, "prompts": ("a {}",), "seeds": (0,), "steps": 2, "batch_size": 1})
    config.update(changes)
    return config
