"""The plan for a pod: its arithmetic, and real steps compiled for virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from attrjax.checkpoints.pipeline import build_network
from attrjax.models import attention
from benchmark.scale_steps import SMALL, concepts_step
from benchmark.scale_table import (
    TOPOLOGIES,
    Plan,
    as_markdown,
    collectives_of,
    references_per_hour,
    step_seconds,
)

ROOT = Path(__file__).parents[1]
PROGRAM = """
ENTRY main {
  %a = f32[8,16]{1,0} parameter(0)
  %r = f32[8,16]{1,0} all-reduce(f32[8,16]{1,0} %a), replica_groups={}
  %g = (bf16[4,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(bf16[4,4]{1,0} %b), dimensions={0}
  %d = bf16[16,4]{1,0} all-gather-done((bf16[4,4]{1,0}, bf16[16,4]{1,0}) %g)
  %t = (f32[2]{0}, f32[3]{0}) all-to-all(f32[2]{0} %c, f32[3]{0} %e)
  ROOT %p = pred[5]{0} collective-permute(pred[5]{0} %f), source_target_pairs={{0,1}}
}
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
    assert collectives_of(PROGRAM) == {
        "all-reduce": (1, 8 * 16 * 4),
        "all-gather": (1, 16 * 4 * 2),
        "all-to-all": (1, (2 + 3) * 4),
        "collective-permute": (1, 5),
    }
    assert collectives_of("%x = f32[2]{0} add(f32[2]{0} %all-reduce.1, f32[2]{0} %y)") == {}


def test_time_and_rate_follow_from_operations_peak_and_utilization():
    # 40 T operations on a device of 200 T a second, half of it used: 0.4 s.
    assert step_seconds(40e12, 200e12, 0.5) == pytest.approx(0.4)
    # 256 at once, 100 steps of 0.4 s: 40 s for 256 references.
    assert references_per_hour(256, 100, 0.4) == pytest.approx(256 * 90)


def test_the_table_adds_up():
    plan = Plan({"frozen": 6 * 2**30, "moments": 2**30}, 3 * 2**30, {"all-reduce": (2, 5_000_000)}, 1e12, "X")
    given = SimpleNamespace(
        **{"topology": "v5e-256", "family": "sd15", "size": 512, "batch": 4, "task": "concepts"},
        **{"rule": "lora:4", "partition": "full", "stack": 2, "steps": 100, "mfu": 0.5},
    )
    table = as_markdown(plan, TOPOLOGIES["v5e-256"], given)
    assert "sd15, 512 px, batch 4, lora:4 of full, 2 references" in table
    assert "| all, of 16.00 GiB | 10.00 GiB (62 %) |" in table
    assert "| all-reduce, of a step | 2, 5.0 MB |" in table
    seconds = 1e12 / (0.5 * 197e12)
    assert f"| references in an hour, 100 steps each | {3600 * 512 / (100 * seconds):,.0f} |" in table


def planned(tmp_path, *arguments):
    """What the command plans for virtual devices."""
    file = tmp_path / "plan.json"
    made = subprocess.run(
        [sys.executable, "-m", "benchmark.scale_plan", "--topology=v5e-4", "--virtual", "--family=small"]
        + ["--size=64", "--batch=2", f"--json={file}", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("JAX_")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return json.loads(file.read_text()), made.stdout


def test_concepts_are_learned_without_a_word_between_devices(tmp_path):
    plan, table = planned(tmp_path, "--task=concepts", "--stack=2", "--rule=lora:2")
    assert plan["collectives"] == {} and "| collectives, of a step | none |" in table
    # Adam keeps two numbers for each that is tuned, and the base is held once, in two bytes a number.
    assert plan["held"]["moments"] == pytest.approx(2 * plan["held"]["tuned parameters"], rel=0.01)
    _, shapes = build_network("unet", SMALL["unet"][1])
    assert plan["held"]["frozen UNet"] == 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_steps_of_stacks_can_be_traced_for_a_gpu(monkeypatch):
    """What JAX refuses of cuDNN's attention it refuses here, too: lengths of prompts, and stacks of them."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    def choose(q_shape, k_shape, dtype, *, implementation=None):
        fits = dtype == jnp.bfloat16 and q_shape[-1] % 8 == 0 and q_shape[-1] <= 256
        return attention.Choice("cudnn" if fits else "xla", "as on a GPU")

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(attention, "choose_attention", choose)
    options = {"family": "small", "size": 256, "batch": 2, "remat": False, "steps": 100, "fsdp": 1}
    given = SimpleNamespace(**options, partition="decoder_attention", rule="lora:4", stack=2)
    step = concepts_step(given, jax.devices()[:1])
    traced = str(step.function.trace(*step.arguments).jaxpr)
    assert "dot_product_attention_bwd" in traced


def test_a_divided_base_holds_a_part_and_gathers_the_rest(tmp_path):
    plan, _ = planned(tmp_path, "--task=base", "--fsdp=4")
    _, shapes = build_network("unet", SMALL["unet"][1])
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert whole / 4 <= plan["held"]["parameters"] < 0.3 * whole  # small leaves are copied
    assert plan["held"]["moving average"] == plan["held"]["parameters"]
    assert plan["held"]["moments"] == pytest.approx(2 * plan["held"]["parameters"], rel=0.01)
    assert plan["collectives"]["all-gather"][1] > 0
