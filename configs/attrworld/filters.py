"""The filters that ship with the bundled base: one attribute, recognized in any picture without tuning.

python -m attrjax.main --config=configs/attrworld/filters.py --workdir=runs/filters
python -m attrjax.main --config=configs/attrworld/filters.py:attribute=appearance --workdir=runs/filters2

Trains on pairs of pictures that share the attribute and nothing else, rendered as it trains, and writes
runs/filters/shape.safetensors, which belongs into the base's directory filters. It goes on with --resume.

    --config.base=DIR --config.dataset=PAIRS --config.size=512    filters for a base of your own, from pairs
                                                                  that are stored
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg
from configs import appearance, shape


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    asked = parse_arg(arg, attribute="shape")
    if asked.attribute not in ("shape", "appearance"):
        raise ValueError(f"attribute={asked.attribute!r} must be shape or appearance")
    used = (shape if asked.attribute == "shape" else appearance).get_config()
    config = ConfigDict()
    config.task = "filters"
    config.seed = 0
    # As tuning has them, which begins with what is learned here.
    for name in ("attribute", "base", "variant", "placeholder", "initial", "filter", "num_tokens", "fusion"):
        config[name] = used[name]

    # A directory of pairs that TFDS has prepared, in place of rendered ones: docs/attributes.md says what an
    # example has. Give size and num_tokens that suit the base.
    config.dataset = ""
    config.split = "train"
    config.size = 64  # pixels of the pictures
    config.batch_size = 16
    config.timesteps = (0, 1000)
    config.snr_gamma = 5.0
    # Of the distance between captions with the placeholder and with words, beside the error's weight of 1.
    config.words_weight = 1.0
    config.steps = 1500
    config.optimizer = ConfigDict({"learning_rate": 1e-3, "warmup": 50, "weight_decay": 0.01, "b2": 0.98})
    config.ema_decay = 0.98
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.sharding = ".* auto"  # what fsdp divides, an ordered list: REGEX auto; REGEX copy; REGEX DIMENSION

    config.log_every = 25
    config.save_every = 250
    config.max_seconds = 0  # stop and save after this time; 0 is no limit
    config.profile = (0, 0)  # the first and the last step of a trace for XProf; (0, 0) for none
    config.cache_dir = "~/.cache/attrjax/jit"
    return config
