"""The bundled base's autoencoder.

python -m attrjax.main --config=configs/attrworld/vae.py --workdir=runs/vae

Trains on pictures that are rendered as it trains, and writes runs/vae/vae. It goes on with --resume. On one
core of a Zen 4 CPU it takes 20 minutes and reconstructs fresh renders at 28 dB.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "vae"
    config.seed = 0
    config.size = 64  # pixels

    config.network = ConfigDict(
        {
            "act_fn": "silu",
            "block_out_channels": (16, 32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "in_channels": 3,
            "latent_channels": 12,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "out_channels": 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
        }
    )
    config.init_from = ""  # a trained autoencoder to begin with
    config.decoder_only = False  # leave its encoder, and so its latents, as they are
    config.l1_weight = 0.1
    config.kl_weight = 1e-4

    config.batch_size = 3
    config.steps = 5000
    config.optimizer = ConfigDict({"learning_rate": 2e-3, "warmup": 100, "weight_decay": 0.0, "b2": 0.99})
    config.ema_decay = 0.998
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.sharding = ".* auto"  # what fsdp divides, an ordered list: REGEX auto; REGEX copy; REGEX DIMENSION

    config.log_every = 100
    config.save_every = 1000
    config.max_seconds = 0  # stop and save after this time; 0 is no limit
    config.profile = (0, 0)  # the first and the last step of a trace for XProf; (0, 0) for none
    config.cache_dir = "~/.cache/attrjax/jit"
    return config
