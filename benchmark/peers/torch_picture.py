"""A picture by torch diffusers, of a base with a LoRA file and a learned word: a side of ``real_path``.

    python -m benchmark.peers.torch_picture BASE EXPORT PROMPT LATENTS.npy STEPS GUIDANCE OUT.png

Latents are [1, h, w, c], as attrjax has them.
"""

import json
import resource
import sys

import diffusers
import numpy as np
import torch


@torch.inference_mode()
def main(base: str, export: str, prompt: str, latents: str, steps: str, guidance: str, out: str) -> None:
    """Load all by diffusers' own means, make the picture, and print the peak memory in bytes."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.load_lora_weights(export)
    pipeline.load_textual_inversion(f"{export}/learned_embeds.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.load(latents).transpose(0, 3, 1, 2).copy())
    made = pipeline(
        prompt=prompt, latents=noise, num_inference_steps=int(steps), guidance_scale=float(guidance)
    )
    made.images[0].save(out)
    print(json.dumps({"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main(*sys.argv[1:])
