"""Learned attributes as other software reads them.

python -m attrjax.main --config=configs/export.py --config.attributes='("runs/shape",)' --workdir=runs/export

    --config.format=diffusers            runs/export/base, a directory that torch diffusers loads
    --config.format=lora                 pytorch_lora_weights.safetensors and learned_embeds.safetensors
    --config.format=kohya                the same by the names that A1111, ComfyUI and kohya's scripts use
    --config.format=textual_inversion    learned_embeds.safetensors alone

It says what of an attribute's recipe other software cannot do, and with which settings to learn it for that.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "export"
    config.attributes = ()  # run directories of configs/shape.py and configs/appearance.py, or their files
    config.attribute_strengths = ()  # one for each; none for 1
    config.format = "diffusers"
    config.base = ""  # that they were learned on; "" is the bundled one
    config.variant = ""  # which of its weight files: fp16 for *.fp16.safetensors
    config.dtype = "float32"  # of a directory's weights, or float16
    config.force = False  # put them into another base
    return config
