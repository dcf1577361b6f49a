"""The compiled programs that pictures are made with: encode, denoise, decode.

On a mesh every device does, with rows of its own, what one device alone would do, and nothing crosses
devices. So a picture is the same however many there are, but for rounding: the compiler may fuse the program
of several devices otherwise than that of one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from attrjax.diffusion.course import Course
from attrjax.diffusion.guidance import classifier_free
from attrjax.diffusion.samplers import sample_along
from attrjax.models.convolution import prepare
from attrjax.models.stages import at_timestep
from attrjax.parallel.mesh import AXES

ROWS, COPIED = PartitionSpec(AXES), PartitionSpec()
# The axis of rows in each of what ``place`` puts on a mesh; noise that is added has evaluations before it.
_ROW_AXES = (0, 0, 1, 0, 0)
_PLACES = tuple(PartitionSpec(*(None,) * axis, AXES) for axis in _ROW_AXES)
_STATIC = ("unet", "sampler", "clip_range", "guided", "on_step", "mesh")


def place(mesh: Mesh, inputs: Sequence[tuple]) -> tuple:
    """``noise``, ``clean``, ``fresh``, ``context`` and ``added`` of ``denoise`` on a mesh.

    Args:
        mesh: of this process's devices.
        inputs: what a single device would be given, for each of them.
    """
    placed = []
    for axis, where, *parts in zip(_ROW_AXES, _PLACES, *inputs, strict=True):

        def joined(*leaves: Array, axis: int = axis) -> np.ndarray:
            return np.concatenate([np.asarray(leaf) for leaf in leaves], axis=axis)

        placed.append(jax.device_put(jax.tree.map(joined, *parts), NamedSharding(mesh, where)))
    return tuple(placed)


@functools.partial(jax.jit, static_argnames=_STATIC)
def denoise(
    variables: dict[str, Any],
    staged: dict[str, Any],
    lows: Int[Array, " stages-1"],
    noise: Float[Array, "b h w c"],
    clean: Float[Array, "b h w c"] | None,
    fresh: Float[Array, "n b h w c"] | None,
    context: Float[Array, "bb t d"],
    added: dict[str, Array] | None,
    guidance: Float[Array, " 4"],
    course: Course,
    *,
    unet: nn.Module,
    sampler: str,
    clip_range: float | None,
    guided: bool,
    on_step: Callable[[int], None] | None,
    mesh: Mesh | None = None,
) -> Float[Array, "b h w c"]:
    """The whole sampling run of a batch as one program, the same for any number of steps and any beginning.

    Args:
        variables, staged, lows: of ``models.stages.stacked``.
        noise: to begin with, N(0, 1).
        clean: latents of an initial picture.
        fresh: noise that is added on the way.
        context, added: what the UNet reads besides; with guidance, the negative prompt's rows in front.
        guidance: its scale, the timesteps [low, high) at which it acts, and ``guidance_rescale``.
        course: of ``diffusion.course``, padded where nothing is added on the way.
        unet: the network.
        sampler, clip_range: of ``diffusion.samplers``.
        guided: whether there is guidance.
        on_step: called on the host after every step, on a mesh once for each device.
        mesh: where all rows lie as ``place`` puts them, and the weights are copied; None for one device.
    """

    def on_a_device(variables, staged, lows, noise, clean, fresh, context, added, guidance, course):
        if jax.default_backend() == "cpu" and unet.dtype == jnp.float32:
            # Transformed once for all steps, not in every step.
            variables = variables | {"winograd": prepare(variables.get("params", {}))}
            if "params" in staged:
                staged = staged | {"winograd": jax.vmap(prepare)(staged["params"])}

        def predict(x, t, i):
            return unet.apply(at_timestep(t, variables, staged, lows), x, t, context, added_cond=added)

        if guided:
            predict = classifier_free(predict, guidance[0], guidance[3], guidance[1:3])
        return sample_along(
            sampler, predict, noise, course, clip_range, clean=clean, noise=fresh, on_step=on_step
        )

    run: Callable[..., Any] = on_a_device
    if mesh is not None:
        places = (COPIED, COPIED, COPIED, *_PLACES, COPIED, COPIED)
        run = jax.shard_map(on_a_device, mesh=mesh, in_specs=places, out_specs=ROWS, check_vma=False)
    # Without a trajectory, always an array.
    latents: Any = run(variables, staged, lows, noise, clean, fresh, context, added, guidance, course)
    return latents


@functools.partial(jax.jit, static_argnames=("vae", "mesh"))
def decode(
    params: dict[str, Any], z: Float[Array, "n h w c"], *, vae: nn.Module, mesh: Mesh | None = None
) -> Float[Array, "n H W 3"]:
    """Pictures from unscaled latents: one, or one for each device of a mesh, which all have the weights."""

    def on_a_device(params, z):
        return vae.apply({"params": params}, z, method="decode")

    run: Callable[..., Any] = on_a_device
    if mesh is not None:
        run = jax.shard_map(on_a_device, mesh=mesh, in_specs=(COPIED, ROWS), out_specs=ROWS, check_vma=False)
    pictures: Any = run(params, z)  # linen types it with mutable variables
    return pictures


@functools.partial(jax.jit, static_argnames=("vae",))
def encode(params: dict[str, Any], picture: Float[Array, "1 H W 3"], *, vae: nn.Module):
    """The distribution of a picture's latents."""
    return vae.apply({"params": params}, picture, method="encode")
