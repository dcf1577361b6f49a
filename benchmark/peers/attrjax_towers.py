"""The attrjax side of ``benchmark.parity``: loads a component that torch has run, runs it and compares.

    python -m benchmark.peers.attrjax_towers FAMILY COMPONENT DIRECTORY

Reads DIRECTORY/{inputs,reference}.npz and prints a JSON line.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attrjax.checkpoints.pipeline import Component, load_pipeline


def outputs(component: str, loaded: Component, inputs: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """What is compared, by name, as ``torch_towers.outputs``."""

    def call(*args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        def forward(params, args, kwargs):
            return loaded.module.apply({"params": params}, *args, **kwargs, method=method)

        return jax.jit(forward)(loaded.params, args, kwargs)

    if component == "unet":
        added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs}
        y = call(inputs["sample"], inputs["timesteps"], inputs["context"], added_cond=added or None)
        return {"prediction": y}
    if component == "vae":
        moments = call(inputs["picture"], method="encode")
        decoded = call(inputs["latents"], method="decode")
        return {"encoder mean": moments.mean, "encoder logvar": moments.logvar, "decoder": decoded}
    if component == "image_encoder":
        y = call(inputs["pixels"])
        return {"penultimate": y.hidden_states[-2], "image_embeds": y.image_embeds}
    y = call(inputs["input_ids"])
    pooled = y.text_embeds if component == "text_encoder_2" else y.pooled
    return {"penultimate": y.hidden_states[-2], "last": y.last_hidden_state, "pooled": pooled}


def compare(ours: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Largest and root-mean-square difference, each over the reference's own, and the latter's deviation."""
    if ours.shape != reference.shape:
        raise ValueError(f"attrjax returns {ours.shape} where torch returns {reference.shape}")
    difference = ours.astype(np.float64) - reference
    return {
        "max_error": float(np.abs(difference).max() / np.abs(reference).max()),
        "rms_error": float(
            np.sqrt(np.square(difference).mean() / np.square(reference, dtype=np.float64).mean())
        ),
        "reference_std": float(reference.std()),
    }


def run(component: str, directory: Path) -> dict[str, Any]:
    """Load, run and compare a component."""
    start = time.perf_counter()
    loaded: Component = getattr(load_pipeline(directory, components=(component,)), component)
    jax.block_until_ready(loaded.params)
    done_loading = time.perf_counter()
    with np.load(directory / "inputs.npz") as inputs:
        found = {k: np.asarray(v) for k, v in outputs(component, loaded, dict(inputs)).items()}
    done = time.perf_counter()
    with np.load(directory / "reference.npz") as reference:
        errors = {name: compare(value, reference[name]) for name, value in found.items()}
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        "load_s": done_loading - start,
        "run_s": done - done_loading,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "errors": errors,
    }


if __name__ == "__main__":
    _, component_name, folder_name = sys.argv[1:]
    jax.config.update("jax_default_matmul_precision", "highest")
    print(json.dumps(run(component_name, Path(folder_name))))
