"""How long a user waits: from the command to an attribute and its page, and to a picture with it.

    python -m benchmark.first_picture --dir=runs/first --dtype=bfloat16 [--list 8]

Writes a base of random weights at a published size, and runs the real command line on the bundled reference:
once with an empty cache of compiled programs, and once more with what the first time left there. What is
learned means nothing; what it takes does. Then pictures with it, again twice. With --list as many references
(the bundled one turned and mirrored) are learned by one command, side by side, twice as well, to be compared
with one at a time. Prints a table; a command's own parts are in its run.json. Weights that --dir holds
already are used again, and with --base a base that is there. Needs the extra "parity" to write weights.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from attrjax.attrworld.bundled import REFERENCES
from benchmark.real_path import attrjax, run, write_base

PROMPT = "a red <shape>"
PARTS = ("load", "before and after", "train and probe", "prior, of that", "make", "compile")


def parts_of(workdir: Path) -> dict[str, float]:
    """What a run says of its own time, in seconds."""
    record: dict[str, Any] = json.loads((workdir / "run.json").read_text())
    timings = record.get("results", record).get("timings", {})
    return {name: timings[name] for name in PARTS if name in timings}


def write_list(directory: Path, count: int) -> Path:
    """References that differ, and a list that names them."""
    directory.mkdir(parents=True, exist_ok=True)
    picture, lines = Image.open(REFERENCES / "shape.png").convert("RGB"), []
    for i in range(count):
        turned = picture.rotate(90 * (i % 4))
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 8 >= 4 else turned
        turned.save(directory / f"{i}.png")
        lines.append(json.dumps({"reference": str(directory / f"{i}.png"), "name": str(i), "seed": i}))
    path = directory / "references.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    """Run the commands, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--family", choices=("sd15", "sd21"), default="sd15")
    parser.add_argument("--partition", default="decoder_attention")
    parser.add_argument("--rule", default="lora:4")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--list", type=int, default=0, help="how many references are learned by one command")
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    base = given.base or given.dir / "base"
    if not given.base:
        write_base(given.family, base)
    os.environ.setdefault("JAX_PLATFORMS", "")  # whatever device there is
    recipe = {
        "base": base, "dtype": given.dtype, "partition": given.partition, "rule": given.rule,
        "steps": given.steps, "probe.every": max(1, given.steps // 4),
        "optimizer.warmup": min(10, given.steps // 4),
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}

    def twice(label: str, name: str, config: str, **changes: Any) -> None:
        """Run a command with an empty cache and with what it then holds."""
        cache = given.dir / f"{name}-cache"
        shutil.rmtree(cache, ignore_errors=True)
        for state in ("cold", "warm"):
            workdir = given.dir / f"{name}-{state}"
            shutil.rmtree(workdir, ignore_errors=True)
            one = run(attrjax(config, workdir, **changes, cache_dir=cache), Path(f"{workdir}.log"))
            found[f"{label}, {state}"] = {**one, "parts": parts_of(workdir)}
            print(f"{label}, {state}: {one['seconds']:.1f} s", flush=True)

    twice("an attribute", "one", "shape", **recipe)
    options = {
        "base": base, "dtype": given.dtype, "attributes": f'("{given.dir / "one-warm"}",)',
        "prompts": f'("{PROMPT}",)', "seeds": "(0,)", "guidance": 7.5,
    }  # fmt: skip
    twice("a picture of 30 steps", "picture", "sample", **options)
    if given.list:
        path = write_list(given.dir / "references", given.list)
        label = f"{given.list} attributes by one command"
        twice(label, "list", "shape", **recipe, references=path, stack=given.list)

    record = json.loads((given.dir / "one-warm" / "run.json").read_text())
    unet, vae = (json.loads((base / one / "config.json").read_text()) for one in ("unet", "vae"))
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    print(
        f"\n{given.base or given.family}, {side} px, {given.dtype}, {given.rule} of {given.partition}, "
        f"{given.steps} steps, {record['versions']['device']}, jax {record['versions']['jax']}; peak "
        f"{record['results']['peak_memory'] / 2**30:.1f} GiB\n"
    )
    print("| from the command to its end | s | of that |\n|---|---:|---|")
    for label, one in found.items():
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one["parts"].items())
        print(f"| {label} | {one['seconds']:.1f} | {parts} |")


if __name__ == "__main__":
    main()
