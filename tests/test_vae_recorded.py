"""The autoencoder against torch diffusers, from arrays that ``record_towers`` wrote."""

from pathlib import Path

import numpy as np
import pytest

from tests import cases, towers

RECORDED = np.load(Path(__file__).parent / "recorded" / "vae.npz")


@pytest.mark.parametrize("name", towers.VAE_CASES)
def test_moments_pictures_and_gradients_are_those_of_diffusers(name):
    ours = towers.vae(name)
    assert {f"{name}/{key}" for key in ours} == {key for key in RECORDED if key.startswith(f"{name}/")}
    errors = {key: cases.relative_error(value, RECORDED[f"{name}/{key}"]) for key, value in ours.items()}
    assert max(errors.values()) < 2e-5, errors
