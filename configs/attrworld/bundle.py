"""Puts the trained parts together into a base in diffusers layout.

python -m attrjax.main --config=configs/attrworld/bundle.py --workdir=runs/bundle

Reads runs/vae, runs/clip and runs/unet, and writes runs/bundle/base, float16.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg
from configs.attrworld import unet


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    trained = unet.get_config()
    config = ConfigDict()
    config.task = "bundle"
    config.vae = trained.vae
    config.unet = "runs/unet/unet"
    config.text_encoder = trained.text_encoder
    config.image_encoder = "runs/clip/image_encoder"
    config.tokenizer = trained.tokenizer
    config.scheduler = trained.scheduler
    return config
