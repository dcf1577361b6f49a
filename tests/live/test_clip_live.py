"""The CLIP towers and the preprocessing against the transformers that is installed."""

import numpy as np
import pytest
import torch
import transformers

from attrjax.models.clip_vision import PIXEL_STD, preprocess
from tests import cases, full_size, record_towers, towers


@pytest.mark.parametrize("name", cases.CLIP_TEXT)
def test_text_states_pooling_projection_and_gradients_are_those_of_transformers(name):
    compare(towers.text(name), record_towers.text(name))


@pytest.mark.parametrize("name", cases.CLIP_VISION)
def test_vision_states_pooling_projection_and_gradients_are_those_of_transformers(name):
    compare(towers.vision(name), record_towers.vision(name))


@pytest.mark.parametrize("name", full_size.CLIP_TEXT)
def test_full_size_text_tower_has_the_keys_and_shapes_of_torch(name):
    config = full_size.CLIP_TEXT[name]
    projected = "projection_dim" in config
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    with torch.device("meta"):
        model = kind(transformers.CLIPTextConfig(**config))
    prefix = "" if projected or hasattr(model, "text_model") else "text_model."
    reference = {prefix + key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert full_size.shapes("text", name) == reference


@pytest.mark.parametrize("name", full_size.CLIP_VISION)
def test_full_size_vision_tower_has_the_keys_and_shapes_of_torch(name):
    with torch.device("meta"):
        model = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**full_size.CLIP_VISION[name])
        )
    reference = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert full_size.shapes("vision", name) == reference


@pytest.mark.parametrize("shape", [(96, 150), (301, 224), (64, 64), (40, 33)])
def test_preprocess_is_transformers_image_processor_within_rounding(shape):
    """It rounds to 8 bits after each direction: on noise, the worst case, less than two levels of 255."""
    random = np.random.RandomState(12)
    picture = random.randint(0, 256, (*shape, 3)).astype(np.uint8)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    reference = np.asarray(processor(picture, return_tensors="np")["pixel_values"]).transpose(0, 2, 3, 1)
    levels = (
        np.abs(np.asarray(preprocess(picture[None] / np.float32(255), 64)) - reference)
        * np.array(PIXEL_STD)
        * 255
    )
    assert levels.max() < 2, levels.max()
    assert levels.mean() < 0.5


def compare(ours, reference):
    assert ours.keys() == reference.keys()
    errors = {key: cases.relative_error(ours[key], reference[key]) for key in ours}
    assert max(errors.values()) < 2e-5, errors
