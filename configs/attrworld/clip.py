"""The bundled base's text and image encoders: a small CLIP.

python -m attrjax.main --config=configs/attrworld/clip.py --workdir=runs/clip

Trains on captions, and then on captioned pictures that are rendered as it trains, and writes
runs/clip/text_encoder, image_encoder and tokenizer. It goes on with --resume. On one core of a Zen 4 CPU the
text takes 5 minutes, and the pictures 43 (1.6 s a step).
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "clip"
    config.seed = 0
    config.size = 64  # pixels of the pictures
    config.tokenizer = ""  # a directory; "" is the bundled one

    tower = {"hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 4, "projection_dim": 128}
    config.text = ConfigDict(tower | {"num_hidden_layers": 3, "hidden_act": "quick_gelu"})
    config.vision = ConfigDict(
        tower | {"num_hidden_layers": 4, "hidden_act": "quick_gelu", "image_size": 64, "patch_size": 8}
    )

    # The text tower learns to read captions alone.
    config.reading = ConfigDict(
        {
            "batch_size": 128,
            "steps": 500,
            "optimizer": ConfigDict({"learning_rate": 2e-3, "warmup": 50, "weight_decay": 0.05, "b2": 0.98}),
        }
    )
    # Then, locked, it is what the image tower learns to agree with. A batch is every one of so many shapes in
    # every one of so many materials.
    config.rows = 12
    config.columns = 8
    # Of finding shape and material in the image tower's embeddings, beside the contrast's weight of 1.
    config.family_weight = 0.5
    # Of telling outline and depth in the states of its patches.
    config.relief_weight = 1.0
    config.steps = 1600
    config.optimizer = ConfigDict({"learning_rate": 1e-3, "warmup": 50, "weight_decay": 0.05, "b2": 0.98})
    config.ema_decay = 0.98
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.sharding = ".* auto"  # what fsdp divides, an ordered list: REGEX auto; REGEX copy; REGEX DIMENSION

    config.log_every = 25
    config.save_every = 100
    config.max_seconds = 0  # stop and save after this time; 0 is no limit
    config.profile = (0, 0)  # the first and the last step of a trace for XProf; (0, 0) for none
    config.cache_dir = "~/.cache/attrjax/jit"
    return config
