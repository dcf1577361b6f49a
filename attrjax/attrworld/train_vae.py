"""The task ``vae``: the bundled base's autoencoder, trained on pictures that are rendered as it trains."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Key

from attrjax.attrworld.batches import INIT, rendered, scenes_at, slices, squared_error_to_psnr
from attrjax.attrworld.render import Scene
from attrjax.attrworld.scenes import draw_scenes, generator_of
from attrjax.checkpoints.pipeline import Component, build_network, load_component, save_component
from attrjax.data.pictures import png_bytes, to_uint8
from attrjax.fit import begin, fit, layout_of
from attrjax.parallel.mesh import on_host, shard_leaf
from attrjax.parallel.start import together
from attrjax.report.grid import labelled_grid
from attrjax.runs import plain, write_record, write_whole
from attrjax.training import TrainState

MEASURED = 512  # pictures that the scaling factor and the reconstruction are measured on


def vae(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train the autoencoder and write it to ``workdir/vae`` in diffusers layout.

    The loss is the squared and the absolute error of the picture, and the divergence of the latents from a
    normal distribution (Rombach et al. 2022, section 3.1, without its adversary). The scaling factor is
    measured at the end, or kept where the decoder alone is trained: denoisers of these latents stay right.

    Raises:
        ValueError, FileExistsError: the config does not fit itself, or the run that the directory holds.
    """
    if config["decoder_only"] and not config["init_from"]:
        raise ValueError("decoder_only needs init_from, a trained autoencoder whose encoder stays")
    directory, root = begin(config, workdir, resume)
    network, size = plain(config["network"]), config["size"]
    module, _ = build_network("vae", network)

    def loss_fn(
        params: Any, scenes: Scene, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        picture = rendered(scenes, size).picture
        moments: Any = module.apply({"params": params}, picture, method="encode")
        latents = moments.sample(key)
        if config["decoder_only"]:
            # The gradient of the encoder is zero then, and Adam leaves it as it is.
            latents, moments = jax.lax.stop_gradient((latents, moments))
        made: Any = module.apply({"params": params}, latents, method="decode")
        squared, absolute = jnp.mean((made - picture) ** 2), jnp.mean(jnp.abs(made - picture))
        kl = jnp.mean(moments.kl()) / picture[0].size
        loss = squared + config["l1_weight"] * absolute + config["kl_weight"] * kl
        return loss, {"psnr": squared_error_to_psnr(squared), "kl": kl, "latent_std": moments.mean.std()}

    # Scenes that no step draws, for what is shown and measured.
    generator = generator_of(jax.random.fold_in(root, MEASURED))
    held = draw_scenes(generator, MEASURED).scene

    @jax.jit
    def reconstruct(params: Any, scenes: Scene):
        picture = rendered(scenes, size).picture
        moments: Any = module.apply({"params": params}, picture, method="encode")
        latents = moments.mode()
        return picture, latents, module.apply({"params": params}, latents, method="decode")

    def show(step: int, state: TrainState) -> None:
        picture, _, made = reconstruct(on_host(state.ema), jax.tree.map(lambda leaf: leaf[:8], held))
        table = [list(to_uint8(np.asarray(row))) for row in (picture, made)]
        grid = labelled_grid(table, ["rendered", "decoded"], [""] * 8, f"step {step}")
        if jax.process_index() == 0:
            write_whole(directory / "pictures" / f"step-{step:06d}.png", png_bytes(grid))

    if config["init_from"]:
        mesh, rules = layout_of(config)
        # Each device is given what it will hold of a leaf, and no host reads more than its devices need.
        params = load_component(
            config["init_from"], "vae", shardings=lambda path, shape: shard_leaf(mesh, path, shape, rules)
        ).params
    else:
        side = 2 ** (len(module.block_out_channels) - 1)
        blank = jnp.zeros((1, side, side, module.in_channels))
        params = jax.jit(module.init)(jax.random.fold_in(root, INIT), blank)["params"]
    batch_at, every = scenes_at(root, config["batch_size"]), (config["save_every"], show)
    trained = fit(config, directory, root, params, loss_fn, batch_at, every=every)
    if trained is None:
        return
    squared, latents = [], []
    for chunk in slices(held, 64):
        picture, latent, made = reconstruct(trained, chunk)
        squared.append(np.mean((np.asarray(made).clip(-1, 1) - picture) ** 2, axis=(1, 2, 3)))
        latents.append(latent)
    scale = 1 / float(np.concatenate(latents).std())
    if config["decoder_only"]:
        scale = load_component(config["init_from"], "vae").config["scaling_factor"]
    psnr = float(squared_error_to_psnr(jnp.concatenate(squared)).mean())
    network |= {"scaling_factor": scale, "sample_size": size}
    if jax.process_index() == 0:
        save_component(directory / "vae", "vae", Component(module, trained, network))
        write_record(directory, config, {"results": {"psnr": psnr, "scaling_factor": scale}})
    together("written")
    logging.info("reconstruction at %.2f dB, scaling factor %.4f; wrote %s", psnr, scale, directory / "vae")
