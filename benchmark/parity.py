"""Parity with torch diffusers and transformers at full size, component by component.

    python -m benchmark.parity --family=sd15 [--parts=unet,vae,text,vision] [--size=512] [--out=FILE.json]

Writes random weights of published size in diffusers layout, runs the same input through both libraries in
float32, each in a process of its own, and prints errors, time and peak memory. Needs the extra "parity".
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmark import families

ROOT = Path(__file__).parents[1]
PARTS = {
    "unet": ["unet"],
    "vae": ["vae"],
    "text": ["text_encoder", "text_encoder_2"],
    "vision": ["image_encoder"],
}
# A pipeline's directory names its classes and has a schedule, also where neither plays a part.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}

_FAMILY = flags.DEFINE_enum("family", "sd15", sorted(families.COMPONENTS), "Model family.")
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What is compared: any of unet, vae, text, vision.")
_SIZE = flags.DEFINE_integer(
    "size", 0, "Side of the pictures in pixels; 0 for the one the family is made for."
)
_DIR = flags.DEFINE_string("dir", None, "Where weights are written; a temporary directory where absent.")
_KEEP = flags.DEFINE_bool("keep", False, "Keep the weights (with --dir), which is a whole directory to load.")
_OUT = flags.DEFINE_string("out", None, "JSON file for the results.")


def make_inputs(family: str, component: str, size: int) -> dict[str, np.ndarray]:
    """Inputs of one component, pictures NHWC, from a fixed seed."""
    config = families.COMPONENTS[family][component][1]
    random = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    if component == "unet":
        inputs = {
            "sample": normal(1, size // 8, size // 8, config["in_channels"]),
            "timesteps": np.array([501.0], np.float32),
            "context": normal(1, 77, config["cross_attention_dim"]),
        }
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            inputs["text_embeds"] = normal(1, pooled)
            inputs["time_ids"] = np.array([[size, size, 0, 0, size, size]], np.float32)
        return inputs
    if component == "vae":
        return {
            "picture": random.uniform(-1, 1, (1, size, size, 3)).astype(np.float32),
            "latents": normal(1, size // 8, size // 8, config["latent_channels"]),
        }
    if component == "image_encoder":
        return {"pixels": normal(1, config["image_size"], config["image_size"], config["num_channels"])}
    ids = random.integers(0, 49406, (2, 77))
    ids[:, 0], ids[:, 76], ids[1, 20:] = 49406, 49407, 49407
    return {"input_ids": ids}


def call(module: str, *args: str) -> dict[str, Any]:
    """Run one side in a process of its own, so that its peak memory is its own; returns its JSON line."""
    command = [sys.executable, "-m", f"benchmark.peers.{module}", *args]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        end = (
            process.stderr.strip()[-2000:] or f"it was ended by signal {-process.returncode}: out of memory?"
        )
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{end}")
    lines = process.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def write_index(family: str, directory: Path) -> None:
    """model_index.json and the scheduler, with which the directory is one that load_pipeline reads."""
    xl = family == "sdxl"
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"}
    for component, (name, _) in families.COMPONENTS[family].items():
        index[component] = ["transformers" if name.startswith("CLIP") else "diffusers", name]
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (directory / "scheduler").mkdir(parents=True, exist_ok=True)
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (directory / "model_index.json").write_text(json.dumps(index))


def check(family: str, component: str, size: int, directory: Path) -> dict[str, Any]:
    """Write, run and compare one component; torch and attrjax run one after the other."""
    call("torch_towers", "write", family, component, str(directory))
    np.savez(directory / "inputs.npz", **make_inputs(family, component, size))
    torch = call("torch_towers", "run", family, component, str(directory))
    attrjax = call("attrjax_towers", family, component, str(directory))
    published = families.PARAMETERS.get((family, component), torch["parameters"])
    if not torch["parameters"] == attrjax["parameters"] == published:
        raise ValueError(
            f"{component} has {attrjax['parameters']} parameters in attrjax, {torch['parameters']} in torch, "
            f"and {published} as published"
        )
    return {"component": component, "size": size, "torch": torch, "attrjax": attrjax}


def table(results: Iterable[dict[str, Any]]) -> str:
    """Markdown: a row for each output."""
    lines = [
        "| output | parameters | max error | RMS error | std of output | peak GB torch / attrjax "
        "| load s torch / attrjax | run s torch / attrjax, with its compilation |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        torch, ours = r["torch"], r["attrjax"]
        memory = f"{torch['peak_bytes'] / 1e9:.2f} / {ours['peak_bytes'] / 1e9:.2f}"
        load, run = (f"{torch[k]:.1f} / {ours[k]:.1f}" for k in ("load_s", "run_s"))
        cells = [f"{ours['parameters']:,}", memory, load, run]
        for name, e in ours["errors"].items():
            errors = f"{e['max_error']:.1e} | {e['rms_error']:.1e} | {e['reference_std']:.2f}"
            lines.append(f"| {r['component']}: {name} | {cells[0]} | {errors} | {' | '.join(cells[1:])} |")
            cells = [""] * 4
    return "\n".join(lines)


def remove_weights(directory: Path) -> None:
    """Delete what ``check`` wrote for one component, so that the disk holds one at a time."""
    for pattern in ("*/*.safetensors", "*/*.safetensors.index.json", "*.npz"):
        for file in directory.glob(pattern):
            file.unlink()


def main(argv: list[str]) -> None:
    """Check the parts asked for, print the table as it grows."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: all arguments are flags, see --help")
    unknown = set(_PARTS.value) - set(PARTS)
    if unknown:
        raise app.UsageError(f"unknown part {sorted(unknown)[0]!r}: choose from {', '.join(PARTS)}")
    family = _FAMILY.value
    size = _SIZE.value or 8 * families.UNET[family]["sample_size"]
    if size % 64:
        raise app.UsageError(f"--size={size} must be a multiple of 64")
    wanted = [c for part in _PARTS.value for c in PARTS[part] if c in families.COMPONENTS[family]]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(_DIR.value or temporary)
        if _DIR.value and directory.exists() and any(directory.iterdir()):
            raise app.UsageError(f"--dir={directory} is not empty: name a new one")
        directory.mkdir(parents=True, exist_ok=True)
        write_index(family, directory)
        results = []
        for component in wanted:
            print(f"{family} {component}: writing, torch, attrjax", file=sys.stderr, flush=True)
            results.append(check(family, component, size, directory))
            if not _KEEP.value:
                remove_weights(directory)
    print(f"\n{family}, {size} px, float32, {len(os.sched_getaffinity(0))} CPU cores\n\n{table(results)}")
    if _OUT.value:
        Path(_OUT.value).write_text(
            json.dumps({"family": family, "size": size, "results": results}, indent=1)
        )


if __name__ == "__main__":
    app.run(main)
