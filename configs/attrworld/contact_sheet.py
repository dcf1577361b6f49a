"""Pictures of all that the world is made of: every shape, every material, and a banner of both.

python -m attrjax.main --config=configs/attrworld/contact_sheet.py --workdir=runs/contact-sheet

Writes shapes.png, materials.png and world.png there; docs/images has a copy of them.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "contact_sheet"
    config.seed = 9  # of proportions, textures and combinations

    config.size = 128  # pixels
    config.samples = 2  # rays for a pixel, in each direction
    config.shape_materials = ("teal", "orange")  # what shapes are shown in: those of training, held-out ones
    config.shape_columns = 8
    config.material_shape = "teapot"  # what materials are shown on
    config.material_columns = 7
    config.banner = (2, 12)  # rows and columns of world.png

    config.cache_dir = "~/.cache/attrjax/jit"  # compiled programs are kept here; "" for nowhere
    return config
