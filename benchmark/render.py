"""How fast the world is rendered on this machine: ``python -m benchmark.render``.

Prints pictures per second for sizes and batches, the median and the best of several runs after compilation.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from attrjax.attrworld.render import render_batch
from attrjax.attrworld.scenes import draw_scenes


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--pictures", type=int, default=256, help="at 64 pixels; fewer where they are larger")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.platform} ({device.device_kind})\n")
    print("| pixels | pictures at once | compile, s | pictures/s, median | best |\n|---|---|---|---|---|")
    for size in arguments.sizes:
        count = max(1, arguments.pictures * 64**2 // size**2)
        start = time.perf_counter()
        scenes = draw_scenes(np.random.default_rng(0), count).scene
        drawing = time.perf_counter() - start
        seconds = []
        for _ in range(arguments.runs + 1):
            start = time.perf_counter()
            jax.block_until_ready(render_batch(scenes, size=size))
            seconds.append(time.perf_counter() - start)
        compiling, *seconds = seconds
        rates = [count / s for s in seconds]
        print(f"| {size} | {count} | {compiling:.1f} | {statistics.median(rates):.0f} | {max(rates):.0f} |")
    print(f"\nDrawing {count} scenes on the host took {drawing * 1e3:.0f} ms.")


if __name__ == "__main__":
    main()
