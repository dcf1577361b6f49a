"""Implementations of attention on this device, at the shapes of Stable Diffusion's UNets: error and time.

    python -m benchmark.attention --dtype=bfloat16 [--rows=4] [--out=FILE.md]

Each is compared with softmax in float64 on the host, of the same rounded inputs, and its gradients with those
of the plain form in float32 at the highest precision; both by the largest difference over the reference's
largest magnitude. Times are medians of calls that are timed one by one. What cannot run here says why.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attrjax.models.attention import IMPLEMENTATIONS, choose_attention, dot_product_attention
from attrjax.runs import versions, write_whole

# Queries, keys, heads and a head's size: SD 1.5 at 512 px, its self-attention from the finest level down and
# cross-attention; SD 2.1 at 768 px.
SHAPES = {
    "SD 1.5, 64x64": (4096, 4096, 8, 40),
    "SD 1.5, 64x64, prompt": (4096, 77, 8, 40),
    "SD 1.5, 32x32": (1024, 1024, 8, 80),
    "SD 1.5, 16x16": (256, 256, 8, 160),
    "SD 1.5, 8x8, prompt": (64, 77, 8, 160),
    "SD 2.1, 96x96": (9216, 9216, 5, 64),
}


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of the first row in float64."""
    q, k, v = (np.asarray(a[0], np.float64).transpose(1, 0, 2) for a in (q, k, v))
    out = []
    for one, other, values in zip(q, k, v, strict=True):
        logits = one @ other.T / np.sqrt(one.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out.append(weights @ values / weights.sum(-1, keepdims=True))
    return np.stack(out, 1)


def far(got: Any, want: Any) -> float:
    """The largest difference over the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Median of calls, after two that warm up."""
    taken = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def gradient_of(implementation: str, target: jax.Array) -> Callable:
    """Gradients of a weighted sum of the output, by all three inputs."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(target * dot_product_attention(q, k, v, implementation=implementation))

    return jax.jit(jax.grad(loss, (0, 1, 2)))


def measure(shape: tuple[int, int, int, int], rows: int, dtype: str, calls: int) -> dict[str, list[Any]]:
    """For each implementation its errors and times, or why it cannot run here."""
    t, s, heads, size = shape
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = (t, s, s, t)
    q, k, v, target = (
        jax.random.normal(key, (rows, length, heads, size), dtype)
        for key, length in zip(keys, lengths, strict=True)
    )
    want = exact(*(np.asarray(a[:1], np.float32) for a in (q, k, v)))
    with jax.default_matmul_precision("highest"):
        wide = [a[:1].astype(jnp.float32) for a in (q, k, v, target)]
        wanted = gradient_of("xla", wide[3])(*wide[:3])
    found: dict[str, list[Any]] = {}
    for name in IMPLEMENTATIONS:
        try:
            attend = jax.jit(lambda q, k, v, name=name: dot_product_attention(q, k, v, implementation=name))
            error = far(attend(q, k, v)[0], want)
            backward = gradient_of(name, target)
            # The first row stands for all: nothing is summed over rows.
            errors = [far(one[:1], other) for one, other in zip(backward(q, k, v), wanted, strict=True)]
            times = [seconds(lambda f=f: f(q, k, v), calls) for f in (attend, backward)]
            found[name] = [error, max(errors), *times]
        except ValueError as obstacle:
            found[name] = [str(obstacle)]
        except jax.errors.JaxRuntimeError as failure:
            found[name] = [str(failure).splitlines()[0][:120]]
    return found


def main() -> None:
    """Measure all shapes and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        f"{given.rows} rows, {given.dtype}, {versions()['device']}, jax {versions()['jax']}; "
        "* is what attrjax chooses\n",
        "| shape | queries x keys, heads x size | implementation | error | gradients' error "
        "| forward, ms | with gradients, ms |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for label in given.shapes:
        t, s, heads, size = SHAPES[label]
        q, k = (given.rows, t, heads, size), (given.rows, s, heads, size)
        chosen = choose_attention(q, k, jnp.dtype(given.dtype)).name
        for name, values in measure(SHAPES[label], given.rows, given.dtype, given.calls).items():
            cells = [label, f"{t} x {s}, {heads} x {size}", name + "*" * (name == chosen)]
            if len(values) == 1:
                cells += [values[0], "", "", ""]
            else:
                cells += [f"{x:.1e}" for x in values[:2]] + [f"{1000 * x:.2f}" for x in values[2:]]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if given.out:
        write_whole(given.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
