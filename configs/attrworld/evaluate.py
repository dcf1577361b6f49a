"""How good a base of the world is, as the judges see it.

python -m attrjax.main --config=configs/attrworld/evaluate.py --workdir=runs/evaluation

Writes runs/evaluation/run.json with all numbers, and grid.png with some of the pictures. On two cores of a
Zen 4 CPU all of it takes about twelve minutes.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "evaluate"
    config.base = ""  # a base of the world; "" is the bundled one
    config.prompts = 2000  # that name a shape and a material
    config.captions = 500  # as in training, for the Fréchet distance
    config.seed = 1000  # of the first picture; the next have the next ones
    config.sampler = "auto"
    config.steps = 20
    config.guidance = 4.0
    config.batch_size = 50
    config.cache_dir = "~/.cache/attrjax/jit"
    return config
