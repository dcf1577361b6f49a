"""What all peers share: instructions, the clock, JSON lines on standard output. Standard library only.

A peer is called with one argument, the JSON of a ``Spec``, and prints one line for each measurement.
"""

import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Guidance scale of sampling.
GUIDANCE = 7.5
LEARNING_RATE, WEIGHT_DECAY = 1e-5, 1e-2
# Train steps of a part of the network: arguments of ``attributes.partition.rules_of``. The low-rank one is of
# every projection of attention, as PEFT's examples for diffusers have it.
TUNED = {
    "tune_encoder": ("encoder", "train"),
    "tune_decoder": ("decoder", "train"),
    "tune_full": ("full", "train"),
    "tune_low_rank": (".*/attn[12]/to_.*/kernel lora:4; .* freeze", ""),
}
# The scheduler of SD 1.x for DDIM.
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


class Spec(NamedTuple):
    """What a peer is to do.

    Attributes:
        peer: its name in the table.
        family: key of ``families.UNET``.
        size: side of the picture in pixels.
        what: any of forward, train, sample, decode.
        repeats: timed calls of forward, train and decode; sampling is timed once for every ten, or once. With
            0 everything is compiled and nothing timed.
        steps: of sampling.
        threads: CPU cores. device: "cpu" or "gpu".
        dtype: that networks compute in, "float32" or "bfloat16"; what is trained is float32.
    """

    peer: str
    family: str
    size: int
    what: tuple[str, ...]
    repeats: int
    steps: int
    threads: int
    device: str
    dtype: str


def begin(argument: str) -> Spec:
    """Read the instructions and keep to the given cores; to be called before a library starts its threads."""
    spec = Spec(**json.loads(argument))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: spec.threads])
    os.environ["OMP_NUM_THREADS"] = str(spec.threads)
    return spec


def emit(task: str, **values: Any) -> None:
    """Print one result."""
    print(json.dumps({"task": task, **values}), flush=True)


def host_peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    spec: Spec,
    task: str,
    warm_up: Callable[[], Any],
    call: Callable[[], Any],
    variant: str = "default",
    peak_bytes: Callable[[], int] = host_peak_bytes,
) -> None:
    """Time ``call``, which must return when its work is done, after ``warm_up``, which compiles it.

    Lack of memory is a result and not an error. ``peak_bytes`` tells the most memory held so far.
    """
    try:
        start = time.perf_counter()
        warm_up()
        first = time.perf_counter() - start
        seconds = []
        for _ in range(-(-spec.repeats // 10) if task == "sample" else spec.repeats):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    except (MemoryError, RuntimeError) as error:
        if not any(
            words in str(error).lower() for words in ("out of memory", "resource_exhausted", "can't allocate")
        ):
            raise
        emit(task, variant=variant, failed="does not fit")
        return
    emit(task, variant=variant, first_s=first, seconds=seconds, peak_bytes=peak_bytes())


def measure_peak(call: Callable[[], Any], flops: float) -> None:
    """Emit the fastest of several calls of a large matrix product as the machine's peak, in FLOP/s."""
    call()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    emit("peak", flops_per_s=flops / best)
