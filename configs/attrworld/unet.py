"""The bundled base's denoiser: a UNet of Stable Diffusion 1.x's structure, scaled down.

python -m attrjax.main --config=configs/attrworld/unet.py --workdir=runs/unet

Trains on what configs/attrworld/vae.py and clip.py have made in runs/vae and runs/clip, and writes
runs/unet/unet. It goes on with --resume. On two cores of a Zen 4 CPU it makes 1.3 steps a second with
XLA_FLAGS=--xla_force_host_platform_device_count=2: 52 minutes. docs/attrworld.md has what came out.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "unet"
    config.seed = 0
    config.size = 64  # pixels
    config.vae = "runs/vae/vae"
    config.text_encoder = "runs/clip/text_encoder"
    config.tokenizer = "runs/clip/tokenizer"
    config.init_from = ""  # a trained UNet to begin with

    config.network = ConfigDict(
        {
            "act_fn": "silu",
            "attention_head_dim": 4,  # heads, as in Stable Diffusion 1.x
            "block_out_channels": (64, 128, 192),
            "cross_attention_dim": 160,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "in_channels": 12,
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "out_channels": 12,
            "sample_size": 16,
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        }
    )
    config.scheduler = ConfigDict(
        {
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 1,  # torch's pipeline asks for 1; trailing timesteps have no use for it
        }
    )
    # gamma of min-SNR weights; 0 for none. With velocities min-SNR all but ignores noisy timesteps, in which
    # shapes are decided: materials came within 800 steps, shapes did not.
    config.snr_gamma = 0.0
    # 1 draws every timestep as often, 2 low ones more: half are below 250, where materials get their detail.
    config.timestep_power = 1.0
    config.empty = 0.1  # share of captions that are left empty
    config.guidance = 4.0  # of the pictures that are made as it trains

    # Pictures are rendered and encoded in chunks, and each is used several times.
    config.chunk = 1024
    config.chunks = 16
    config.reuse = 4.0

    config.batch_size = 32
    config.steps = 4000
    config.optimizer = ConfigDict({"learning_rate": 7e-4, "warmup": 150, "weight_decay": 0.01, "b2": 0.99})
    config.ema_decay = 0.998
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.sharding = ".* auto"  # what fsdp divides, an ordered list: REGEX auto; REGEX copy; REGEX DIMENSION

    config.log_every = 50
    config.save_every = 800
    config.max_seconds = 0  # stop and save after this time; 0 is no limit
    config.profile = (0, 0)  # the first and the last step of a trace for XProf; (0, 0) for none
    config.cache_dir = "~/.cache/attrjax/jit"
    return config
