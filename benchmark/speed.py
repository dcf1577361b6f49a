"""Speed of the UNet against torch diffusers and diffusers 0.39's Flax.

    python -m benchmark.speed --flax_python=PATH [--family=small|sd15] [--size=256] [--out=FILE.json]

Each task of a peer runs in a process, and the Flax peer in an environment, of its own. What is measured, and
how to make that environment: README.md here. Needs the extra "parity".
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmark import families
from benchmark.peers.measure import TUNED, Spec

ROOT = Path(__file__).parents[1]
TASKS = ("forward", "sample", "decode", "train", *TUNED)
MODULES = {
    "attrjax": "attrjax_unet",
    "torch": "torch_unet",
    "torch_compile": "torch_unet",
    "diffusers_flax": "flax_unet",
}

_FAMILY = flags.DEFINE_enum("family", "small", ["small", "sd15"], "Size of the network.")
_SIZE = flags.DEFINE_integer("size", 256, "Side of the pictures in pixels.")
_WHAT = flags.DEFINE_list("what", ["forward", "train", "sample"], f"Any of {', '.join(TASKS)}.")
_PEERS = flags.DEFINE_list("peers", list(MODULES), "What is measured.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 10, "Timed calls in a round; sampling is timed once for every ten."
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds; every second one runs the peers in reverse order.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of sampling.")
_THREADS = flags.DEFINE_integer("threads", None, "CPU cores; by default 2, and all beside a GPU.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Of what is computed; by default bfloat16 on a GPU, else float32.",
)
_MEMORY = flags.DEFINE_float("memory_gb", 20, "On a CPU: a peer that needs more is ended, and does not fit.")
_FLAX = flags.DEFINE_string("flax_python", None, "Python of the environment of peers/flax_requirements.txt.")
_CACHES = flags.DEFINE_string(
    "caches",
    None,
    "Directory for what compilers keep, else a temporary one; with --rounds=0 it is only filled. Where it "
    "is there already, no round is made to compile, and first calls are those of the first timed round.",
)
_OUT = flags.DEFINE_string("out", None, "JSON file for all results.")


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def run_peer(python: str, module: str, spec: Spec, caches: Path, memory: float) -> tuple[list[dict], str]:
    """Run one peer; returns its results, and why it ended early, or "".

    Compilers keep their results in ``caches``, so that only the first round pays for them.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PLATFORMS": "cpu" if spec.device == "cpu" else "cuda",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [python, "-m", f"benchmark.peers.{module}", json.dumps(spec._asdict())]
    stopped = ""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        try:
            while process.poll() is None:
                if spec.device == "cpu" and resident_bytes(process.pid) > memory:
                    process.kill()
                    stopped = "does not fit"
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        lines = [line for line in output if line.startswith('{"task"')]
        if process.returncode and not stopped:
            sys.stderr.write(errors.read()[-3000:])
            stopped = "does not fit" if process.returncode == -9 else "failed"
    return [json.loads(line) for line in lines], stopped


def collect(
    specs: Mapping[str, Spec],
    pythons: Mapping[str, str],
    rounds: int,
    memory: float,
    caches: Path,
    compiled: bool = False,
) -> dict[str, Any]:
    """Let all peers compile, then time them, A B C, C B A, A B C, ...

    Noise that lasts longer than a peer's turn then falls on all of them. Compiling is a round of its own
    because a process that has just compiled is slower than one that reads the compiler's cache
    (torch.compile: by 40 %). Where all is compiled, in ``caches``, there is no such round.

    Returns:
        {"runs": {peer: {task: {variant: {"first_s", "seconds", "peak_bytes"}}}}, "peak": FLOP/s,
        "failures": {(peer, task): why}}, where "first_s" is of the compiling round.
    """
    runs: dict[str, dict[str, dict[str, dict]]] = {peer: {} for peer in specs}
    failures: dict[tuple[str, str], str] = {}
    peak = 0.0
    for r in range(1 if compiled else 0, rounds + 1):
        order = list(specs)[:: 1 if r % 2 else -1]
        # What failed once is not tried again.
        left = [(p, t) for p in order for t in specs[p].what if (p, t) not in failures]
        for peer, task in left:
            name = f"round {r} of {rounds}" if r else "compiling"
            print(f"{name}: {peer}, {task}", file=sys.stderr, flush=True)
            spec = specs[peer]._replace(what=(task,), repeats=specs[peer].repeats if r else 0)
            results, stopped = run_peer(pythons[peer], MODULES[peer], spec, caches / peer, memory)
            for result in results:
                if result.pop("task") == "peak":
                    peak = max(peak, result["flops_per_s"])
                elif "failed" not in result:
                    add(runs[peer].setdefault(task, {}), result)
            if not any(r == 0 or known["seconds"] for known in runs[peer].get(task, {}).values()):
                failures[peer, task] = stopped or "does not fit"
    return {"runs": runs, "peak": peak, "failures": failures}


def add(variants: dict[str, dict], result: dict[str, Any]) -> None:
    """Add one round's result to those of its task."""
    new = {"first_s": result["first_s"], "seconds": [], "peak_bytes": 0}
    known = variants.setdefault(result["variant"], new)
    known["seconds"] += result["seconds"]
    if result["seconds"]:
        known["peak_bytes"] = max(known["peak_bytes"], result["peak_bytes"])


def count_flops(spec: Spec) -> dict[str, int]:
    """Operations of each task, counted by torch on its meta device, the same for every peer and dtype."""
    counter = spec._replace(peer="flops", dtype="float32")  # whose inputs fit tuned parts, too
    with tempfile.TemporaryDirectory() as caches:
        results, stopped = run_peer(sys.executable, MODULES["torch"], counter, Path(caches), float("inf"))
    if stopped:
        raise RuntimeError("counting operations failed: torch and diffusers are needed (extra 'parity')")
    return {result["task"]: result["flops"] for result in results}


def fastest(variants: Mapping[str, dict]) -> tuple[str, dict] | None:
    """The variant of the smallest median, None where nothing was timed: a peer is measured at its best."""
    timed = [item for item in variants.items() if item[1]["seconds"]]
    return min(timed, key=lambda item: statistics.median(item[1]["seconds"])) if timed else None


def table(collected: Mapping[str, Any], specs: Mapping[str, Spec], flops: Mapping[str, int]) -> str:
    """Markdown: a row for each task and peer, at its fastest variant."""
    lines = [
        "| task | peer | its fastest variant | median s | min to max s | calls | first call s | peak GB "
        "| GFLOP/s | share of peak | time / attrjax's |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    runs, peak = collected["runs"], collected["peak"]
    tasks = [task for task in TASKS if any(task in spec.what for spec in specs.values())]
    for task in tasks:
        ours = medians(runs, task).get("attrjax")
        for peer in (peer for peer in specs if task in specs[peer].what):
            best = fastest(runs[peer].get(task, {}))
            if best is None:
                lines.append(f"| {task} | {peer} | {collected['failures'][peer, task]} |" + " |" * 8)
                continue
            variant, result = best
            seconds = result["seconds"]
            median = statistics.median(seconds)
            rate = flops[task] / median
            cells = [
                *(task, peer, variant, f"{median:.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}"),
                *(str(len(seconds)), f"{result['first_s']:.1f}", f"{result['peak_bytes'] / 1e9:.1f}"),
                *(f"{rate / 1e9:.0f}", f"{rate / peak:.0%}", f"{median / ours:.2f}" if ours else ""),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def medians(runs: Mapping[str, Mapping[str, Mapping[str, dict]]], task: str) -> dict[str, float]:
    """Each peer's median seconds at its fastest variant, where it has any."""
    found = {peer: fastest(tasks.get(task, {})) for peer, tasks in runs.items()}
    return {peer: statistics.median(best[1]["seconds"]) for peer, best in found.items() if best}


def verdict(collected: Mapping[str, Any], task: str) -> str:
    """One line: attrjax against the fastest of the others."""
    found = medians(collected["runs"], task)
    ours = found.pop("attrjax", None)
    if ours is None or not found:
        return ""
    peer = min(found, key=found.__getitem__)
    return f"{task}: attrjax is {found[peer] / ours:.2f}x as fast as {peer}, the fastest of the others"


def main(argv: list[str]) -> None:
    """Measure, print the table and one line for each task."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: all arguments are flags, see --help")
    for flag, known in ((_WHAT, TASKS), (_PEERS, tuple(MODULES))):
        for value in flag.value:
            if value not in known:
                raise app.UsageError(f"--{flag.name}: unknown {value!r}; choose from {', '.join(known)}")
    if not _ROUNDS.value and not _CACHES.value:
        raise app.UsageError("--rounds=0 compiles and times nothing: name --caches, where that is kept")
    if _SIZE.value % 64:
        raise app.UsageError(f"--size={_SIZE.value} must be a multiple of 64")
    if "diffusers_flax" in _PEERS.value and not (_FLAX.value and Path(_FLAX.value).is_file()):
        raise app.UsageError(
            "diffusers_flax needs --flax_python=PATH, the Python of an environment with "
            "benchmark/peers/flax_requirements.txt; or leave it out with --peers=attrjax,torch,torch_compile"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that a peer ends with this command
    pythons = dict.fromkeys(MODULES, sys.executable) | {"diffusers_flax": _FLAX.value}
    what = tuple(task for task in TASKS if task in _WHAT.value)
    shared = {"family": _FAMILY.value, "size": _SIZE.value, "what": what, "repeats": _REPEATS.value}
    threads = _THREADS.value or {"gpu": len(os.sched_getaffinity(0)), "cpu": 2}[_DEVICE.value]
    shared |= {"steps": _STEPS.value, "threads": threads, "device": _DEVICE.value}
    shared["dtype"] = _DTYPE.value or {"gpu": "bfloat16", "cpu": "float32"}[_DEVICE.value]
    specs = {peer: Spec(peer=peer, **shared) for peer in _PEERS.value}
    if "diffusers_flax" in specs:  # which has no adapters, and what trains is for its user to choose
        own = tuple(task for task in what if task not in TUNED)
        specs["diffusers_flax"] = specs["diffusers_flax"]._replace(what=own)

    with tempfile.TemporaryDirectory() as temporary:
        caches = Path(_CACHES.value or temporary)
        compiled = bool(_CACHES.value and _ROUNDS.value) and caches.exists()
        collected = collect(specs, pythons, _ROUNDS.value, _MEMORY.value * 1e9, caches, compiled)
    if not _ROUNDS.value:  # nothing was timed: there is no table
        failed = [f"{peer}, {task}: {why}" for (peer, task), why in collected["failures"].items()]
        print("\n".join(failed) or f"compiled into {caches}")
        return
    flops = count_flops(Spec(peer="flops", **shared))
    blocks = families.UNET[_FAMILY.value]["block_out_channels"]
    print(
        f"\n{_FAMILY.value} (widths {blocks}), {_SIZE.value} px, "
        f"{shared['dtype']} on {'a GPU' if _DEVICE.value == 'gpu' else f'{threads} CPU cores'}, "
        f"{_ROUNDS.value} rounds, {platform.machine()}\n"
        f"peak: {collected['peak'] / 1e9:.0f} GFLOP/s (the fastest large matrix product of torch and JAX)\n"
        f"operations: {', '.join(f'{task} {flops[task] / 1e9:.0f} GFLOP' for task in what)}\n\n"
        f"{table(collected, specs, flops)}\n"
    )
    for task in what:
        print(verdict(collected, task))
    if _OUT.value:
        failures = [{"peer": p, "task": t, "why": why} for (p, t), why in collected["failures"].items()]
        results = {**shared, "flops": flops, **collected, "failures": failures}
        Path(_OUT.value).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    app.run(main)
