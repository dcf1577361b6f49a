"""The appearance of one picture, learned into a small file.

python -m attrjax.main --config=configs/appearance.py --workdir=runs/appearance --config.reference=my.png

configs/shape.py says what else can be given and what is written. Then

python -m attrjax.main --config=configs/sample.py --config.attributes='("runs/appearance",)'
--config.prompts='("a mug made of <appearance>",)' --workdir=runs/mine
"""

from typing import Any

from ml_collections import ConfigDict

from attrjax.arguments import exchanged

# All in which it differs from configs/shape.py, whose ``other`` this is.
RECIPE: dict[str, Any] = {
    "attribute": "appearance",
    "placeholder": "<appearance>",
    "initial": "stone wood metal",  # the mean of these words
    "filter": "appearance",
    "partition": "decoder_attention",
    "sampling_timesteps": (0, 700),  # the base lays out the form before
    "steps": 75,
    "optimizer": {"learning_rate": 2e-4},
    "probe": {
        "prompts": ("a ball made of {}", "a vase made of {}", "a chair made of {}", "a star made of {}")
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    from configs import shape  # here, for it takes the recipe above when it is imported

    return exchanged(shape.get_config(arg))
