"""Pictures from prompts, with the bundled base or any Stable Diffusion in diffusers layout.

python -m attrjax.main --config=configs/sample.py --config.prompts='("a vase made of marble",)'
--workdir=runs/vase

    --config.base=DIR             another base than the bundled one: a directory in diffusers layout
    configs/sample.py:base=sd15   sd15, sd21 or sdxl from the Hub, at the size that it was trained for

Writes runs/vase/samples/a-vase-made-of-marble-0.png, ... and runs/vase/grid.png with all of them.
"""

from ml_collections import ConfigDict

from attrjax.arguments import base_preset, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    arguments = parse_arg(arg, base="")
    preset = base_preset(arguments.base)
    config = ConfigDict()
    config.task = "sample"

    # What is in the pictures.
    config.base = preset["base"]  # a directory in diffusers layout, or a Hub id; "" is the bundled base
    config.variant = ""  # which of its weight files: fp16 for *.fp16.safetensors
    config.prompts = ("a vase made of marble",)  # a row of the grid each
    config.negative_prompt = ""
    config.seeds = (0, 1, 2, 3)  # a column of the grid each

    # How they are made.
    config.sampler = (
        "auto"  # the base's own; ddim, ddpm, dpmpp_2m, dpmpp_2m_karras, euler, euler_ancestral, pndm
    )
    config.steps = 30
    # Classifier-free guidance; 1 is none, and 0 what suits the base: 4 for the bundled one, 7.5 for others.
    config.guidance = preset["guidance"]
    # Timesteps (low, high) at which it acts, 1000 is noise and 0 the picture; () for what the attributes say,
    # and without any for all.
    config.guidance_interval = ()
    # 0 to 1: how much of its contrast is taken back, about 0.7 for bases with a zero terminal SNR; -1 for
    # what the attributes say, and without any 0.
    config.guidance_rescale = -1.0
    config.eta = 0.0  # 0 to 1: fresh noise in ddim
    config.height = preset["height"]  # pixels; 0 is the base's own size
    config.width = preset["width"]

    # What they begin with.
    config.latents = ""  # .npy [n, h, w, c] of N(0, 1) noise; n is prompts x seeds, or seeds
    config.init_image = ""  # a picture to begin from
    # What of it is painted with an appearance: a picture of the same size, white there. Without one its
    # transparency says it, or what a segmenter finds, which knows pictures like the bundled base's.
    config.init_mask = ""
    config.strength = 0.8  # 0 to 1: how much of it is made anew

    # What is added to the base.
    config.loras = ()  # LoRA files by diffusers', PEFT's or kohya's names
    config.lora_strengths = ()  # one for each: 0.8, or {"down": 1.0, "mid": 0.5, "up": 0.0}; none for 1
    config.learned_words = ()  # textual inversions
    # What configs/shape.py and appearance.py learned: files, or run directories, which act together. Of lists
    # in a list, such as (("runs/mug",), ("runs/star",), ("runs/mug", "runs/delft")), each makes pictures: of
    # the prompts that have a word of its attributes, and none that only others have.
    config.attributes = ()
    # One for each: 1 is as it was learned, 0 is without it; none for 1. Of a list of lists so are these two.
    config.attribute_strengths = ()
    # For each the timesteps at which its weights act, as in ((300, 1000), (0, 700)): 1000 is noise, 0 the
    # picture. None for what the files say.
    config.attribute_timesteps = ()
    # 0 to 1: how much of a picture is made anew once its form is painted with an appearance's material; 0 for
    # no painting, -1 for what the files say. With an init_image that is painted, and strength says it.
    config.paint_strength = -1.0
    config.negative_attributes = False  # guide away from the references' other attributes, too
    config.force = False  # apply attributes that were learned on another base

    # How they are computed.
    config.dtype = "float32"  # bfloat16 is several times faster on accelerators
    config.attention = "auto"  # or force one: xla, chunked, cudnn, splash
    config.batch_size = 0  # pictures at a time on each device; 0 is 1 on a CPU and 4 elsewhere
    # Pictures are divided over all devices, each of which holds the whole base.
    config.mesh = ConfigDict({"concept": 1, "data": -1, "fsdp": 1})
    config.progress = "auto"  # the bar moves with every step or picture; step on CPUs, picture elsewhere
    config.cache_dir = "~/.cache/attrjax/jit"  # compiled programs are kept here; "" for nowhere
    return config
