"""What ``benchmark.speed`` counts of torch's network, and keeps of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.peers.measure import TUNED, Spec
from benchmark.speed import count_flops

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_operations_are_counted_whatever_is_computed_in(device, dtype):
    spec = Spec("flops", "small", 64, ("forward", *TUNED), 1, 2, 1, device, dtype)
    flops = count_flops(spec)
    # Forward is of two pictures; a step of one goes back for its inputs, too, and for what is tuned.
    one = flops["forward"] / 2
    assert one < flops["tune_low_rank"] < flops["tune_decoder"] < flops["tune_full"]
    assert flops["tune_encoder"] < flops["tune_full"] < flops["train"] <= 3 * one
    assert flops["sample"] == 2 * flops["forward"]


def speed(*arguments):
    command = [sys.executable, "-m", "benchmark.speed", "--family=small", "--size=64", "--peers=attrjax"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_what_was_compiled_before_is_only_timed(tmp_path):
    caches = tmp_path / "caches"
    filled = speed("--what=forward", "--rounds=0", f"--caches={caches}")
    assert filled.returncode == 0 and f"compiled into {caches}" in filled.stdout, filled.stderr
    kept = {path.name for path in caches.rglob("*-cache")}
    assert any("forward" in name or "apply" in name for name in kept)
    timed = speed("--what=forward", "--rounds=1", "--repeats=2", f"--caches={caches}")
    assert timed.returncode == 0 and "compiling:" not in timed.stderr, timed.stderr
    assert "| forward | attrjax |" in timed.stdout
    assert {path.name for path in caches.rglob("*-cache")} == kept
    refused = speed("--rounds=0")
    assert refused.returncode != 0 and "name --caches" in refused.stdout + refused.stderr
