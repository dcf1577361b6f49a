"""The task ``filters``: an attribute's filter and fusion, learned once for all pictures.

From pairs of pictures, rendered or stored, that share the attribute and nothing else: the filter sees the
first, and the second one is to be denoised from a caption in which the placeholder stands for what they share
(condition on one picture, make another, as ELITE and IP-Adapter are trained; here the two pictures differ in
all but the attribute, so that nothing else is worth passing on). The base stays as it is. What comes of it
recognizes an attribute without any tuning, and is what tuning begins with.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float, Int, Key

from attrjax.attributes.conditioning import (
    FUSIONS,
    attribute_vectors,
    context_of,
    init_conditioning,
    make_filter,
    new_word,
    see,
)
from attrjax.attributes.fusion import places_of
from attrjax.attributes.stored import Shown, open_pairs, stored_at
from attrjax.attrworld.batches import INIT, rendered
from attrjax.attrworld.bundled import base_or_bundled
from attrjax.attrworld.render import Rendered, Scene
from attrjax.attrworld.sharing import sharing_at
from attrjax.checkpoints.attribute import ATTRIBUTES
from attrjax.checkpoints.filter import DIRECTORY, SavedFilter, filter_digest, save_filter
from attrjax.checkpoints.hub import find_base
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.diffusion.losses import denoising_losses
from attrjax.diffusion.schedule import sampler_for, schedule_from_config
from attrjax.fit import begin, fit
from attrjax.generate import latent_scale
from attrjax.models.vae import scale_latents
from attrjax.parallel.start import together


def filters(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train the filter of ``config.attribute`` and write it to ``workdir/ATTRIBUTE.safetensors``.

    Beside the denoising loss, the text encoder's pooled state of a caption with the placeholder is to be
    that of the caption with words in its place, where there are such words: they say at once what the UNet's
    error says only in the mean over many timesteps.

    Raises:
        ValueError, FileNotFoundError: the base or the data set cannot be used, or the config does not fit
            itself.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    attribute = config["attribute"]
    if attribute not in ATTRIBUTES:
        raise ValueError(f"attribute={attribute!r} must be one of {', '.join(ATTRIBUTES)}")
    base = find_base(base_or_bundled(config["base"]), config["variant"] or None)
    pipeline = load_pipeline(base, variant=config["variant"] or None)
    if pipeline.image_encoder is None:
        raise ValueError(f"{base} has no image_encoder, which filters read: add a CLIP vision tower")
    encoder, vae, text = pipeline.image_encoder, pipeline.vae, pipeline.text_encoder
    fusion = config["fusion"]
    if fusion not in FUSIONS:
        raise ValueError(f"fusion={fusion!r} must be one of {', '.join(FUSIONS)}")
    word = new_word(pipeline, config["placeholder"], config["initial"], config["num_tokens"], fusion)
    origin = jnp.asarray(word.origin)
    filter_ = make_filter(config["filter"], pipeline, config["num_tokens"])
    schedule = schedule_from_config(pipeline.scheduler, sampler_for(pipeline.scheduler))
    # What cannot be trained on leaves no run behind that the next attempt would have to go on with.
    source = open_pairs(config["dataset"], config["split"]) if config["dataset"] else None
    directory, root = begin(config, workdir, resume)
    size, length = config["size"], text.module.max_position_embeddings
    end = pipeline.tokenizer.eos_token_id

    def loss_fn(
        params: Any, batch: dict[str, Any], key: Key[Array, ""], frozen: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        first, second = (shown(batch[name], size) for name in ("seen", "made"))
        states, weight = see(encoder._replace(params=frozen["image_encoder"]), first.picture, first.mask)
        vectors = attribute_vectors(params, filter_, origin, states, weight, fusion)
        ids, places = batch["asked"], batch["places"]
        asked = context_of(text, frozen["text"], ids, places, vectors, params["fusion"], origin, fusion)
        told: Any = text.module.apply({"params": frozen["text"]}, batch["told"])
        far = _last(asked, batch["asked"] == end) - _last(told.last_hidden_state, batch["told"] == end)
        named = batch["named"]
        words = (jnp.mean(far**2, -1) * named).sum() / jnp.maximum(named.sum(), 1)

        def network(noisy: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Any:
            return pipeline.unet.module.apply({"params": frozen["unet"]}, noisy, t, asked)

        of_latents, of_noise = jax.random.split(key)
        moments: Any = vae.module.apply({"params": frozen["vae"]}, second.picture, method="encode")
        clean = scale_latents(moments.sample(of_latents), *latent_scale(pipeline))
        loss = denoising_losses(
            schedule,
            network,
            clean,
            of_noise,
            timesteps=config["timesteps"],
            snr_gamma=config["snr_gamma"] or None,
        ).mean()
        return loss + config["words_weight"] * words, {"denoising": loss, "words": words}

    def batch_at(step: int) -> dict[str, Any]:
        batch = pairs(step)
        return {**batch, "places": places_of(batch["asked"], word.ids)}

    if source:
        pairs = stored_at(root, source, config["batch_size"], attribute, word, length, size)
    else:
        pairs = sharing_at(root, config["batch_size"], attribute, word.text, word.tokenizer, length)
    side = encoder.module.image_size
    states, weight = see(encoder, jnp.zeros((1, side, side, 3)), jnp.ones((1, side, side)))
    params = init_conditioning(jax.random.fold_in(root, INIT), filter_, states, weight, fusion)
    frozen = {
        "unet": pipeline.unet.params,
        "text": text.params,
        "vae": vae.params,
        "image_encoder": encoder.params,
    }
    trained = fit(config, directory, root, params, loss_fn, batch_at, frozen=frozen)
    if trained is None:
        return
    facts = {name: config[name] for name in ("attribute", "filter", "num_tokens", "initial", "fusion")}
    saved = SavedFilter(**facts, base=filter_digest(base, config["variant"] or None), params=trained)
    if jax.process_index() == 0:
        path = save_filter(directory / f"{attribute}.safetensors", saved)
        size = path.stat().st_size / 1e6
        logging.info("wrote %s (%.2f MB): it belongs into %s/%s", path, size, base, DIRECTORY)
    together("written")


def shown(pictures: Scene | Shown, size: int) -> Rendered | Shown:
    """Pictures with their masks: what a data set holds, or scenes, rendered on the device."""
    return rendered(pictures, size) if isinstance(pictures, Scene) else pictures


def _last(states: Float[Array, "b t d"], ends: Bool[Array, "b t"]) -> Float[Array, "b d"]:
    """The states where the text ends first."""
    return jnp.take_along_axis(states, ends.argmax(1)[:, None, None], axis=1)[:, 0]
