"""How many references are learned in an hour, side by side and one at a time.

python -m benchmark.concepts --out=runs/concepts --counts 1 2 4 8 16 --rules lora:4 train

Times train steps of the recipe in configs/shape.py (or --attribute=appearance) with their batches, made and
placed beside them as training does it, and without the pictures by which steps are chosen: these are made for
one reference after the other either way. "alone" is the step of a run of its own, one after the other; the
others are stacks of so many references. A round times a few steps of each, and every second round goes
backwards, so that a slow minute of the machine falls on all; medians of rounds, and the ratio to "alone" is
the median of the rounds' own ratios. Compilation is a round of its own; what does not fit into the device's
memory says so. Writes results.md and results.json to --out.

At a published size, on random weights (benchmark.real_path and benchmark.first_picture write some):

python -m benchmark.concepts --out=runs/concepts --base=DIR --dtype=bfloat16 --partition=decoder_attention
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from attrjax.attributes import stack
from attrjax.attributes.base import Base, load_base
from attrjax.attributes.batches import batches, make_tools, prior, source_of, stacked_batches
from attrjax.attributes.learner import begun_of, first_params, frozen_of, loss_of, make_learner
from attrjax.fit import STEPS
from attrjax.parallel.mesh import local_mesh, make_mesh, place_batch, place_state
from attrjax.prefetch import in_background
from attrjax.runs import use_compile_cache, versions, write_whole
from attrjax.training import init_state, make_optimizer, make_step
from configs import appearance, shape

CONFIGS = {"shape": shape, "appearance": appearance}
ENOUGH = range(10**6)  # steps, more than are timed
AHEAD = 2  # batches that are made before they are used, as in training


def timed_steps(config: ConfigDict, base: Base, counts: list[int]) -> dict[str, Callable[[], Any]]:
    """Contestants, each begun when it is called: ``alone``, and stacks of each count.

    Each gives a function that makes some steps and says how many seconds one took.
    """
    root, mesh = jax.random.key(0), make_mesh(concept=-1, data=1)
    tools = make_tools(config, base.pipeline, local_mesh(mesh))
    learner = make_learner(config, base)
    own_pictures = prior(config, base, tools, root)
    loss_fn, frozen, begun = loss_of(config, learner), frozen_of(config, learner), begun_of(learner)
    roots = [jax.random.fold_in(root, 100 + i) for i in range(max(counts))]

    def runner(
        state: Any, step_fn: Callable, frozen: Any, make: Callable, key: Any, mesh: Any
    ) -> Callable[[int], float]:
        ready = in_background(lambda i: place_batch(mesh, make(i)), ENOUGH, AHEAD)
        kept = [state]

        def run(steps: int) -> float:
            start = time.perf_counter()
            for batch in itertools.islice(ready, steps):
                kept[0], metrics = step_fn(kept[0], batch, key, frozen)
            jax.block_until_ready((kept[0], metrics))
            return (time.perf_counter() - start) / steps

        return run

    def alone() -> Callable[[int], float]:
        one = make_mesh(devices=jax.devices()[:1])
        optimizer = make_optimizer(steps=config.steps, **config.optimizer)
        state = init_state(first_params(learner), optimizer, one, ema=config.ema_decay > 0)
        step_fn = make_step(loss_fn, optimizer, one, ema_decay=config.ema_decay)
        placed = place_state(one, frozen | {"begun": begun})
        make = batches(config, learner, roots[0], tools, own_pictures)
        return runner(state, step_fn, placed, make, root, one)

    stacked_step = stack.make_stacked_step(loss_fn, config.optimizer, mesh, ema_decay=config.ema_decay)
    constants = stack.own_of(begun, jax.random.fold_in(root, STEPS), config.steps)
    shared = place_state(mesh, frozen)

    def stack_of(count: int) -> Callable[[int], float]:
        params = [first_params(learner)] * count
        state = stack.first_stack(params, config.optimizer, mesh, ema=config.ema_decay > 0)
        sources = [source_of(config, learner, root, own_pictures) for root in roots[:count]]
        make = stacked_batches(sources, [constants] * count, tools, local_mesh(mesh))
        return runner(state, stacked_step, shared, make, None, mesh)

    return {"alone": alone} | {str(count): functools.partial(stack_of, count) for count in counts}


def measure(config: ConfigDict, base: Base, counts: list[int], steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step by round, and of the first one, of everything that is compared; and what failed."""
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    runs: dict[str, Callable[[int], float]] = {}
    for name, begin in timed_steps(config, base, counts).items():
        try:
            run = begin()
            first[name] = run(1)
            runs[name] = run
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            failed[name] = "does not fit"
        print(f"compiled: {name}, {first.get(name, failed.get(name))}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            seconds[name].append(runs[name](steps))
    return {"first": first, "seconds": seconds, "failed": failed}


def table(found: Mapping[str, Any], steps: int) -> str:
    """The results of one rule in markdown."""
    lines = [
        "| learned at once | step, s | references per hour | against alone | first step, s |",
        "|---|---|---|---|---|",
    ]
    alone = found["seconds"]["alone"]
    for name, seconds in found["seconds"].items():
        count = 1 if name == "alone" else int(name)
        middle = statistics.median(seconds)
        ratio = statistics.median(count * a / s for a, s in zip(alone, seconds, strict=True))
        rate = 3600 * count / (middle * steps)
        lines.append(f"| {name} | {middle:.4f} | {rate:.1f} | {ratio:.2f}x | {found['first'][name]:.1f} |")
    lines += [f"| {name} | {why} | | | |" for name, why in found["failed"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attribute", choices=list(CONFIGS), default="shape")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rules", nargs="+", default=["lora:4"], help="train, lora:RANK, offset:RANK")
    parser.add_argument("--partition", default="", help="the recipe's where not given")
    parser.add_argument("--base", default="", help="the bundled one where not given")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--prior_rows", type=int, default=4, help="0 for none, and no pictures are made for it"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=5, help="of each in a round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    devices = jax.device_count()
    if any(count < 1 or count % devices for count in given.counts):
        parser.error(f"--counts {given.counts}: each must be a multiple of the {devices} devices")
    logging.set_verbosity(logging.WARNING)

    config = CONFIGS[given.attribute].get_config()
    config.update({"base": given.base, "batch_size": given.batch_size, "dtype": given.dtype})
    config.prior.rows = given.prior_rows
    config.partition = given.partition or config.partition
    use_compile_cache(config.cache_dir)
    base = load_base(config)
    facts = (
        f"{given.attribute}, partition {config.partition}, {given.batch_size} pairs and {given.prior_rows} "
        f"rows of the base's own for each reference, {config.steps} steps, {given.dtype}, on "
        f"{versions()['device']}, "
        f"jax {versions()['jax']}"
    )
    text, results = f"# References per hour\n\n{facts}. Train steps alone, without probes.\n", {}
    for rule in given.rules:
        config.rule = rule
        results[rule] = measure(config, base, given.counts, given.steps, given.rounds)
        text += f"\n## {rule}\n\n{table(results[rule], config.steps)}\n"
    write_whole(
        given.out / "results.json", (json.dumps({"facts": facts, **results}, indent=2) + "\n").encode()
    )
    write_whole(given.out / "results.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
