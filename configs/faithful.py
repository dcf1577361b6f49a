"""The recipe that attrjax began from, beside its own: OSTAF's, as SigStyle's code has it.

python -m attrjax.main --config=configs/faithful.py --workdir=runs/faithful --config.reference=my.png
python -m attrjax.main --config=configs/faithful.py:attribute=shape --workdir=runs/faithful-shape

A two-layer filter without a structure of its own, one placeholder token that begins as the attribute's name,
the reference as it is under one prompt, multiplicative low-rank offsets of all attention in the decoder but
for its first block (for shape: in the encoder) and those blocks' other weights themselves, 1,000 steps of the
picture twice at 2e-5, no prior. What its code has broken is mended: offsets begin as the identity and not at
random, what the filter reads does not depend on time and noise, and is saved; and the step is chosen by
measurement and not by hand.

What still differs. The filter reads the foreground in the base's own image encoder, not the whole picture in
an OpenCLIP ViT-B/32 with untrained layers and the UNet's own features behind it. The token's distance from
its word is kept small (the mean of squares), not the token (their sum), and the filter's share in it is
learned from 0.1 and not fixed at that. Queries, keys and values have offsets alone, and are not trained
beside them. Pictures are mirrored, and the square is cut once around the foreground and not at random. Norms
and biases do not decay, and Adam's moments have 32 bits.

Source: github.com/wangyePHD/SigStyle (pretrain_inversion_appearance.py, filter.py).
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg
from configs import appearance, shape


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    asked = parse_arg(arg, attribute="appearance")
    if asked.attribute not in ("shape", "appearance"):
        raise ValueError(f"attribute={asked.attribute!r} must be shape or appearance")
    config = (shape if asked.attribute == "shape" else appearance).get_config()
    config.filter = config.other.filter = "mlp"
    config.filter_weights = "none"
    config.num_tokens = 1
    for recipe in (config, config.other):
        recipe.initial = recipe.attribute
        blocks = r"down_blocks_\d+" if recipe.attribute == "shape" else r"up_blocks_[1-9]\d*"
        recipe.partition = rf"{blocks}/.*/attn[12]/to_[qkv]/kernel offset:3; {blocks}/.* train; .* freeze"
    config.pairs = "whole"
    config.timesteps = (0, 1000)
    config.sampling_timesteps = config.other.sampling_timesteps = (0, 1000)
    config.guidance_interval = config.other.guidance_interval = (0, 1000)
    config.guidance_rescale = config.other.guidance_rescale = 0.0
    config.paint_strength = config.other.paint_strength = 0.0
    config.steps = config.other.steps = 1000
    config.batch_size = 2  # one, with gradients accumulated over two
    config.optimizer.update({"learning_rate": 2e-5, "warmup": 0, "decay": "constant"})
    config.optimizer.update({"weight_decay": 0.01, "b2": 0.999, "clip": 0.0})
    config.other.optimizer = ConfigDict({"learning_rate": 2e-5})  # the rest is for both
    config.backdrop_weight = 1.0
    config.code_weight = 0.01
    config.prior.count = 0
    config.probe.every = 100
    config.save_every = 200
    return config
