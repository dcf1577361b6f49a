"""Published configurations of Stable Diffusion's families, as their directories' config.json files have them.

Only the keys that decide what a network computes are kept; the others have their class's defaults.
"""

_SD_BLOCKS = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
}

_FOUR_LEVELS = _SD_BLOCKS | {
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}

UNET = {
    "sd15": _FOUR_LEVELS
    | {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "sd21": _FOUR_LEVELS
    | {
        "sample_size": 96,
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": _SD_BLOCKS
    | {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    # No published model: SD 1.5's structure at a size whose steps take a fraction of a second on a CPU.
    "small": _FOUR_LEVELS
    | {
        "sample_size": 32,
        "block_out_channels": [64, 128, 256, 256],
        "attention_head_dim": 8,
        "cross_attention_dim": 256,
    },
}

_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
}

VAE = {
    "sd15": _VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    "sd21": _VAE | {"sample_size": 768, "scaling_factor": 0.18215},
    "sdxl": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
    "small": _VAE | {"sample_size": 256, "block_out_channels": [32, 64, 128, 128], "scaling_factor": 0.18215},
}

_CLIP_TEXT = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

CLIP_TEXT = {
    "clip-l": _CLIP_TEXT
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    # SD 2's directories leave out the last of OpenCLIP-H's 24 layers, since the states before it are used.
    "openclip-h": _CLIP_TEXT
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
    "openclip-bigg": _CLIP_TEXT
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}

_CLIP_VISION = {"image_size": 224, "patch_size": 14, "num_channels": 3, "layer_norm_eps": 1e-5}

CLIP_VISION = {
    "clip-l": _CLIP_VISION
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    # The tower that IP-Adapter reads, for SD 1.5 and for SDXL's vit-h files alike.
    "openclip-h": _CLIP_VISION
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
}

# The class that a component's file is written for, and its config: what a pipeline directory consists of.
COMPONENTS = {
    "sd15": {
        "unet": ("UNet2DConditionModel", UNET["sd15"]),
        "vae": ("AutoencoderKL", VAE["sd15"]),
        "text_encoder": ("CLIPTextModel", CLIP_TEXT["clip-l"]),
        "image_encoder": ("CLIPVisionModelWithProjection", CLIP_VISION["clip-l"]),
    },
    "sd21": {
        "unet": ("UNet2DConditionModel", UNET["sd21"]),
        "vae": ("AutoencoderKL", VAE["sd21"]),
        "text_encoder": ("CLIPTextModel", CLIP_TEXT["openclip-h"]),
        "image_encoder": ("CLIPVisionModelWithProjection", CLIP_VISION["openclip-h"]),
    },
    "sdxl": {
        "unet": ("UNet2DConditionModel", UNET["sdxl"]),
        "vae": ("AutoencoderKL", VAE["sdxl"]),
        "text_encoder": ("CLIPTextModel", CLIP_TEXT["clip-l"]),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_TEXT["openclip-bigg"]),
        "image_encoder": ("CLIPVisionModelWithProjection", CLIP_VISION["openclip-h"]),
    },
}

# Published parameter counts, which a full-size run is checked against.
PARAMETERS = {
    ("sd15", "unet"): 859_520_964,
    ("sd21", "unet"): 865_910_724,
    ("sdxl", "unet"): 2_567_463_684,
    ("sd15", "vae"): 83_653_863,
    ("sd21", "vae"): 83_653_863,
    ("sdxl", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "text_encoder"): 340_387_840,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
