"""diffusers 0.39's Flax side of ``benchmark.speed``: python -m benchmark.peers.flax_unet SPEC.

Runs in an environment of its own (``flax_requirements.txt``): later releases have no Flax classes.
"""

import sys
from typing import Any

from benchmark.peers import measure

SPEC = measure.begin(sys.argv[1])  # before JAX counts the cores

import diffusers  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmark import families  # noqa: E402
from benchmark.peers import jax_tools  # noqa: E402

CONFIG = families.UNET[SPEC.family]
# What the Flax class has of the config; the rest is fixed in it at the values that SD 1.x uses.
KEYS = (
    *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
    *("layers_per_block", "attention_head_dim", "cross_attention_dim", "flip_sin_to_cos", "freq_shift"),
)


def network(split_head_dim: bool) -> jax_tools.Network:
    """The Flax UNet, NCHW as its callers see it, with one of its two ways to split heads."""
    unet = diffusers.FlaxUNet2DConditionModel(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG.items() if k in KEYS},
        sample_size=SPEC.size // 8,
        dtype=jax_tools.compute_dtype(SPEC),
        split_head_dim=split_head_dim,
    )

    def train_forward(params: Any, latents: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, latents, timesteps, context).sample

    def sample(params: Any, latents: jax.Array, context: jax.Array, steps: int) -> jax.Array:
        scheduler = diffusers.FlaxDDIMScheduler(**measure.SCHEDULER, clip_sample=False)
        state = scheduler.set_timesteps(scheduler.create_state(), steps, latents.shape)

        def step(i: jax.Array, carry: tuple) -> tuple:
            latents, state = carry
            t = jnp.asarray(state.timesteps, jnp.int32)[i]
            both = scheduler.scale_model_input(state, jnp.concatenate([latents] * 2), t)
            without, given = jnp.split(train_forward(params, both, jnp.broadcast_to(t, 2), context), 2)
            guided = without + measure.GUIDANCE * (given - without)
            latents, state = scheduler.step(state, guided, t, latents).to_tuple()
            return latents, state

        return jax.lax.fori_loop(0, steps, step, (latents * state.init_noise_sigma, state))[0]

    return jax_tools.Network(
        variant="split_head_dim" if split_head_dim else "default",
        abstract=jax.eval_shape(lambda: unet.init_weights(jax.random.key(0))),
        latent_shape=(CONFIG["in_channels"], SPEC.size // 8, SPEC.size // 8),
        prepare=lambda params: params,
        forward=train_forward,
        train_forward=train_forward,
        sample=sample,
    )


def decode() -> None:
    """The VAE's decoder."""
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in families.VAE[SPEC.family].items()}
    vae = diffusers.FlaxAutoencoderKL(**config, dtype=jax_tools.compute_dtype(SPEC))
    abstract = jax.eval_shape(lambda: vae.init_weights(jax.random.key(0)))

    def forward(params: Any, latents: jax.Array) -> jax.Array:
        return vae.apply({"params": params}, latents, method=vae.decode).sample

    jax_tools.decode(SPEC, "default", abstract, (4, SPEC.size // 8, SPEC.size // 8), forward)


if __name__ == "__main__":
    for split in (False, True):
        jax_tools.inference(SPEC, network(split))
    if "decode" in SPEC.what:
        decode()
    if "train" in SPEC.what:
        for split in (False, True):
            jax_tools.train(SPEC, network(split))
