"""attrjax's side of ``benchmark.speed``: python -m benchmark.peers.attrjax_unet SPEC."""

import sys
from collections.abc import Callable
from typing import Any

from benchmark.peers import measure

SPEC = measure.begin(sys.argv[1])  # before JAX counts the cores

import jax  # noqa: E402
from jaxtyping import Array, Float, Int  # noqa: E402

from attrjax.attributes.partition import join, rules_of, split  # noqa: E402
from attrjax.checkpoints.pipeline import build_network  # noqa: E402
from attrjax.diffusion.guidance import classifier_free  # noqa: E402
from attrjax.diffusion.samplers import ddim  # noqa: E402
from attrjax.diffusion.schedule import schedule_from_config  # noqa: E402
from attrjax.models.adapters import bind  # noqa: E402
from attrjax.models.convolution import prepare  # noqa: E402
from benchmark import families  # noqa: E402
from benchmark.peers import jax_tools  # noqa: E402

CONFIG = families.UNET[SPEC.family]
UNET, ABSTRACT = build_network("unet", CONFIG, dtype=jax_tools.compute_dtype(SPEC))
SCHEDULE = schedule_from_config(
    measure.SCHEDULER | {"_class_name": "DDIMScheduler", "clip_sample": False}, "ddim"
)


def prepared(params: dict) -> dict:
    """Variables of inference: the parameters and, on a CPU in float32, the transformed kernels of 3x3
    convolutions.
    """
    transformed = SPEC.device == "cpu" and SPEC.dtype == "float32"
    return {"params": params} | ({"winograd": jax.jit(prepare)(params)} if transformed else {})


def train_forward(
    params: dict,
    latents: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
    context: Float[Array, "b t d"],
) -> Float[Array, "b h w c"]:
    """The network from its bare parameters."""
    return UNET.apply({"params": params}, latents, timesteps, context)


def tuned_forward(
    tuned: dict,
    frozen: dict,
    latents: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
    context: Float[Array, "b t d"],
) -> Float[Array, "b h w c"]:
    """The network from its parts, of ``parts_for``."""
    variables = {"params": join(tuned["unet"], frozen)}
    if tuned["adapter"]:
        variables["adapters"] = bind(tuned["adapter"])
    return UNET.apply(variables, latents, timesteps, context)


def parts_for(task: str) -> Callable[[dict], tuple[dict, dict]]:
    """What a task tunes of the parameters, in float32, and what it only reads, in the compute type."""

    def parts(params: dict) -> tuple[dict, dict]:
        found = split(params, rules_of(*measure.TUNED[task]), jax.random.key(0))
        dtype = jax_tools.compute_dtype(SPEC)
        frozen = jax.tree.map(lambda leaf: leaf.astype(dtype), found.frozen)
        return {"unet": found.trainable, "adapter": found.adapter}, frozen

    return parts


def sample(
    variables: dict, noise: Float[Array, "1 h w c"], context: Float[Array, "2 t d"], steps: int
) -> Float[Array, "1 h w c"]:
    """DDIM with guidance, both conditions in one batch."""

    def both(x: Array, t: Array, i: Array) -> Array:
        return UNET.apply(variables, x, t, context)

    return ddim(classifier_free(both, measure.GUIDANCE), noise, SCHEDULE, steps=steps)


def decode() -> None:
    """The VAE's decoder."""
    vae, abstract = build_network("vae", families.VAE[SPEC.family], dtype=jax_tools.compute_dtype(SPEC))

    def forward(params: Any, latents: Array) -> Array:
        return vae.apply({"params": params}, latents, method="decode")

    jax_tools.decode(SPEC, "default", abstract, (SPEC.size // 8, SPEC.size // 8, 4), forward)


if __name__ == "__main__":
    network = jax_tools.Network(
        variant="default",
        abstract=ABSTRACT,
        latent_shape=(SPEC.size // 8, SPEC.size // 8, CONFIG["in_channels"]),
        prepare=prepared,
        forward=UNET.apply,
        train_forward=train_forward,
        sample=sample,
    )
    jax_tools.peak(SPEC)
    jax_tools.inference(SPEC, network)
    if "decode" in SPEC.what:
        decode()
    if "train" in SPEC.what:
        jax_tools.train(SPEC, network)
    for task in measure.TUNED:
        if task in SPEC.what:
            jax_tools.train(SPEC, network._replace(train_forward=tuned_forward), task, parts_for(task))
