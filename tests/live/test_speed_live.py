"""What ``benchmark.speed`` counts of torch's network."""

import pytest

from benchmark.peers.measure import TUNED, Spec
from benchmark.speed import count_flops


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_operations_are_counted_whatever_is_computed_in(device, dtype):
    spec = Spec("flops", "small", 64, ("forward", *TUNED), 1, 2, 1, device, dtype)
    flops = count_flops(spec)
    # Forward is of two pictures; a step of one goes back for its inputs, too, and for what is tuned.
    one = flops["forward"] / 2
    assert one < flops["tune_low_rank"] < flops["tune_decoder"] < flops["tune_full"]
    assert flops["tune_encoder"] < flops["tune_full"] < flops["train"] <= 3 * one
    assert flops["sample"] == 2 * flops["forward"]
