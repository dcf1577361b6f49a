"""The whole way of a learned attribute at the size of a published base, on random weights.

    python -m benchmark.real_path --dir=runs/real-path

Writes a base of random weights, learns an attribute of the bundled reference by the real command line at full
resolution, kills it (SIGKILL) behind its first checkpoint, goes on with --resume, samples it, exports it, and
has torch diffusers make the same picture from the export. Prints time and peak memory of every part, and how
far the two pictures are apart. What it learns means nothing: it shows that everything fits and holds
together. Needs the extra "parity". Weights that --dir holds already are used again.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from attrjax.attrworld.bundled import BASE
from benchmark import families
from benchmark.parity import ROOT, call, write_index

SAMPLING = {"steps": 2, "guidance": 3.0}
PROMPT = "a red <shape>"


def write_base(family: str, directory: Path) -> None:
    """A base of random weights, with the bundled one's words."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [one for one in families.COMPONENTS[family] if not (directory / one / "config.json").exists()]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: call("torch_towers", "write", family, one, str(directory)), missing))
    shutil.copytree(BASE / "tokenizer", directory / "tokenizer", dirs_exist_ok=True)
    path = directory / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
    write_index(family, directory)
    index = json.loads((directory / "model_index.json").read_text())
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "requires_safety_checker": False}
    (directory / "model_index.json").write_text(json.dumps(index))


def attrjax(config: str, workdir: Path, *more: str, **changes: object) -> list[str]:
    """The command line of a config."""
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    command = [sys.executable, "-m", "attrjax.main", f"--config=configs/{config}.py", f"--workdir={workdir}"]
    return [*command, *flags, *more]


def run(command: list[str], log: Path, kill_at: Callable[[], bool] | None = None) -> dict[str, float]:
    """Seconds and peak GiB of a command; where it is to be killed, it is, as soon as that is due.

    Raises:
        RuntimeError: it failed, or ended before it was killed.
    """
    start, peak = time.monotonic(), 0.0
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        while process.poll() is None:
            peak = max(peak, _peak_of(process.pid))
            if kill_at is not None and kill_at():
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.2)
    if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise RuntimeError(
            f"{' '.join(command[2:])} ended with {process.returncode}: {log.read_text()[-2000:]}"
        )
    return {"seconds": time.monotonic() - start, "peak": peak}


def _peak_of(pid: int) -> float:
    """GiB that a process held at most so far; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), 0.0)


def psnr(a: Path, b: Path) -> float:
    """dB between two pictures of one size."""
    first, second = (np.asarray(Image.open(path).convert("RGB"), np.float64) for path in (a, b))
    return float(10 * np.log10(255**2 / max(np.mean((first - second) ** 2), 1e-12)))


def main() -> None:
    """Go the way, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--family", choices=("sd15", "sd21"), default="sd15")
    parser.add_argument("--size", type=int, default=0, help="pixels of a side; 0: what the family is for")
    parser.add_argument("--partition", default="encoder_attention")
    parser.add_argument("--rule", default="lora:4")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--remat", action="store_true", help="activations are made again, not kept")
    given = parser.parse_args()
    base, size = given.dir / "base", given.size or 8 * families.UNET[given.family]["sample_size"]
    write_base(given.family, base)
    learned, out = given.dir / "learned", given.dir / "export"
    for path in (learned, out, given.dir / "sample"):
        shutil.rmtree(path, ignore_errors=True)

    recipe = {
        "base": base, "size": size, "partition": given.partition, "rule": given.rule, "steps": given.steps,
        "batch_size": 1, "save_every": 1, "log_every": 1, "optimizer.warmup": 1, "crossed": 0.0,
        "prior.count": 1, "prior.rows": 1, "probe.every": given.steps, "probe.prompts": '("a red {}",)',
        "probe.seeds": "(0,)", "probe.steps": 2, "probe.batch_size": 1, "remat": given.remat,
    }  # fmt: skip
    learn = attrjax("shape", learned, "--resume", **recipe)
    parts = {
        "learned, killed behind its second checkpoint": run(
            learn, given.dir / "learn.log", lambda: (learned / "checkpoints" / "2").is_dir()
        ),
        "resumed to its end": run(learn, given.dir / "resume.log"),
    }
    # At all timesteps and with all of guidance's contrast, as an exported file acts.
    options = {
        "base": base, "attributes": f'("{learned}",)', "attribute_timesteps": "((0,1000),)",
        "guidance_rescale": 0.0, "seeds": "(0,)", "prompts": f'("{PROMPT}",)', "height": size, "width": size,
        **SAMPLING,
    }  # fmt: skip
    noise = np.random.default_rng(0).standard_normal((1, size // 8, size // 8, 4), np.float32)
    np.save(given.dir / "noise.npy", noise)
    options["latents"] = given.dir / "noise.npy"
    parts["sampled"] = run(attrjax("sample", given.dir / "sample", **options), given.dir / "sample.log")
    exporting = attrjax("export", out, base=base, attributes=f'("{learned}",)', format="lora")
    parts["exported"] = run(exporting, given.dir / "export.log")
    picture = given.dir / "torch.png"
    theirs = call(
        "torch_picture",
        *map(str, (base, out, PROMPT, given.dir / "noise.npy", *SAMPLING.values(), picture)),
    )
    (ours,) = [path for path in (given.dir / "sample").rglob("*.png") if path.name != "grid.png"]
    file = learned / "attribute.safetensors"
    print(f"{given.family}, {size} px, float32, {given.rule} of {given.partition}, {given.steps} steps\n")
    print("| | seconds | peak GiB |\n|---|---:|---:|")
    for name, found in parts.items():
        print(f"| {name} | {found['seconds']:.0f} | {found['peak']:.1f} |")
    print(f"| the same picture by torch | | {theirs['peak_bytes'] / 2**30:.1f} |")
    print(f"\nfile: {file.stat().st_size / 1e6:.1f} MB; pictures agree to {psnr(ours, picture):.0f} dB")


if __name__ == "__main__":
    main()
