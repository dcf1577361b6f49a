"""Classifier-free guidance: one prediction from those with and without the condition."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attrjax.diffusion.schedule import MAX_TIMESTEP

Denoise = Callable[[Float[Array, "b ..."], Float[Array, ""], Int[Array, ""]], Float[Array, "b ..."]]


def guide(
    both: Float[Array, "bb ..."],
    scale: float | Float[Array, ""] | Float[Array, "b"],
    rescale: float | Float[Array, ""] | Float[Array, "b"] = 0.0,
) -> Float[Array, "b ..."]:
    """Guided prediction, float32 (Ho & Salimans 2022, in the form where scale 1 is the condition alone).

    Args:
        both: [2B, ...] predictions, first B without the condition (or with the negative prompt), then B with
            it.
        scale: how far to go from the first to the second, one number or one per example.
        rescale: in [0, 1]: how much of the growth of the prediction's standard deviation is taken back (Lin
            et al. 2023, §3.4); one number or one per example.
    """
    without, given = jnp.split(both.astype(jnp.float32), 2)
    scale = _per_example(scale, given)
    # At 1 exactly the condition, which the sum is only up to rounding.
    guided = jnp.where(scale == 1, given, without + scale * (given - without))
    if isinstance(rescale, int | float) and rescale == 0:
        return guided
    axes = tuple(range(1, given.ndim))
    ratio = given.std(axes, keepdims=True, ddof=1) / guided.std(axes, keepdims=True, ddof=1)
    rescale = _per_example(rescale, given)
    # At 0 exactly as it was, whatever the ratio.
    return jnp.where(rescale == 0, guided, guided * (rescale * ratio + (1 - rescale)))


def classifier_free(
    denoise_both: Denoise,
    scale: float | Float[Array, ""] | Float[Array, "b"],
    rescale: float | Float[Array, ""] | Float[Array, "b"] = 0.0,
    interval: tuple[int, int] | Float[Array, " 2"] | None = None,
) -> Denoise:
    """Makes a sampler's `denoise` of a model that is called with both conditions in one batch.

    A negative prompt is nothing but another unconditional context.

    Args:
        denoise_both: (x [2B, ...], t, i) -> predictions [2B, ...]; it puts the contexts in as [without;
            with].
        scale: as in `guide`.
        rescale: as in `guide`.
        interval: timesteps [low, high) outside of which the condition alone counts (Kynkäänniemi et al. 2024,
            section 3, in timesteps); None for all.
    """

    def denoise(x, t, i):
        there = scale
        if interval is not None:
            there = jnp.where((interval[0] <= t) & (t < interval[1]), jnp.asarray(scale), 1.0)
        return guide(denoise_both(jnp.concatenate([x, x]), t, i), there, rescale)

    return denoise


def check_guidance(interval: Sequence[int], rescale: float) -> tuple[int, int]:
    """Timesteps [low, high) at which guidance acts.

    Raises:
        ValueError: they are none, or ``guidance_rescale`` is no share.
    """
    low, high = interval
    if not 0 <= low < high <= MAX_TIMESTEP:
        raise ValueError(
            f"guidance_interval=({low}, {high}) must be (low, high) with 0 <= low < high <= {MAX_TIMESTEP}"
        )
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale={rescale} must be from 0 to 1")
    return low, high


def _per_example(value: float | Array, like: Array) -> Array:
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value
