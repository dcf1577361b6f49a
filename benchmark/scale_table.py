"""What ``scale_plan`` says of a compiled step: its arithmetic, and the table."""

import re
from typing import Any, NamedTuple

from attrjax.peaks import PEAKS


class Topology(NamedTuple):
    """Devices of one kind.

    Attributes:
        name: of the compiler's topology; "" where only virtual devices can stand for it.
        backend: that networks choose their algorithms for.
        devices: how many.
        memory: bytes of a device.
        peak: dense bfloat16 operations in a second of a device.
    """

    name: str
    backend: str
    devices: int
    memory: float
    peak: float


# Memory as the makers publish it (cloud.google.com/tpu/docs/v5e, v5p, v6e; NVIDIA's H100 SXM data sheet).
TOPOLOGIES = {
    "v5e-4": Topology("v5e:2x2", "tpu", 4, 16 * 2**30, PEAKS["TPU v5e"]),
    "v5e-16": Topology("v5e:4x4", "tpu", 16, 16 * 2**30, PEAKS["TPU v5e"]),
    "v5e-256": Topology("v5e:16x16", "tpu", 256, 16 * 2**30, PEAKS["TPU v5e"]),
    "v5p-128": Topology("v5p:4x4x4", "tpu", 64, 95 * 2**30, PEAKS["TPU v5"]),
    "v6e-256": Topology("v6e:16x16", "tpu", 256, 32 * 2**30, PEAKS["TPU v6"]),
    "H100x8": Topology("", "gpu", 8, 80e9, PEAKS["NVIDIA H100"]),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
_OP = re.compile(rf"^\s*(?:ROOT )?\S+ = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Plan(NamedTuple):
    """What the compiler says of a step.

    Attributes:
        held: bytes of a device by kind: what it holds between steps.
        workspace: bytes of a device that a step needs beside that: gradients, activations, temporary copies.
        collectives: (how many, bytes that they hand to a device) by kind, of a step.
        flops: operations of a step, of a device, as the compiler counts them.
        compiler: that said so.
    """

    held: dict[str, int]
    workspace: int
    collectives: dict[str, tuple[int, int]]
    flops: float
    compiler: str


def collectives_of(text: str) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind a compiled program's text has, and bytes of their results.

    Of one that is started and ended by two instructions the first counts; its result is the largest of the
    arrays that it names.
    """
    found: dict[str, tuple[int, int]] = {}
    for shapes, kind, started in _OP.findall(text):
        sizes = []
        for dtype, dims in _ARRAY.findall(shapes):
            size = _BYTES.get(dtype, 0)
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            sizes.append(size)
        count, total = found.get(kind, (0, 0))
        found[kind] = (count + 1, total + (max(sizes, default=0) if started else sum(sizes)))
    return found


def step_seconds(flops: float, peak: float, mfu: float) -> float:
    """Time of a step of ``flops`` operations on each device, at a share ``mfu`` of a device's peak."""
    return flops / (peak * mfu)


def references_per_hour(at_once: int, steps: int, seconds: float) -> float:
    """References learned in an hour, of ``steps`` steps each, ``at_once`` side by side."""
    return 3600 * at_once / (steps * seconds)


def as_markdown(plan: Plan, topology: Topology, given: Any) -> str:
    """The plan as a table."""
    seconds = step_seconds(plan.flops, topology.peak, given.mfu)
    total = sum(plan.held.values()) + plan.workspace
    what = f"{given.family}, {given.size} px, batch {given.batch}"
    if given.task == "concepts":
        what += f", {given.rule} of {given.partition}, {given.stack} references on a device"
    else:
        what += f", fsdp {given.fsdp}"
    lines = [f"| {given.topology}, {given.task}: {what} | |", "|---|---:|"]
    lines += [f"| {name}, on a device | {_gib(size)} |" for name, size in plan.held.items()]
    lines.append(f"| workspace of a step, on a device (compiler: {plan.compiler}) | {_gib(plan.workspace)} |")
    share = 100 * total / topology.memory
    lines.append(f"| all, of {_gib(topology.memory)} | {_gib(total)} ({share:.0f} %) |")
    for kind, (count, size) in plan.collectives.items():
        lines.append(f"| {kind}, of a step | {count}, {size / 1e6:.1f} MB |")
    if not plan.collectives:
        lines.append("| collectives, of a step | none |")
    lines.append(f"| operations of a step, on a device | {plan.flops / 1e12:.1f} T |")
    lines.append(f"| a step at {100 * given.mfu:.0f} % MFU | {1000 * seconds:.0f} ms |")
    if given.task == "concepts":
        at_once = topology.devices * given.stack
        rate = references_per_hour(at_once, given.steps, seconds)
        lines.append(f"| references in an hour, {given.steps} steps each | {rate:,.0f} |")
    else:
        pictures = given.batch * topology.devices / seconds
        lines.append(f"| pictures in a second | {pictures:,.0f} |")
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
