"""From a component's ``config.json`` to the named arguments of its network.

Every key is accounted for. It is passed on, or it must have the one value that the network implements, or it
is known to say nothing about the network; anything else is refused by name. Where a key is absent, the
default of the torch class applies (diffusers and transformers leave defaults out of some of the files that
they write).
"""

from collections.abc import Collection, Mapping
from typing import Any

Config = Mapping[str, Any]

# Keys that pass on, with diffusers' defaults.
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "only_cross_attention": False,
    "use_linear_projection": False,
    "upcast_attention": False,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_PER_BLOCK = (
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "only_cross_attention",
)
# And with transformers'.
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_CLIP_PROJECTION_DIM = 512

# Keys that must have one of these values: the networks do nothing else.
_UNET_FIXED = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "dropout": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}
_VAE_FIXED = {"_class_name": ("AutoencoderKL",), "act_fn": ("silu", "swish")}
_CLIP_FIXED = {"hidden_act": ("quick_gelu", "gelu"), "attention_dropout": (0,), "dropout": (0,)}

# Keys that describe the file, the pipeline, torch's numerics or a training run, and not the network.
_DIFFUSERS_NOTES = {
    *("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values", "sample_size"),
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
}
_UNET_NOTES = _DIFFUSERS_NOTES | {
    "cross_attention_dim",  # known from the context's width: see unet_inputs
    "projection_class_embeddings_input_dim",
    "addition_embed_type_num_heads",  # of addition types that are not supported
}
_VAE_NOTES = _DIFFUSERS_NOTES | {
    *("down_block_types", "up_block_types"),  # checked on their own
    *("scaling_factor", "shift_factor", "force_upcast"),  # the pipeline's business
}
# What every transformers config may carry, most of it about generating text.
_CLIP_NOTES = {
    *("architectures", "model_type", "transformers_version", "_name_or_path", "torch_dtype", "dtype"),
    *("initializer_range", "initializer_factor", "projection_dim", "bos_token_id", "pad_token_id"),
    *("eos_token_id", "vocab_size", "max_position_embeddings"),  # of vision towers in old files
    *(
        "id2label",
        "label2id",
        "pruned_heads",
        "return_dict",
        "tie_word_embeddings",
        "use_bfloat16",
        "torchscript",
    ),
    *("length_penalty", "max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences"),
    *("repetition_penalty", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "chunk_size_feed_forward"),
    *("output_attentions", "output_hidden_states", "tokenizer_class", "_attn_implementation_autoset"),
}
_UNET_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}


def unet_arguments(config: Config) -> dict[str, Any]:
    """Arguments of ``UNet2DCondition`` for a ``unet/config.json`` of SD 1.x, 2.x or XL.

    Raises:
        ValueError: an option that the network does not have, by name, with what is supported.
    """
    arguments = _arguments("unet", config, _UNET, _UNET_FIXED, _UNET_NOTES)
    blocks = len(arguments["block_out_channels"])
    for key, types in _UNET_BLOCKS.items():
        _check_blocks("unet", key, arguments[key], types, blocks)
    for key in _PER_BLOCK:
        value, kind = arguments[key], type(_UNET[key])
        entries = value if isinstance(value, tuple) else (value,) * blocks
        if len(entries) != blocks or not all(type(entry) is kind for entry in entries):
            _refuse("unet", key, value, f"one {kind.__name__}, or one for each of {blocks} blocks")
    if arguments["addition_time_embed_dim"] is None:
        del arguments["addition_time_embed_dim"]
    if arguments["addition_embed_type"] is not None:
        for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if not isinstance(config.get(key), int):
                _refuse("unet", key, config.get(key), "a number, since addition_embed_type is 'text_time'")
    return arguments


def unet_inputs(config: Config) -> dict[str, Any]:
    """Widths of what a UNet reads, which give the shapes of its parameters: see ``unet.abstract_params``.

    Raises:
        ValueError: a width that is not a number.
    """
    width = config.get("cross_attention_dim", 1280)
    if type(width) is not int:
        _refuse("unet", "cross_attention_dim", width, "one number")
    added = config.get("projection_class_embeddings_input_dim") if config.get("addition_embed_type") else None
    return {"cross_attention_dim": width, "added_cond_dim": added}


def vae_arguments(config: Config) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL`` for a ``vae/config.json``; scaling factors are left to the caller.

    Raises:
        ValueError: an option that the network does not have, by name, with what is supported.
    """
    arguments = _arguments("vae", config, _VAE, _VAE_FIXED, _VAE_NOTES)
    blocks = len(arguments["block_out_channels"])
    for key, types in _VAE_BLOCKS.items():
        _check_blocks("vae", key, config.get(key, types), types, blocks)
    return arguments


def clip_text_arguments(config: Config, *, projection: bool | None = None) -> dict[str, Any]:
    """Arguments of ``CLIPTextModel`` for a ``text_encoder/config.json``, of the tower or of a whole CLIP.

    Args:
        config: the file.
        projection: whether the torch class is ``CLIPTextModelWithProjection``; None looks in
            ``architectures``.

    Raises:
        ValueError: an option that the network does not have, by name, with what is supported.
    """
    return _clip_arguments("text encoder", "text_config", "CLIPTextModel", _CLIP_TEXT, config, projection)


def clip_vision_arguments(config: Config, *, projection: bool | None = None) -> dict[str, Any]:
    """Arguments of ``CLIPVisionModel`` for an ``image_encoder/config.json``, of the tower or of a whole CLIP.

    Args, raises: as ``clip_text_arguments``, with the torch class ``CLIPVisionModelWithProjection``.
    """
    return _clip_arguments(
        "image encoder", "vision_config", "CLIPVisionModel", _CLIP_VISION, config, projection
    )


def _clip_arguments(
    what: str, part: str, name: str, passed: Config, config: Config, projection: bool | None
) -> dict[str, Any]:
    architectures = config.get("architectures") or []
    if projection is None:
        projection = f"{name}WithProjection" in architectures
    if part in config or f"{part}_dict" in config:
        config = (config.get(part) or {}) | (config.get(f"{part}_dict") or {})
    arguments = _arguments(what, config, passed, _CLIP_FIXED, _CLIP_NOTES)
    arguments["projection_dim"] = config.get("projection_dim", _CLIP_PROJECTION_DIM) if projection else None
    return arguments


def _arguments(
    what: str, config: Config, passed: Config, fixed: Mapping[str, tuple], notes: Collection[str]
) -> dict[str, Any]:
    """The values of ``passed`` in a config, with all keys checked; lists become tuples, which hash."""
    for key, values in fixed.items():
        if key in config and config[key] not in values:
            _refuse(what, key, config[key], " or ".join(repr(value) for value in values))
    for key, value in config.items():
        # Options that are switched off are no options: newer versions write them into every file.
        off = value is None or value is False or value in ([], {})
        if key not in passed and key not in fixed and key not in notes and not off:
            _refuse(what, key, value, "null or false")
    arguments = {}
    for key, default in passed.items():
        value = config.get(key, default)
        if value is None and isinstance(default, bool):
            value = False
        value = tuple(value) if isinstance(value, list) else value
        if key not in fixed and key not in _PER_BLOCK and not _alike(value, default):
            _refuse(what, key, value, "a number or null" if default is None else f"what is like {default!r}")
        arguments[key] = value
    return arguments


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of the type of a key's default; where that is None, a number."""
    if default is None:
        return value is None or type(value) is int
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(type(entry) is type(default[0]) for entry in value)
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def _check_blocks(what: str, key: str, value: Any, types: tuple[str, ...], blocks: int) -> None:
    fits = isinstance(value, (list, tuple)) and len(value) == blocks
    if not fits or any(block not in types for block in value):
        _refuse(what, key, value, f"a list as long as block_out_channels ({blocks}) of {' or '.join(types)}")


def _refuse(what: str, key: str, value: Any, supported: str) -> None:
    raise ValueError(f"{what} config: {key} = {value!r} is not supported (supported: {supported})")
