"""The training objective, for ONE example: timesteps and losses are scalars, latents are [h, w, c].

`denoising_losses` is that of a batch. With x0 clean latents, eps ~ N(0, 1) and a_t = alphas_cumprod[t]:

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps
    v = sqrt(a_t) eps - sqrt(1 - a_t) x0
    SNR(t) = a_t / (1 - a_t)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attrjax.diffusion.schedule import Schedule

# A bound of timesteps, given or drawn.
Bound = int | Int[Array, ""]


def check_timesteps(schedule: Schedule, low: int, high: int) -> None:
    """Refuse a range of timesteps that a schedule does not have.

    Raises:
        ValueError: unless 0 <= low < high <= T.
    """
    count = schedule.num_train_timesteps
    if not 0 <= low < high <= count:
        raise ValueError(f"timestep range [{low}, {high}) is empty or outside [0, {count})")


def draw_timestep(
    key: Key[Array, ""], schedule: Schedule, low: Bound = 0, high: Bound | None = None, power: float = 1.0
) -> Int[Array, ""]:
    """A timestep in [low, high); by default in all of the schedule, each as often as any other.

    Args:
        key: of the draw.
        schedule: whose timesteps they are.
        low, high: where it may lie; None for the schedule's end. Drawn ones are within a range that was
            checked (``check_timesteps``).
        power: of the uniform number that is stretched over the range; at 2 half of the timesteps are in its
            lowest quarter, where detail is decided.

    Raises:
        ValueError: unless 0 <= low < high <= T and power > 0.
    """
    high = schedule.num_train_timesteps if high is None else high
    if not isinstance(low, jax.Array) and not isinstance(high, jax.Array):
        check_timesteps(schedule, low, high)
    if not power > 0:
        raise ValueError(f"timestep_power={power} must be more than 0: 1 draws every timestep as often")
    if power == 1:
        return jax.random.randint(key, (), low, high)
    # float32 rounds the largest numbers below 1 to 1 when they are raised to a small power.
    stretched = (high - low) * jax.random.uniform(key) ** power
    return low + jnp.minimum(stretched.astype(int), high - low - 1)


def draw_noise(
    key: Key[Array, ""], shape: tuple[int, int, int], offset: float = 0.0
) -> Float[Array, "h w c"]:
    """N(0, 1) noise; `offset` adds that much of one more draw per channel, the same at all places.

    Offset noise lets a model move the mean of a picture, which plain noise hardly hides (Guttenberg 2023).
    """
    everywhere, per_channel = jax.random.split(key)
    noise = jax.random.normal(everywhere, shape)
    return noise + offset * jax.random.normal(per_channel, (1, 1, shape[-1])) if offset else noise


def diffuse(
    schedule: Schedule, clean: Float[Array, "*s"], noise: Float[Array, "*s"], t: Int[Array, ""]
) -> Float[Array, "*s"]:
    """The forward process: x_t of x0 and eps (Ho et al. 2020, eq. 4)."""
    alpha = jnp.asarray(schedule.alphas_cumprod)[t]
    return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise


def target(
    schedule: Schedule, clean: Float[Array, "*s"], noise: Float[Array, "*s"], t: Int[Array, ""]
) -> Float[Array, "*s"]:
    """What the network is to output for x_t: noise, velocity (Salimans & Ho 2022, §4) or clean latents."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return clean
    alpha = jnp.asarray(schedule.alphas_cumprod)[t]
    return jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * clean


def signal_to_noise(schedule: Schedule, t: Int[Array, ""]) -> Float[Array, ""]:
    """SNR(t) = a_t / (1 - a_t)."""
    alpha = jnp.asarray(schedule.alphas_cumprod)[t]
    return alpha / (1 - alpha)


def min_snr_weight(schedule: Schedule, t: Int[Array, ""], gamma: float) -> Float[Array, ""]:
    """Min-SNR-gamma weight of the squared error at timestep t (Hang et al. 2023, §3.4).

    The loss on x0 is weighted with min(SNR, gamma). An epsilon loss is SNR times that loss and a velocity
    loss SNR + 1 times, which leaves min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1).
    """
    snr = signal_to_noise(schedule, t)
    if schedule.prediction_type == "epsilon":
        # Not min(snr, gamma) / snr, which is 0 / 0 where there is no signal at all.
        return gamma / jnp.maximum(snr, gamma)
    if schedule.prediction_type == "v_prediction":
        return jnp.minimum(snr, gamma) / (snr + 1)
    return jnp.minimum(snr, gamma)


def masked_mean_square(
    error: Float[Array, "h w c"], mask: Float[Array, "h w"] | None = None
) -> Float[Array, ""]:
    """Mean of error^2, weighted with a mask in [0, 1] at latent resolution.

    The sum is divided by the mask's own sum, so that a small object counts as much as a large one; where the
    mask is empty the loss is 0.
    """
    square = jnp.mean(jnp.square(error.astype(jnp.float32)), axis=-1)
    if mask is None:
        return jnp.mean(square)
    mask = mask.astype(jnp.float32)
    mass = jnp.sum(mask)
    return jnp.sum(mask * square) / jnp.where(mass > 0, mass, 1)


def denoising_loss(
    schedule: Schedule,
    prediction: Float[Array, "h w c"],
    clean: Float[Array, "h w c"],
    noise: Float[Array, "h w c"],
    t: Int[Array, ""],
    *,
    snr_gamma: float | None = None,
    mask: Float[Array, "h w"] | None = None,
) -> Float[Array, ""]:
    """The loss of one example, w(t) * |prediction - target|^2.

    Args:
        schedule: its prediction_type says what the target is.
        prediction: the network's output for `diffuse(schedule, clean, noise, t)`; compared in float32.
        clean: what that input was made of.
        noise: what was added to it.
        t: the timestep.
        snr_gamma: gamma of the min-SNR weight, 5 in the paper; None for weight 1.
        mask: where the error counts, as in `masked_mean_square`; None for everywhere.
    """
    error = prediction.astype(jnp.float32) - target(schedule, clean, noise, t)
    loss = masked_mean_square(error, mask)
    return loss if snr_gamma is None else min_snr_weight(schedule, t, snr_gamma) * loss


def denoising_losses(
    schedule: Schedule,
    network: Callable[[Float[Array, "b h w c"], Int[Array, " b"]], Float[Array, "b h w c"]],
    clean: Float[Array, "b h w c"],
    key: Key[Array, ""],
    *,
    timesteps: tuple[Bound, Bound | None] = (0, None),
    timestep_power: float = 1.0,
    offset_noise: float = 0.0,
    snr_gamma: float | None = None,
    mask: Float[Array, "b h w"] | None = None,
) -> Float[Array, " b"]:
    """The loss of each example of a batch, at a timestep and with noise of its own.

    Args:
        schedule: of the network.
        network: from noisy latents and timesteps to its prediction.
        clean: latents.
        key: of timesteps and noise.
        timesteps, timestep_power: bounds and power of `draw_timestep`.
        offset_noise: of `draw_noise`.
        snr_gamma, mask: of `denoising_loss`.
    """
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(clean)))
    _, height, width, channels = clean.shape
    t = jax.vmap(lambda k: draw_timestep(k, schedule, *timesteps, timestep_power))(keys[:, 0])
    noise = jax.vmap(lambda k: draw_noise(k, (height, width, channels), offset_noise))(keys[:, 1])
    noisy = jax.vmap(lambda c, n, s: diffuse(schedule, c, n, s))(clean, noise, t)
    return jax.vmap(lambda p, c, n, s, m: denoising_loss(schedule, p, c, n, s, snr_gamma=snr_gamma, mask=m))(
        network(noisy, t), clean, noise, t, mask
    )
