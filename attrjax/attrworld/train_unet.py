"""The task ``unet``: the bundled base's denoiser, trained on captioned pictures of the world."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from attrjax.attrworld.batches import DATA, INIT, rendered
from attrjax.attrworld.pool import pooled_at
from attrjax.attrworld.render import Scene
from attrjax.checkpoints.pipeline import (
    Component,
    Pipeline,
    build_network,
    load_component,
    load_tokenizer,
    save_component,
)
from attrjax.data.pictures import png_bytes
from attrjax.diffusion.losses import denoising_losses
from attrjax.diffusion.schedule import sampler_for, schedule_from_config
from attrjax.fit import begin, fit, layout_of
from attrjax.generate import Settings, generate
from attrjax.models.vae import scale_latents
from attrjax.parallel.mesh import Rules, on_host, shard_leaf, shard_state
from attrjax.parallel.start import together
from attrjax.report.grid import labelled_grid
from attrjax.runs import plain, write_whole
from attrjax.training import LossFn, TrainState

ENCODED = 64  # pictures at a time
# What is sampled while it trains: seen words, in combinations that are rare or absent.
PROMPTS = (
    "a red ball on a white backdrop",
    "a wooden chair",
    "a vase with zebra stripes",
    "a golden star on a blue backdrop",
    "a mug made of marble",
    "a tower made of brick",
    "a gear with blue and yellow stripes",
    "a green mushroom with white dots",
)


def unet(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train the UNet on the latents of ``config.vae`` and the context of ``config.text_encoder``.

    Writes ``workdir/unet`` in diffusers layout: the moving average of the weights. The loss is that of
    ``diffusion.losses`` with min-SNR weights; a share of captions is left empty.

    Raises:
        ValueError, FileExistsError: the config does not fit itself, or the run that the directory holds.
        FileNotFoundError: there is no autoencoder, text encoder or tokenizer where the config says.
    """
    directory, root = begin(config, workdir, resume)
    vae = load_component(config["vae"], "vae")
    text = load_component(config["text_encoder"], "text_encoder")
    tokenizer = load_tokenizer(Path(config["tokenizer"]))
    network, scheduler = plain(config["network"]), plain(config["scheduler"])
    module, _ = build_network("unet", network)
    factor = vae.config["scaling_factor"]

    @jax.jit
    def encode(scenes: Scene, key: Key[Array, ""]) -> Float[Array, "m h w c"]:
        # A few pictures at a time: all at once would hold the renderer's and the encoder's intermediates.
        def one(batch: tuple[Scene, Key[Array, ""]]) -> Float[Array, "b h w c"]:
            picture = rendered(batch[0], config["size"]).picture
            moments: Any = vae.module.apply({"params": vae.params}, picture, method="encode")
            return scale_latents(moments.sample(batch[1]), factor)

        number = len(jax.tree.leaves(scenes)[0])
        group = math.gcd(number, ENCODED)
        parts = jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, group, *leaf.shape[1:])), scenes)
        latents = jax.lax.map(one, (parts, jax.random.split(key, number // group)))
        return latents.reshape(-1, *latents.shape[2:])

    def show(step: int, state: TrainState) -> None:
        so_far = Component(module, on_host(state.ema), network)
        pipeline = Pipeline(
            path=directory,
            unet=so_far,
            vae=vae,
            text_encoder=text,
            text_encoder_2=None,
            image_encoder=None,
            tokenizer=tokenizer,
            tokenizer_2=None,
            scheduler=scheduler,
            model_index={"_class_name": "StableDiffusionPipeline"},
            preprocessor=None,
        )
        settings = Settings(steps=16, guidance=config["guidance"], batch_size=len(PROMPTS))
        pictures = generate(pipeline, PROMPTS, (0, 1), settings)
        table = [list(pictures[i : i + 2]) for i in range(0, len(pictures), 2)]
        grid = labelled_grid(table, PROMPTS, ["seed 0", "seed 1"], f"step {step}")
        if jax.process_index() == 0:
            write_whole(directory / "pictures" / f"step-{step:06d}.png", png_bytes(grid))

    batch_at = pooled_at(
        jax.random.fold_in(root, DATA),
        encode,
        tokenizer,
        **{name: config[name] for name in ("batch_size", "chunk", "chunks", "reuse", "empty")},
    )
    loss_fn = loss_of(
        module,
        text.module,
        scheduler,
        snr_gamma=config["snr_gamma"] or None,
        timestep_power=config["timestep_power"],
    )
    key, layout = jax.random.fold_in(root, INIT), layout_of(config)
    params = _initial(module, network, key, config["init_from"], *layout)
    every = (config["save_every"], show)
    trained = fit(config, directory, root, params, loss_fn, batch_at, frozen=text.params, every=every)
    if trained is None:
        return
    if jax.process_index() == 0:
        save_component(directory / "unet", "unet", Component(module, trained, network))
        logging.info("wrote %s", directory / "unet")
    together("written")


def loss_of(
    unet: nn.Module,
    text: nn.Module,
    scheduler: Mapping[str, Any],
    *,
    snr_gamma: float | None,
    timestep_power: float = 1.0,
) -> LossFn:
    """``loss_fn`` of ``training.make_step``: the denoising loss of a UNet; ``frozen`` is the text encoder's.

    Args:
        unet: the network that is trained.
        text: the text encoder.
        scheduler: ``scheduler_config.json``.
        snr_gamma: of min-SNR weights; None for none.
        timestep_power: of ``losses.draw_timestep``.
    """
    schedule = schedule_from_config(scheduler, sampler_for(scheduler))

    def loss_fn(
        params: Any, batch: dict[str, Any], key: Key[Array, ""], frozen: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        encoded: Any = text.apply({"params": frozen}, batch["tokens"])
        context = jax.lax.stop_gradient(encoded.last_hidden_state)

        def network(noisy: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Any:
            return unet.apply({"params": params}, noisy, t, context)

        losses = denoising_losses(
            schedule, network, batch["latents"], key, snr_gamma=snr_gamma, timestep_power=timestep_power
        )
        return jnp.mean(losses), {}

    return loss_fn


def _initial(
    module: Any, network: Mapping[str, Any], key: Key[Array, ""], init_from: str, mesh: Mesh, rules: Rules
) -> Any:
    """Weights to begin with, where they lie on a mesh: drawn, or those of a trained UNet of the same shape.

    Raises:
        ValueError: that UNet has another config.
    """
    if init_from:
        # Each device is given what it will hold of a leaf, and no host reads more than its devices need.
        before = load_component(
            init_from, "unet", shardings=lambda path, shape: shard_leaf(mesh, path, shape, rules)
        )
        differs = [k for k, v in network.items() if before.config.get(k) != v]
        if differs:
            raise ValueError(f"the UNet in {init_from} differs in {', '.join(sorted(differs))}")
        return before.params
    side = network["sample_size"]
    blank = jnp.zeros((1, side, side, network["in_channels"]))
    context = jnp.zeros((1, 1, network["cross_attention_dim"]))

    def init(key: Key[Array, ""]) -> Any:
        params = module.init(key, blank, 0.0, context)["params"]
        # The first prediction is zero: the loss begins at the variance of its target.
        return params | {"conv_out": jax.tree.map(jnp.zeros_like, params["conv_out"])}

    # No device is ever given more than its part.
    return jax.jit(init, out_shardings=shard_state(mesh, jax.eval_shape(init, key), rules))(key)
