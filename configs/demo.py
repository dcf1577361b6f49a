"""What attrjax does, on one page: two attributes learned from two pictures, and the base's own pictures.

make demo

or: python -m attrjax.main --config=configs/demo.py --workdir=runs/demo

Writes runs/demo/index.html, which can be opened or sent as it is, grids and the single pictures. It learns
what configs/shape.py and configs/appearance.py learn, into runs/demo/shape and runs/demo/appearance.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg
from configs import appearance, shape


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "demo"
    config.base = ""  # a directory in diffusers layout, or a Hub id; "" is the bundled base

    # A row for each shape, a column for each material; attrjax/attrworld/words.py has all that there are.
    config.shapes = ("vase", "mug", "chair", "house", "mushroom", "star", "tree", "bell")
    config.materials = ("red", "wood", "marble", "gold", "zebra", "polka", "brick", "rainbow")
    config.seed = 0  # of the noise that every picture begins with

    # What is learned; an empty ConfigDict for nothing.
    config.learn = ConfigDict({"shape": shape.get_config(), "appearance": appearance.get_config()})

    config.sampler = "ddim"
    config.steps = 20
    config.guidance = 5.0
    config.batch_size = 8  # pictures at a time, as many as in probes, so that one program makes both
    config.cache_dir = "~/.cache/attrjax/jit"  # compiled programs are kept here; "" for nowhere
    return config
