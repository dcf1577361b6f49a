"""The judges: a segmenter, a judge of shape and a judge of appearance.

python -m attrjax.main --config=configs/attrworld/judges.py --workdir=runs/judges

Trains on pictures that are rendered as it trains, and writes runs/judges/judges. It goes on with --resume.
The appearance judge takes 11 minutes on one core of a Zen 4 CPU; on held-out families shapes are retrieved in
99.9 % and materials in 95.7 %.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "judges"
    config.seed = 0
    config.part = "all"  # or segmenter, shape or appearance alone
    config.segmenter_from = ""  # for a part alone: a directory with a segmenter
    # Leave every fourth family out, to choose settings by `judge_report --families=withheld`.
    config.withhold = False

    # Each step renders rows x columns pictures, and trains on `replay` times as many: those, and others of
    # the newest `window` steps.
    def part(rows: int, columns: int, replay: int, steps: int, learning_rate: float) -> ConfigDict:
        optimizer = {"learning_rate": learning_rate, "warmup": 40, "weight_decay": 0.02, "b2": 0.99}
        return ConfigDict(
            {
                "rows": rows,
                "columns": columns,
                "replay": replay,
                "window": 256,
                "unnamed": 0.4,  # share of rows whose shape or material is of no family
                "steps": steps,
                "optimizer": ConfigDict(optimizer),
            }
        )

    config.segmenter = part(32, 1, 2, 600, 3e-3)
    config.shape = part(16, 2, 4, 260, 2e-3)
    config.appearance = part(8, 4, 4, 760, 3e-3)
    # Of the effect of the attribute that a judge must not see. (8 for appearance told no less of the shape,
    # and fewer materials apart.)
    config.shape.leak_weight = 2.0
    config.appearance.leak_weight = 2.0
    config.appearance.cut = 0.7  # share of pictures with holes, so that thin parts tell nothing
    config.appearance.features = 64  # of its embedding as it is trained,
    config.appearance.kept = 12  # and the directions of it that are kept
    config.ema_decay = 0.99
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.sharding = ".* auto"  # what fsdp divides, an ordered list: REGEX auto; REGEX copy; REGEX DIMENSION

    config.log_every = 25
    config.save_every = 200
    config.max_seconds = 0  # stop and save after this time; 0 is no limit
    config.profile = (0, 0)  # the first and the last step of a trace for XProf; (0, 0) for none
    config.cache_dir = "~/.cache/attrjax/jit"
    return config
