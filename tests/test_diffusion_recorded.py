"""Every sampler's full trajectory against recorded ones of torch diffusers (`record_diffusion.py`)."""

from pathlib import Path

import numpy as np
import pytest

from tests.diffusion_cases import cases
from tests.diffusion_runs import our_trajectory, worst_error

RECORDED = np.load(Path(__file__).parent / "recorded" / "diffusion.npz")
GIVEN = {name: RECORDED[f"input-{name}"] for name in ("latents", "clean", "noise")}


@pytest.mark.parametrize("name", cases())
def test_trajectory(name):
    assert worst_error(our_trajectory(cases()[name], GIVEN), RECORDED[name]) < 1e-4


def test_every_recorded_run_is_compared():
    assert set(RECORDED.files) == set(cases()) | {f"input-{name}" for name in GIVEN}
