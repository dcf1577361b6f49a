"""The compiled programs that pictures are made with: encode, transformed, begun, denoise, decode.

On a mesh every device does, with rows of its own, what one device alone would do, and nothing crosses
devices. So a picture is the same however many there are, but for rounding: the compiler may fuse the program
of several devices otherwise than that of one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from attrjax.diffusion.course import Course, begin, follow
from attrjax.diffusion.guidance import classifier_free
from attrjax.diffusion.samplers import METHODS
from attrjax.models.convolution import prepare
from attrjax.models.stages import at_timestep
from attrjax.parallel.mesh import AXES

ROWS, COPIED = PartitionSpec(AXES), PartitionSpec()
# The axis of rows in each of what ``place`` puts on a mesh; noise that is added has evaluations before it.
_ROW_AXES = (0, 0, 1, 0, 0)
_PLACES = tuple(PartitionSpec(*(None,) * axis, AXES) for axis in _ROW_AXES)
_STATIC = ("unet", "sampler", "clip_range", "guided", "mesh")


def place(mesh: Mesh, inputs: Sequence[tuple]) -> tuple:
    """Put ``noise``, ``clean``, ``fresh``, ``context`` and ``added`` of a batch on a mesh.

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


@jax.jit
def transformed(variables: dict[str, Any], staged: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``winograd`` collections of both: kernels that are transformed once, and not in every step."""
    of_stages = jax.vmap(prepare)(staged["params"]) if "params" in staged else {}
    return prepare(variables.get("params", {})), of_stages


@functools.partial(jax.jit, static_argnames="sampler")
def begun(
    course: Course, noise: Float[Array, "b h w c"], clean: Float[Array, "b h w c"] | None, *, sampler: str
) -> tuple:
    """A sampler's state before its first step, its arrays divided as the noise is."""
    return METHODS[sampler].state(begin(course, noise, clean))


@functools.partial(jax.jit, static_argnames=_STATIC)
def denoise(
    variables: dict[str, Any],
    staged: dict[str, Any],
    lows: Int[Array, " stages-1"],
    state: tuple,
    fresh: Float[Array, "n b h w c"] | None,
    context: Float[Array, "bb t d"],
    added: dict[str, Array] | None,
    guidance: Float[Array, " 4"],
    course: Course,
    window: Int[Array, " 2"],
    *,
    unet: nn.Module,
    sampler: str,
    clip_range: float | None,
    guided: bool,
    mesh: Mesh | None = None,
) -> tuple:
    """The sampling run of a batch, or a part of it: one program for any number of steps and any beginning.

    Nothing in it calls the host, or it could not be kept in the cache of compiled programs.

    Args:
        variables, staged, lows: of ``models.stages.stacked``, with ``transformed`` where that is wanted.
        state: of ``begun``, or of the part before.
        fresh: noise that is added on the way.
        context, added: what the UNet reads besides; with guidance, the negative prompt's rows in front.
        guidance: its scale, the timesteps [low, high) at which it acts, and ``guidance_rescale``.
        course: of ``diffusion.course``, padded where nothing is added on the way.
        window: the first of its rows that is made, and the one behind the last.
        unet: the network.
        sampler, clip_range: of ``diffusion.samplers``.
        guided: whether there is guidance.
        mesh: where all rows lie as ``place`` puts them, and the weights are copied; None for one device.

    Returns:
        the state behind it, of which latents are the first part.
    """

    def on_a_device(variables, staged, lows, state, fresh, context, added, guidance, course, window):
        def predict(x, t, i):
            return unet.apply(at_timestep(t, variables, staged, lows), x, t, context, added_cond=added)

        if guided:
            predict = classifier_free(predict, guidance[0], guidance[3], guidance[1:3])
        step = METHODS[sampler].step(predict, clip_range)
        return follow(step, state, course, window=window, noise=fresh)[0]

    run: Callable[..., tuple] = on_a_device
    if mesh is not None:
        places = (COPIED, COPIED, COPIED, ROWS, *_PLACES[2:], COPIED, COPIED, COPIED)
        run = jax.shard_map(on_a_device, mesh=mesh, in_specs=places, out_specs=ROWS, check_vma=False)
    return run(variables, staged, lows, state, fresh, context, added, guidance, course, window)


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
