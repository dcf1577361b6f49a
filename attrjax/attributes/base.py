"""The base that attributes are learned on: its networks, how it sees a reference, how it makes pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attrjax.attrworld.bundled import REFERENCES, base_or_bundled, usual_guidance
from attrjax.attrworld.judges import Judges, foreground, load_judges
from attrjax.checkpoints.attribute import weights_digest
from attrjax.checkpoints.hub import find_base, find_image_encoder
from attrjax.checkpoints.pipeline import Pipeline, components_of, load_component, load_pipeline
from attrjax.data.references import Reference, load_reference
from attrjax.generate import Settings, latent_shape, vae_factor
from attrjax.prefetch import beside


class Base(NamedTuple):
    """What all references are learned with.

    Attributes:
        path: of the base.
        pipeline: it, untuned.
        digest: of its weights.
        judges: attrworld's; the segmenter is one of them.
    """

    path: Path
    pipeline: Pipeline
    digest: str
    judges: Judges


def load_base(config: Mapping[str, Any]) -> Base:
    """The config's base, with what the reference is seen with: its own image encoder, or ``image_encoder``.

    Raises:
        ValueError, FileNotFoundError: it cannot be used.
    """
    variant = config["variant"] or None
    path = find_base(base_or_bundled(config["base"]), variant)
    held, seen_by = components_of(path), config["image_encoder"]
    if reason := why_not_learned(path, seen_by):
        raise ValueError(reason)
    dtype = getattr(jnp, config["dtype"])
    digest = beside(lambda: weights_digest(path, variant))  # of gigabytes, while they are read
    chosen = [name for name in held if name != "image_encoder"] if seen_by else held
    pipeline = load_pipeline(path, variant=variant, dtype=dtype, remat=config["remat"], components=chosen)
    encoder = pipeline.image_encoder
    if seen_by:
        options = {"dtype": dtype, "param_dtype": np.float32}
        encoder = load_component(find_image_encoder(seen_by), "image_encoder", options=options)
    assert encoder is not None
    # It is called with its parameters as arguments, which shall not be copied to the device in each call.
    encoder = encoder._replace(params=jax.device_put(encoder.params))
    return Base(path, pipeline._replace(image_encoder=encoder), digest.result(), load_judges())


def why_not_learned(path: Path, image_encoder: str) -> str:
    """Why attributes cannot be learned of a base, of which only the list of its parts is read; empty where
    they can.

    Args:
        path: of the base.
        image_encoder: that is to see references; "" for the base's own.

    Raises:
        FileNotFoundError, ValueError: as ``components_of``.
    """
    held = components_of(path)
    if "text_encoder_2" in held:
        return (
            f"{path} has two text encoders: attributes are learned of Stable Diffusion 1.x and 2.x, which "
            "have one"
        )
    if "image_encoder" not in held and not image_encoder:
        return (
            f"{path} has no image_encoder, which references are seen with: name a CLIP vision tower as "
            "image_encoder in the config, such as openai/clip-vit-large-patch14 of the Hub, or a directory"
        )
    return ""


def side_of(config: Mapping[str, Any], pipeline: Pipeline) -> int:
    """Pixels of a side of all pictures that a run sees or makes: the config's, or the base's own.

    Raises:
        ValueError: the VAE cannot make such pictures.
    """
    settings = Settings(height=config["size"], width=config["size"])
    return latent_shape(pipeline, settings, [])[0] * vae_factor(pipeline)


def settings_of(config: Mapping[str, Any], pipeline: Pipeline) -> Settings:
    """How the base makes pictures in a run: those of its probes and of its prior."""
    probe, side = config["probe"], side_of(config, pipeline)
    return Settings(
        steps=probe["steps"],
        guidance=probe["guidance"] or usual_guidance(config["base"]),
        batch_size=probe["batch_size"],
        height=side,
        width=side,
    )


def read_reference(config: Mapping[str, Any], base: Base) -> Reference:
    """The config's reference, or the one of its attribute that comes with the package.

    Raises:
        ValueError, FileNotFoundError: as ``load_reference``.
    """
    return load_reference(
        config["reference"] or REFERENCES / f"{config['attribute']}.png",
        mask=config["mask"] or None,
        size=side_of(config, base.pipeline),
        segmenter=lambda picture: foreground(base.judges, picture),
    )
