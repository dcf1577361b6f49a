"""What torch diffusers and transformers make of the small autoencoder and CLIP towers.

``python -m tests.record_towers`` writes the arrays to ``tests/recorded/``, where tests without torch find
them; the tests in ``tests/live`` call these functions and need no recording. See ``towers`` for the keys.
"""

from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

from tests import cases, towers


def load(model: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """Give a model its deterministic weights; ``prefix`` is what its own names leave out."""
    shapes = {prefix + name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = cases.deterministic_weights(shapes)
    model.load_state_dict({name.removeprefix(prefix): torch.from_numpy(v) for name, v in weights.items()})
    return model.eval()


def array(x: torch.Tensor) -> np.ndarray:
    """A tensor as numpy, pictures as NHWC."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().numpy()


def picture(x: np.ndarray) -> torch.Tensor:
    """An NHWC array as an NCHW tensor."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def gradients(
    kind: str, model: torch.nn.Module, loss: torch.Tensor, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Derivatives of a loss with respect to the parameters that ``towers.GRADIENTS`` names."""
    loss.backward()
    parameters = {prefix + name: value for name, value in model.named_parameters()}
    return {f"gradient.{name}": parameters[name].grad.numpy() for name in towers.GRADIENTS[kind]}


def vae_model(name: str) -> diffusers.AutoencoderKL:
    """The autoencoder of a case in ``towers.VAE_CASES``."""
    config = towers.VAE_CASES[name]
    blocks = len(config["block_out_channels"])
    types = {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
    }
    return load(diffusers.AutoencoderKL(**config, **types))


def vae(name: str) -> dict[str, np.ndarray]:
    """Moments and pictures of a case in ``towers.VAE_CASES``."""
    model, inputs = vae_model(name), towers.vae_inputs(name)
    gaussian = model.encode(picture(inputs["pictures"])).latent_dist
    out = {"mean": gaussian.mean, "logvar": gaussian.logvar}
    out["decoded"] = model.decode(picture(inputs["latents"])).sample
    loss = sum((value * picture(inputs[key])).sum() for key, value in out.items())
    return {key: array(value) for key, value in out.items()} | gradients("vae", model, loss)


def text(name: str) -> dict[str, np.ndarray]:
    """Every state of a text tower in ``cases.CLIP_TEXT``."""
    config = transformers.CLIPTextConfig(**cases.CLIP_TEXT[name], bos_token_id=998, pad_token_id=0)
    inputs, projected = towers.text_inputs(name), "projection_dim" in cases.CLIP_TEXT[name]
    if projected:
        model, prefix = transformers.CLIPTextModelWithProjection(config), ""
    else:
        model = transformers.CLIPTextModel(config)  # transformers 5 dropped the prefix from this class alone
        prefix = "" if hasattr(model, "text_model") else "text_model."
    model = load(model, prefix)
    tower = model.text_model if projected or not prefix else model
    ids = torch.from_numpy(inputs["input_ids"])
    out = tower(ids, output_hidden_states=True)
    fields = {"last_hidden_state": out.last_hidden_state, "pooled": out.pooler_output}
    fields |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    embeds = out.pooler_output
    if projected:
        embeds = fields["text_embeds"] = model(ids).text_embeds
    loss = (out.last_hidden_state * torch.from_numpy(inputs["last"])).sum()
    loss = loss + (embeds * torch.from_numpy(inputs["embeds"])).sum()
    return {key: array(value) for key, value in fields.items()} | gradients("text", model, loss, prefix)


def vision(name: str) -> dict[str, np.ndarray]:
    """Every state of a vision tower in ``cases.CLIP_VISION``."""
    model = load(
        transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**cases.CLIP_VISION[name]))
    )
    inputs = towers.vision_inputs(name)
    pixels = picture(inputs["pixels"])
    out = model.vision_model(pixels, output_hidden_states=True)
    fields = {"last_hidden_state": out.last_hidden_state, "pooled": out.pooler_output}
    fields |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    fields["image_embeds"] = model(pixels).image_embeds
    loss = (out.last_hidden_state * torch.from_numpy(inputs["last"])).sum()
    loss = loss + (fields["image_embeds"] * torch.from_numpy(inputs["embeds"])).sum()
    return {key: array(value) for key, value in fields.items()} | gradients("vision", model, loss)


def record(path: Path, references: dict[str, dict[str, np.ndarray]]) -> None:
    """Write arrays as CASE/KEY."""
    arrays = {f"{case}/{key}": value for case, values in references.items() for key, value in values.items()}
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Record all cases."""
    folder = Path(__file__).parent / "recorded"
    folder.mkdir(exist_ok=True)
    record(folder / "vae.npz", {name: vae(name) for name in towers.VAE_CASES})
    record(folder / "clip_text.npz", {name: text(name) for name in cases.CLIP_TEXT})
    record(folder / "clip_vision.npz", {name: vision(name) for name in cases.CLIP_VISION})


if __name__ == "__main__":
    main()
