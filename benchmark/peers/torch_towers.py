"""The torch side of ``benchmark.parity``: writes a component's random directory, and runs it.

    python -m benchmark.peers.torch_towers write|run FAMILY COMPONENT DIRECTORY

``run`` reads DIRECTORY/inputs.npz, writes DIRECTORY/reference.npz and prints a JSON line.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from benchmark import families, weights

CONFIGS = {
    "CLIPTextModel": transformers.CLIPTextConfig,
    "CLIPTextModelWithProjection": transformers.CLIPTextConfig,
    "CLIPVisionModelWithProjection": transformers.CLIPVisionConfig,
}


def class_of(name: str) -> Any:
    """The torch class of a component, from diffusers or transformers."""
    return getattr(transformers if name in CONFIGS else diffusers, name)


def write(family: str, component: str, directory: Path) -> None:
    """Write config.json and random weights as the published directory of this component has them."""
    name, config = families.COMPONENTS[family][component]
    cls = class_of(name)
    with torch.device("meta"):
        if name in CONFIGS:
            model, stem, extra = cls(CONFIGS[name](**config)), "model", {"architectures": [name]}
        else:
            model, stem, extra = cls.from_config(config), "diffusion_pytorch_model", {"_class_name": name}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if name == "CLIPTextModel":
        # transformers 5 dropped this prefix from the class and still reads and writes it in files.
        shapes = {"text_model." + key.removeprefix("text_model."): shape for key, shape in shapes.items()}
    if name in CONFIGS:
        extra["model_type"] = "clip_text_model" if "Text" in name else "clip_vision_model"
    folder = directory / component
    weights.write_component(folder, stem, shapes)
    (folder / "config.json").write_text(json.dumps(config | extra, indent=2))


def load(family: str, component: str, directory: Path) -> torch.nn.Module:
    """Load with ``from_pretrained``, and raise where a weight of the file or of the network is left over."""
    name, _ = families.COMPONENTS[family][component]
    model, info = class_of(name).from_pretrained(directory / component, output_loading_info=True)
    left = {kind: keys for kind, keys in info.items() if keys}
    if left:
        raise ValueError(f"{name} of {family} does not load whole: {left}")
    return model.eval()


@torch.inference_mode()
def outputs(component: str, model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is compared, by name; pictures are NHWC."""
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def nchw(x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)

    def nhwc(x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)

    if component == "unet":
        added = {k: given[k] for k in ("text_embeds", "time_ids") if k in given}
        y = model(
            nchw(given["sample"]), given["timesteps"], given["context"], added_cond_kwargs=added or None
        ).sample
        found = {"prediction": nhwc(y)}
    elif component == "vae":
        moments = model.encode(nchw(given["picture"])).latent_dist
        found = {"encoder mean": nhwc(moments.mean), "encoder logvar": nhwc(moments.logvar)}
        found["decoder"] = nhwc(model.decode(nchw(given["latents"])).sample)
    elif component == "image_encoder":
        y = model(nchw(given["pixels"]), output_hidden_states=True)
        found = {"penultimate": y.hidden_states[-2], "image_embeds": y.image_embeds}
    else:
        y = model(given["input_ids"], output_hidden_states=True)
        found = {"penultimate": y.hidden_states[-2], "last": y.last_hidden_state}
        found["pooled"] = y.text_embeds if component == "text_encoder_2" else y.pooler_output
    return {name: np.ascontiguousarray(value.numpy()) for name, value in found.items()}


def run(family: str, component: str, directory: Path) -> dict[str, float]:
    """Load and run a component; the outputs go to reference.npz."""
    start = time.perf_counter()
    model = load(family, component, directory)
    loaded = time.perf_counter()
    with np.load(directory / "inputs.npz") as inputs:
        found = outputs(component, model, dict(inputs))
    done = time.perf_counter()
    np.savez(directory / "reference.npz", **found)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "load_s": loaded - start,
        "run_s": done - loaded,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    action, family_name, component_name, folder_name = sys.argv[1:]
    if action == "write":
        write(family_name, component_name, Path(folder_name))
    else:
        print(json.dumps(run(family_name, component_name, Path(folder_name))))
