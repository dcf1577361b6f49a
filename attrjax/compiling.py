"""How programs are compiled: how hard, and what they then take."""

from typing import Any, NamedTuple

import jax
from absl import logging

from attrjax.peaks import PEAKS


class Cost(NamedTuple):
    """What a compiled program takes of each device.

    Attributes:
        operations: floating-point ones, as XLA counts those of what it compiled, so with all that is made
            again (``remat``); 0 where it does not say.
        arguments: bytes of what it reads.
        workspace: bytes that it needs besides, and for what it gives beyond the arguments that it uses up.
    """

    operations: float
    arguments: int
    workspace: int


def quick() -> dict[str, int] | None:
    """``compiler_options`` of ``jax.jit`` for programs that are matrix products above all; None for the
    backend's own.

    XLA for CPUs has LLVM optimize all that it emits as far as it can, which is a third to a half of the time
    that these take to compile. At level 1 a train step runs as fast, and the drawing of pairs, a tenth of it,
    up to a sixth slower (docs/performance.md): the products are not LLVM's. Sampling runs a fifth slower, and
    is left alone.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def cost_of(program: jax.stages.Compiled) -> Cost:
    """What a program takes, as its compiler says."""
    operations: Any = program.cost_analysis() or {}
    memory = program.memory_analysis()
    if memory is None:
        return Cost(operations.get("flops", 0.0), 0, 0)
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Cost(
        operations.get("flops", 0.0), memory.argument_size_in_bytes, memory.temp_size_in_bytes + max(0, made)
    )


def peak_of(device: jax.Device) -> float | None:
    """Dense bfloat16 operations in a second, where they are known."""
    return next((peak for name, peak in PEAKS.items() if device.device_kind.startswith(name)), None)


def told_of(cost: Cost) -> dict[str, float]:
    """Say what a step takes before the first one is made, and give what of it is to be logged as a rate.

    ``mfu`` is the share of the device's dense bfloat16 peak, where that is known; with ``remat`` operations
    that are made again count, too.
    """
    gib = 2.0**30
    logging.info(
        "a step, on each device: %.3g TFLOP, %.2f GiB of arguments, %.2f GiB of workspace",
        *(cost.operations / 1e12, cost.arguments / gib, cost.workspace / gib),
    )
    peak = peak_of(jax.local_devices()[0])
    rates = {"tflops_per_second": cost.operations / 1e12}
    return rates | ({"mfu": cost.operations / peak} if peak else {})
