"""The shape of one picture, learned into a small file.

python -m attrjax.main --config=configs/shape.py --workdir=runs/shape --config.reference=my.png

    --config.mask=my-mask.png     what in the picture is meant; else its transparency, or what a segmenter
                                  finds
configs/shape.py:base=sd15 --config.base=DIR   a Stable Diffusion: sd15 or sd21 sets what suits those (LoRA
                                  of rank 4, as many steps and as slow as diffusers' own, their size, and a
                                  CLIP of the Hub that sees the picture); without DIR it comes from the Hub
    --config.base=DIR             any other base: a directory in diffusers layout with an image_encoder, or
    --config.image_encoder=DIR    a CLIP vision tower, or a Hub id
    --config.references=LIST      many pictures at once in place of one: a JSON object in each line, such as
                                  {"reference": "mug.png", "mask": "mug-mask.png"}; also "name" of its
                                  directory in the workdir, "attribute" where it is not this config's,
                                  "steps", "seed", "placeholder", and "prompts" of its probes. Then
                                  runs/list/NAME is what runs/shape is of one

Without a reference it learns from a picture that comes with the package. Writes runs/shape/index.html, which
shows what came of it, and runs/shape/attribute.safetensors. Then

python -m attrjax.main --config=configs/sample.py --config.attributes='("runs/shape",)'
--config.prompts='("a <shape> made of marble",)' --workdir=runs/mine
"""

from ml_collections import ConfigDict

from attrjax.arguments import base_preset, parse_arg
from configs.appearance import RECIPE


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    preset = base_preset(parse_arg(arg, base="").base)
    if preset["base"] and not preset["image_encoder"]:
        raise ValueError("attributes are learned of bases with one text encoder: base=sd15 or sd21")
    config = ConfigDict()
    config.task = "customize"
    config.seed = 0

    # What is learned.
    config.attribute = "shape"
    config.reference = ""  # a picture; "" is one that comes with the package
    config.mask = ""  # a picture of the same size, white where the foreground is
    config.references = ""  # a list of pictures in place of the one, a JSON object in each line
    config.base = preset["base"]  # a directory in diffusers layout, or a Hub id; "" is the bundled base
    config.variant = ""  # which of its weight files: fp16 for *.fp16.safetensors
    # What the reference is seen with: a directory with a CLIP vision tower, or a Hub id; "" is the base's.
    config.image_encoder = preset["image_encoder"]
    config.size = preset["height"]  # pixels of a side; 0 is the base's own

    # How it enters the prompt.
    config.placeholder = "<shape>"
    config.initial = "object"  # what the placeholder begins as, and is at strength 0
    config.filter = "shape"  # or mlp
    config.num_tokens = 4
    # placeholder: the filter's tokens are the embeddings of its word, before the text encoder, and can be
    # exported. cross: the encoded prompt reads them through a gate that begins closed.
    config.fusion = "placeholder"
    config.filter_weights = "base"  # the base's own where it has some; none to begin anew; or a file

    # What is tuned: a part of the UNet (encoder, decoder, mid, full, cross_attention, ...) by a rule (train,
    # lora:RANK, offset:RANK), or a list of rules, "REGEX RULE; REGEX RULE", of which the first that matches
    # decides.
    config.partition = "decoder"  # docs/attributes.md: what other parts do on the bundled base
    config.rule = "train"
    config.timesteps = (0, 1000)  # that are trained on: 1000 is noise, 0 the picture
    # Other software has none of the next four: what is exported makes there what it makes here where they are
    # (0, 1000), (0, 1000), 0 and 0.
    # At which what was tuned acts in sampling: form comes first.
    config.sampling_timesteps = (200, 1000)
    # At which guidance acts beside it in sampling, and how much of guidance's contrast is taken back.
    config.guidance_interval = (0, 1000)
    config.guidance_rescale = 0.7
    config.paint_strength = 0.0  # of an appearance's pictures, configs/appearance.py says what it is
    # Whether it is trained at sampling_timesteps alone; at the others the word alone then is, for the base's
    # own UNet.
    config.trained_as_sampled = False

    # How it is learned.
    config.pairs = "destroyed"  # what is shown has lost the other attribute; whole: the reference as it is
    # How pairs are drawn, arguments of pairs.shape_pair: the object's size, how far it moves in sides of the
    # picture, and how often it is mirrored, which for letters and hands is another shape.
    config.draw = ConfigDict({"zoom": (0.95, 1.05), "shift": 0.04, "flip": 0.0})
    config.steps = 100  # 0 for what the filter recognizes without any
    # Share of the pairs, rounded down, whose targets have the material of one of the base's own pictures, or
    # for an appearance the form, so that not all that is learned from is painted.
    config.crossed = 0.25
    config.patience = 0  # probes without a better score, after which it ends; 0 for no such end
    config.batch_size = 8  # pairs drawn from the reference
    config.optimizer = ConfigDict(
        {
            "learning_rate": 3e-4,
            "warmup": 10,  # steps in which the rate rises
            "decay": "cosine",  # to 0 at the end; constant for none
            "weight_decay": 0.0,
            "clip": 1.0,  # largest norm of the gradient; 0 for none
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
        }
    )
    config.snr_gamma = 0.0  # gamma of min-SNR weights; 0 for none
    config.offset_noise = 0.0
    config.backdrop_weight = 0.3  # of the error outside of the mask
    config.code_weight = 0.01  # of the placeholder's distance from what it began as
    # Pictures of the base itself, made anew beside the pairs so that it forgets nothing.
    config.prior = ConfigDict(
        {
            "count": 16,
            "rows": 4,
            "weight": 1.0,
            "prompts": (
                *("a {} made of marble", "a golden {}", "a wooden {}", "a {} with zebra stripes"),
                *("a brick {}", "a silver {}", "a granite {}", "a red {}"),
            ),
            "objects": ("vase", "chair", "mug", "ball"),  # that these are of, in turn
        }
    )

    # Every few steps pictures are made of these prompts, and decide which step is kept.
    config.probe = ConfigDict(
        {
            "every": 25,
            "prompts": ("a red {}", "a {} made of marble", "a {} with zebra stripes", "a wooden {}"),
            "seeds": (0, 1),
            "steps": 12,
            "guidance": 0.0,  # 0 for what suits the base: 4 for the bundled one, 7.5 for others
            "batch_size": 8,
        }
    )

    # Lines of a list that say the other attribute are learned with this in place of what stands above, and
    # with the rest as it is above: steps=50 is for this config's own attribute, other.steps=50 for the other
    # one, and batch_size=4 for both.
    config.other = ConfigDict(RECIPE)

    config.dtype = "float32"  # that networks compute in; bfloat16 is several times faster on accelerators
    # Activations are made again in the backward pass and not kept: less memory, and a slower step.
    config.remat = False
    config.ema_decay = 0.0  # of a moving average of what is learned; 0 for none
    config.stack = 0  # pictures of a list that one device learns at once; 0 for 1 on a CPU and 8 elsewhere
    # One picture's pairs are divided over all devices; of a list each device learns pictures of its own.
    config.mesh = ConfigDict({"concept": -1, "data": 1, "fsdp": 1})
    config.sharding = ".* auto"  # what fsdp divides, an ordered list: REGEX auto; REGEX copy; REGEX DIMENSION
    config.log_every = 10
    config.save_every = 50
    config.keep_checkpoints = False  # behind the end, so that the run can be made longer
    config.max_seconds = 0  # stop and save after this time; 0 is no limit
    config.profile = (0, 0)  # the first and the last step of a trace for XProf; (0, 0) for none
    config.cache_dir = "~/.cache/attrjax/jit"  # compiled programs are kept here; "" for nowhere
    if preset["base"]:
        for_stable_diffusion(config)
    return config


def for_stable_diffusion(config: ConfigDict) -> None:
    """What was chosen on the bundled base of 11 M weights, in the measures of one of 860 M.

    Rate and steps are those of diffusers' DreamBooth with LoRA (examples/dreambooth, its README); the rest is
    what fits into 16 GB beside it. Nothing of it was chosen by pictures.
    """
    config.rule, config.batch_size = "lora:4", 4
    config.probe.every = 100
    for recipe in (config, config.other):
        recipe.partition = "decoder_attention"
        recipe.steps = 500
        recipe.optimizer.learning_rate = 1e-4
        # The bundled base's schedule ends in pure noise and its patterns are fine: these do not suit others.
        recipe.guidance_interval, recipe.guidance_rescale = (0, 1000), 0.0
