"""The UNet of every family against torch diffusers, live: predictions and gradients."""

import numpy as np
import pytest
import torch

from attrjax.models.unet import cross_attention_names
from tests import cases, unet_reference, unets


@pytest.mark.parametrize("family", cases.UNET)
def test_prediction_and_gradients(family):
    reference, ours = unet_reference.answers(family), unets.answers(family)
    assert cases.relative_error(ours["out"], reference["out"]) < 2e-5
    gradients = {k: v for k, v in reference.items() if k != "out"}
    assert len(gradients) > 40
    worst = max((cases.relative_error(ours[k], v), k) for k, v in gradients.items())
    assert worst[0] < 1e-4, worst


@pytest.mark.parametrize("size", [(18, 13), (9, 20)])
def test_sizes_that_no_level_divides(size):
    ours = unets.predict("sd15", unets.small_unet("sd15"), unets.params_of("sd15"), *size)
    with torch.no_grad():
        reference = unet_reference.torch_call(
            unet_reference.torch_unet("sd15"), cases.unet_inputs("sd15", *size)
        )
    assert cases.relative_error(ours, reference.numpy()) < 2e-5


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_one_context_for_each_layer_in_diffusers_order(family):
    unet = unets.small_unet(family)
    names = cross_attention_names(unet)
    torch_names = [n for n in unet_reference.torch_unet(family).attn_processors if "attn2" in n]
    assert [cases.torch_name(n) + ".processor" for n in names] == torch_names
    contexts = unet_reference.layer_contexts(family, len(names))
    ours = unets.predict(family, unet, unets.params_of(family), context=contexts)
    assert cases.relative_error(ours, unet_reference.layer_answers(family, contexts)) < 2e-5


def test_parameter_names_and_shapes_are_diffusers():
    for family in cases.UNET:
        reference = {k: tuple(v.shape) for k, v in unet_reference.torch_unet(family).state_dict().items()}
        assert {k: v.shape for k, v in cases.to_torch(unets.params_of(family)).items()} == reference
        assert all(v.dtype == np.float32 for v in cases.to_torch(unets.params_of(family)).values())
