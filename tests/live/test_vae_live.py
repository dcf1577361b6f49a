"""The autoencoder against the torch diffusers that is installed."""

import diffusers
import pytest
import torch

from tests import cases, full_size, record_towers, towers


@pytest.mark.parametrize("name", towers.VAE_CASES)
def test_moments_pictures_and_gradients_are_those_of_diffusers(name):
    ours, reference = towers.vae(name), record_towers.vae(name)
    assert ours.keys() == reference.keys()
    errors = {key: cases.relative_error(ours[key], reference[key]) for key in ours}
    assert max(errors.values()) < 2e-5, errors


def test_odd_sizes_are_rounded_down_as_diffusers_does():
    """Sides that are no multiple of the downsampling factor lose pixels at the bottom and right in both."""
    pictures = towers.normal(11, 1, 45, 27, 3)
    module, params = towers.module_and_params("vae", "two_blocks")
    ours = towers.apply(module, params, pictures, method="encode").mean
    with torch.no_grad():
        reference = (
            record_towers.vae_model("two_blocks").encode(record_towers.picture(pictures)).latent_dist.mean
        )
    assert cases.relative_error(ours, record_towers.array(reference)) < 2e-5


def test_full_size_has_the_keys_and_shapes_of_torch():
    blocks = len(full_size.VAE["block_out_channels"])
    types = {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
    }
    with torch.device("meta"):
        reference = diffusers.AutoencoderKL(**full_size.VAE, **types)
    assert full_size.shapes("vae") == {
        key: tuple(value.shape) for key, value in reference.state_dict().items()
    }
