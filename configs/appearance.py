"""The appearance of one picture, learned into a small file.

python -m attrjax.main --config=configs/appearance.py --workdir=runs/appearance --config.reference=my.png

configs/shape.py says what else can be given and what is written. Then

python -m attrjax.main --config=configs/sample.py --config.attributes='("runs/appearance",)'
--config.prompts='("a mug made of <appearance>",)' --workdir=runs/mine
"""

from ml_collections import ConfigDict

from configs import shape


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    config = shape.get_config(arg)
    config.attribute = "appearance"
    config.placeholder = "<appearance>"
    config.initial = "stone wood metal"  # the mean of these words
    config.filter = "appearance"
    config.partition = "decoder_attention"
    config.sampling_timesteps = (0, 700)  # the base lays out the form before
    config.steps = 75
    config.optimizer.learning_rate = 2e-4
    config.probe.prompts = (
        "a ball made of {}",
        "a vase made of {}",
        "a chair made of {}",
        "a star made of {}",
    )
    return config
