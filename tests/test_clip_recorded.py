"""The CLIP towers against transformers, from arrays that ``record_towers`` wrote."""

from pathlib import Path

import numpy as np
import pytest

from tests import cases, towers

FOLDER = Path(__file__).parent / "recorded"
RECORDED = {"text": np.load(FOLDER / "clip_text.npz"), "vision": np.load(FOLDER / "clip_vision.npz")}


@pytest.mark.parametrize("name", cases.CLIP_TEXT)
def test_text_states_pooling_projection_and_gradients_are_those_of_transformers(name):
    compare("text", name, towers.text(name))


@pytest.mark.parametrize("name", cases.CLIP_VISION)
def test_vision_states_pooling_projection_and_gradients_are_those_of_transformers(name):
    compare("vision", name, towers.vision(name))


def compare(kind, name, ours):
    recorded = RECORDED[kind]
    assert {f"{name}/{key}" for key in ours} == {key for key in recorded if key.startswith(f"{name}/")}
    errors = {key: cases.relative_error(value, recorded[f"{name}/{key}"]) for key, value in ours.items()}
    assert max(errors.values()) < 2e-5, errors
