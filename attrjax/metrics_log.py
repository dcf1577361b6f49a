"""What a training run writes down of its steps: a line for each, and TensorBoard's events."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attrjax.runs import write_whole


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Imports of a module fail as if it were not installed, unless it was imported before."""
    modules: dict[str, Any] = sys.modules
    if name in modules:
        yield
        return
    modules[name] = None  # as Python says that a module is not to be had
    try:
        yield
    finally:
        del modules[name]


# It imports torch where that is installed, for the sake of torch's tensors: half of a run's imports in time.
with _absent("torch"):
    from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard's events of a run that is at some step.

    Lines of later steps, and one that was cut off, are removed: these steps will be made again.

    Attributes:
        rates: amounts of which each step has as much, by what they are called in a second.
    """

    def __init__(self, workdir: Path, step: int):
        path = workdir / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("}\n")]
        write_whole(path, "".join(line for line in whole if json.loads(line)["step"] <= step).encode())
        self.file = path.open("a")
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self.start = self.time = time.monotonic()
        self.step = step
        self.rates = {"steps_per_second": 1.0}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        pace = (step - self.step) / max(now - self.time, 1e-9)
        rates = {name: float(f"{amount * pace:.6g}") for name, amount in self.rates.items()}
        self.step, self.time = step, now
        # JSON has no word for what is not finite.
        plain = {name: value if np.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, **plain, "seconds": round(now - self.start, 3), **rates}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in {**values, **rates}.items():
            self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Return when all lines are on disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        self.board.close()
