"""The measurements of a linen UNet for both JAX peers, which differ in the network and its layout alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from benchmark import families
from benchmark.peers.measure import LEARNING_RATE, WEIGHT_DECAY, Spec, host_peak_bytes, measure, measure_peak


class Network(NamedTuple):
    """A UNet, in one of its variants.

    Attributes:
        variant: name of the variant.
        abstract: shapes of the parameters.
        latent_shape: of one picture's latents, without the batch.
        prepare: parameters -> what ``forward`` reads, made once for many calls of inference.
        forward: (prepared, latents, timesteps [B], context) -> prediction.
        train_forward: the same from bare parameters, differentiable.
        sample: (prepared, noise [1, ...], context [2, T, D], steps) -> latents.
    """

    variant: str
    abstract: Any
    latent_shape: tuple[int, ...]
    prepare: Callable
    forward: Callable
    train_forward: Callable
    sample: Callable


def compute_dtype(spec: Spec) -> DTypeLike:
    """What networks compute in."""
    return getattr(jnp, spec.dtype)


def random_params(abstract: Any, dtype: DTypeLike = jnp.float32) -> Any:
    """Weights that keep activations of order 1; an initializer would take longer than the measurement."""
    random = np.random.default_rng(0)

    def leaf(path: tuple, value: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if len(value.shape) < 2:
            return jnp.full(value.shape, float(name == "scale"), dtype)
        bound = np.float32((3 / np.prod(value.shape[:-1])) ** 0.5)
        return jnp.asarray((2 * random.random(value.shape, np.float32) - 1) * bound, dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def peak_bytes() -> int:
    """The most memory held so far: the GPU's, or this process's on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or host_peak_bytes()


def peak(spec: Spec) -> None:
    """Speed of a large matrix product in the compute type."""
    side = 16384 if spec.device == "gpu" else 4096
    x = jnp.full((side, side), 0.5, compute_dtype(spec))
    product = jax.jit(lambda a, b: a @ b)
    measure_peak(lambda: product(x, x).block_until_ready(), 2 * side**3)


def inputs(spec: Spec, latent_shape: tuple[int, ...], batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Latents, timesteps and context of a batch."""
    random = np.random.default_rng(1)
    context = (batch, 77, families.UNET[spec.family]["cross_attention_dim"])
    latents = random.standard_normal((batch, *latent_shape), np.float32)
    return (
        jnp.asarray(latents),
        jnp.full((batch,), 501, jnp.int32),
        jnp.asarray(random.standard_normal(context, np.float32)),
    )


def inference(spec: Spec, net: Network) -> None:
    """Time a forward pass of two pictures, as guidance makes it, and a whole sampling run of one."""
    variables = jax.block_until_ready(net.prepare(random_params(net.abstract, compute_dtype(spec))))
    latents, timesteps, context = inputs(spec, net.latent_shape, 2)
    if "forward" in spec.what:
        timed(spec, "forward", net.variant, net.forward, variables, latents, timesteps, context)
    if "sample" in spec.what:

        def sample(variables: Any, noise: jax.Array, context: jax.Array) -> jax.Array:
            return net.sample(variables, noise, context, spec.steps)

        timed(spec, "sample", net.variant, sample, variables, latents[:1], context)


def timed(spec: Spec, task: str, variant: str, function: Callable, *args: Any) -> None:
    """Compile a function ahead of time and measure it."""
    compiled: list[Callable] = []

    def warm_up() -> None:
        compiled.append(jax.jit(function).lower(*args).compile())
        if task != "sample":
            jax.block_until_ready(compiled[0](*args))

    measure(spec, task, warm_up, lambda: jax.block_until_ready(compiled[0](*args)), variant, peak_bytes)


def train(spec: Spec, net: Network, task: str = "train", parts: Callable | None = None) -> None:
    """Time a step of AdamW on the squared error of one picture, float32 masters.

    Args:
        spec: what is measured.
        net: the network. Of a task with ``parts`` its ``train_forward`` is given both of them.
        task: its name.
        parts: parameters -> (what is trained, what is frozen); None where all are trained.
    """
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    latents, timesteps, context = inputs(spec, net.latent_shape, 1)
    target = latents[::-1] * 0.5

    def step(params: Any, state: Any, frozen: tuple) -> tuple[Any, Any, jax.Array]:
        def loss_of(params: Any) -> jax.Array:
            prediction = net.train_forward(params, *frozen, latents, timesteps, context)
            return jnp.square(prediction.astype(jnp.float32) - target).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state: dict[str, Any] = {}

    def warm_up() -> None:
        params, state["frozen"] = random_params(net.abstract), ()
        if parts:
            params, *state["frozen"] = parts(params)
        state["params"], state["optimizer"] = params, jax.jit(optimizer.init)(params)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        state["step"] = jitted.lower(params, state["optimizer"], state["frozen"]).compile()
        del params
        call()

    def call() -> None:
        params, optimizer_state = state.pop("params"), state.pop("optimizer")
        state["params"], state["optimizer"], loss = state["step"](params, optimizer_state, state["frozen"])
        if not np.isfinite(loss):
            raise ValueError(f"the loss of {spec.peer} is {loss}")
        jax.block_until_ready(state["params"])

    measure(spec, task, warm_up, call, net.variant, peak_bytes)


def decode(spec: Spec, variant: str, abstract: Any, latent_shape: tuple[int, ...], forward: Callable) -> None:
    """Time the VAE's decoding of one picture's latents."""
    params = random_params(abstract, compute_dtype(spec))
    latents, _, _ = inputs(spec, latent_shape, 1)
    timed(spec, "decode", variant, forward, params, latents)
