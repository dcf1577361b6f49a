"""Run directories: who may write to one, what is recorded in it, and how its files are named."""

import hashlib
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from attrjax import __version__
from attrjax.checkpoints.files import whole_file

RECORD = "run.json"
SLUG_LENGTH = 60


def check_run(
    workdir: str | Path, config: Mapping[str, Any], *, resume: bool, may_change: tuple[str, ...]
) -> None:
    """Whether a run with this config may use a directory.

    Args:
        workdir: it need not be there.
        config: what the run does, nested dicts of plain values.
        resume: go on with the run that the directory holds, which must have had this config.
        may_change: keys of the config that may differ from those of a run that goes on.

    Raises:
        FileExistsError: the directory holds a run and ``resume`` is false.
        ValueError: the run that it holds had another config.
    """
    record = Path(workdir) / RECORD
    if not record.exists():
        return
    if not resume:
        raise FileExistsError(
            f"{workdir} already holds a run: take another --workdir, or --resume to make what it lacks"
        )
    before, config = json.loads(record.read_text())["config"], plain(config)
    keys = sorted((before.keys() | config.keys()) - set(may_change))
    changed = [
        f"{key} was {before.get(key)!r}, is {config.get(key)!r}"
        for key in keys
        if before.get(key) != config.get(key)
    ]
    if changed:
        raise ValueError(
            f"the run in {workdir} had another config: {'; '.join(changed)}. Take another --workdir"
        )


def write_record(workdir: Path, config: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> None:
    """Write ``run.json``: the config, the versions, and what there is to say of the run's results.

    A directory that has one holds a run.
    """
    record = {"config": plain(config), "versions": versions(), **plain(results or {})}
    write_whole(workdir / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whenever the program is stopped, it is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_bytes(data)


def plain(value: Any) -> Any:
    """A config's value in JSON's terms: tuples are lists, keys are in order."""
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def peak_memory() -> int:
    """The most bytes that this process has held: of the accelerator's memory, on a CPU of the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Versions of what the result depends on, and the device that computes it."""
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "transformers")}
    device = jax.devices()[0]
    kind = "" if device.device_kind == device.platform else f" ({device.device_kind})"
    return {
        "attrjax": __version__,
        "python": platform.python_version(),
        **packages,
        "device": f"{jax.device_count()} x {device.platform}{kind}",
    }


def slug(text: str) -> str:
    """A short file name for a prompt, the same in every run and different for every prompt.

    Small letters, digits and dashes. A prompt that cannot be read back from that (capitals, other characters,
    more than ``SLUG_LENGTH`` of them) gets six characters of its hash at the end.
    """
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if words and len(words) <= SLUG_LENGTH and words.replace("-", " ") == text:
        return words
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return "-".join(filter(None, (words[:SLUG_LENGTH].strip("-"), digest)))


def use_compile_cache(directory: str) -> None:
    """Keep compiled programs in a directory, so that the next run of the same shapes starts at once.

    A program read from it is executed: it must be a directory that only its user can write to. XLA divides a
    CPU's program by how many cores the process may use, which changes the order of its sums, and JAX's key of
    a program does not say it: programs for each number of cores have a directory of their own, so that what a
    run computes does not depend on who filled the cache.

    Args:
        directory: "" for none; "~" is the user's home.
    """
    if not directory:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    path = Path(directory).expanduser() / f"{cores}-cores"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # JAX keeps what took it a second; a start has dozens of programs that took less, on a GPU more than a
    # hundred of a twentieth of a second each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that a block takes to ``timings[name]``."""
    start = time.perf_counter()
    yield
    timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - start, 3)


@contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """The seconds of every compilation inside a block, or of reading its result from the cache."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
