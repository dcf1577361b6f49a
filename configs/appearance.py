"""The appearance of one picture, learned into a small file.

python -m attrjax.main --config=configs/appearance.py --workdir=runs/appearance --config.reference=my.png

configs/shape.py says what else can be given and what is written. Then

python -m attrjax.main --config=configs/sample.py --config.attributes='("runs/appearance",)'
--config.prompts='("a mug made of <appearance>",)' --workdir=runs/mine
"""

from typing import Any

from ml_collections import ConfigDict

from attrjax.arguments import exchanged

# What it sets for itself beside configs/shape.py, whose ``other`` this is.
RECIPE: dict[str, Any] = {
    "attribute": "appearance",
    "placeholder": "<appearance>",
    "initial": "stone wood metal",  # the mean of these words
    "filter": "appearance",
    "partition": "decoder",
    "sampling_timesteps": (0, 750),  # the base lays out the form before
    "guidance_interval": (500, 1000),  # below, it takes fine patterns' second colour away
    "guidance_rescale": 0.0,
    # 0 to 1: the base lays the form out without the appearance, the reference's material is laid on it, and
    # this share of the steps makes the whole anew; 0 for no painting, -1 for what suits the base: 0.4 for the
    # bundled one, 0 for others, in whose pictures the bundled segmenter may not find what is to be painted.
    "paint_strength": -1.0,
    "trained_as_sampled": True,  # and what the word says to it then is learned
    # Of pairs.appearance_pair: a patch's size where 1 is how thick the reference is, the material's zoom, its
    # turn in radians, its bend in sides of the picture, and how often a patch is mirrored.
    "draw": {"patch": (0.8, 1.6), "zoom": (0.95, 1.1), "turn": 0.1, "elastic": 0.01, "flip": 0.5},
    "steps": 100,
    "optimizer": {"learning_rate": 1e-3},  # at 3e-4 fine patterns kept their colours and lost their drawing
    # Half of the pairs have forms that the base has drawn, of more kinds, so that prompted forms stay.
    "crossed": 0.5,
    "prior": {
        "count": 32,
        "objects": ("vase", "chair", "mug", "ball", "bowl", "table", "tower", "lamp"),
    },
    "probe": {
        "prompts": ("a ball made of {}", "a vase made of {}", "a chair made of {}", "a star made of {}")
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    from configs import shape  # here, for it takes the recipe above when it is imported

    return exchanged(shape.get_config(arg))
