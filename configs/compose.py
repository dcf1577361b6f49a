"""The shape of one picture with the appearance of another.

python -m attrjax.main --config=configs/compose.py --workdir=runs/both

It samples, as configs/sample.py does, with what configs/shape.py left in runs/shape and
configs/appearance.py in runs/appearance:

    --config.attributes='("runs/shape","runs/appearance")'
    --config.attribute_strengths='(1.0, 0.7)'
    --config.init_image=my.png    begins from a picture of yours
"""

from ml_collections import ConfigDict

from configs import sample


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    config = sample.get_config(arg)
    config.attributes = ("runs/shape", "runs/appearance")
    config.prompts = ("a <shape> made of <appearance>", "a red <shape>", "a vase made of <appearance>")
    return config
