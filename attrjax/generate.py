"""Pictures from prompts: encode, denoise, decode. For use from Python; ``sample.py`` is the command line's
side.

    pipeline = load_pipeline("DIRECTORY")
    pictures = generate(pipeline, ["a cat"], seeds=[0, 1], settings=Settings(steps=30))  # uint8 [2, H, W, 3]

A picture depends on its prompt, seed and settings, not on what else is made with it, nor, up to rounding, on
how many devices make pictures beside each other (``mesh=make_mesh()`` for all that there are).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from attrjax import programs
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.data.pictures import to_uint8
from attrjax.data.prompts import Encoded, encode_negative, text_encoder
from attrjax.diffusion.course import course_of, padded
from attrjax.diffusion.guidance import check_guidance
from attrjax.diffusion.samplers import is_stochastic
from attrjax.diffusion.schedule import MAX_TIMESTEP, Schedule, sampler_for, schedule_from_config
from attrjax.diffusion.steps import plan, start_index
from attrjax.models.stages import Stage, stacked
from attrjax.models.vae import scale_latents, tiled_decode, unscale_latents
from attrjax.parallel.mesh import local_mesh

# What a seed's key is folded with, so that no two uses of a seed share random numbers.
INITIAL_NOISE, STEP_NOISE, ENCODER_NOISE, PAINT = range(4)
# Latents of larger pictures are decoded in tiles of this side.
TILE = 128


class Settings(NamedTuple):
    """How pictures are made.

    Attributes:
        negative_prompt: what guidance leads away from.
        sampler: a key of ``SAMPLERS``, or "auto" for the one that the base's scheduler names.
        steps: sampling steps.
        guidance: scale of classifier-free guidance; 1 or less is none.
        guidance_rescale: in [0, 1], how much of guidance's contrast is taken back.
        guidance_interval: timesteps [low, high) at which guidance acts, 1000 is noise and 0 the picture.
        eta: in [0, 1], how much fresh noise DDIM adds.
        height, width: of the pictures in pixels; 0 for the size of the latents, or else that of the base.
        strength: in (0, 1], how much of an initial picture is made anew.
        batch_size: pictures at a time on each device; the last batch is filled up.
    """

    negative_prompt: str = ""
    sampler: str = "auto"
    steps: int = 30
    guidance: float = 7.5
    guidance_rescale: float = 0.0
    guidance_interval: tuple[int, int] = (0, MAX_TIMESTEP)
    eta: float = 0.0
    height: int = 0
    width: int = 0
    strength: float = 0.8
    batch_size: int = 1


class Job(NamedTuple):
    """One picture to be made: its prompt, its seed, and its initial noise [h, w, c] where that is given."""

    prompt: str
    seed: int
    latents: np.ndarray | None = None


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    settings: Settings = Settings(),  # noqa: B008 (a tuple, and immutable)
    *,
    latents: Float[np.ndarray, "n h w c"] | None = None,
    init_picture: Float[np.ndarray, "H W 3"] | None = None,
    adapters: Mapping[str, Any] | None = None,
    stages: Sequence[Stage] = (),
    mesh: Mesh | None = None,
    on_step: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "n H W 3"]:
    """Make a picture for every prompt and seed.

    Args:
        pipeline: as ``load_pipeline`` makes it.
        prompts, seeds: every prompt with every seed, in that order: n = len(prompts) * len(seeds).
        settings: how.
        latents: initial noise N(0, 1), one for each picture or one for each seed; drawn from the seed where
            absent.
        init_picture: in [-1, 1], to begin from (``settings.strength``).
        adapters: bound adapters by component (``models.adapters.bind``): unet, text_encoder, text_encoder_2.
        stages: the UNet's weights and adapters by timestep, from high to low, where they are not the same for
            all; the last goes down to 0.
        mesh: whose devices share the pictures out among themselves, ``settings.batch_size`` to each at a
            time; of several processes each calls for pictures of its own. None for the default device.
        on_step: called after each evaluation of the network for a batch, with its number in the run.

    Returns:
        the pictures.

    Raises:
        ValueError: sizes or shapes that do not fit, unknown samplers, a mesh that divides the base, and
            pictures that are not finite.
    """
    jobs = make_jobs(prompts, seeds, latents)
    made = make_pictures(
        pipeline,
        jobs,
        settings,
        init_picture=init_picture,
        adapters=adapters,
        stages=stages,
        mesh=mesh,
        on_step=on_step,
    )
    return np.stack(list(made))


def make_jobs(
    prompts: Sequence[str], seeds: Sequence[int], latents: Float[np.ndarray, "n h w c"] | None = None
) -> list[Job]:
    """Every prompt with every seed; latents are one for each of them, or one for each seed.

    Raises:
        ValueError: there is no prompt or seed, they are not of their type, or the latents do not fit them.
    """
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts must be at least one text, such as ('a cat',), not {tuple(prompts)!r}")
    if not seeds or not all(isinstance(seed, int | np.integer) and seed >= 0 for seed in seeds):
        raise ValueError(
            f"seeds must be at least one whole number from 0, such as (0, 1), not {tuple(seeds)!r}"
        )
    if len(set(seeds)) != len(seeds) or len(set(prompts)) != len(prompts):
        raise ValueError("a prompt or a seed is named twice: the same picture would be made twice")
    pairs = [(prompt, int(seed)) for prompt in prompts for seed in seeds]
    if latents is None:
        return [Job(*pair) for pair in pairs]
    if latents.ndim != 4 or len(latents) not in (len(pairs), len(seeds)):
        raise ValueError(
            f"latents have shape {list(latents.shape)}; they must be [n, height, width, channels] with "
            f"n = {len(pairs)} (prompts x seeds) or {len(seeds)} (seeds)"
        )
    return [Job(*pair, latents[i % len(latents)]) for i, pair in enumerate(pairs)]


def make_pictures(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    init_picture: Float[np.ndarray, "*n H W 3"] | None = None,
    adapters: Mapping[str, Any] | None = None,
    stages: Sequence[Stage] = (),
    mesh: Mesh | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """``generate`` for any list of jobs, a picture at a time; ``init_picture`` may be one for each."""
    if init_picture is not None and init_picture.ndim == 4 and len(init_picture) != len(jobs):
        raise ValueError(
            f"{len(init_picture)} initial pictures for {len(jobs)} pictures: give one, or one each"
        )
    mesh = None if mesh is None else devices_of(mesh)
    low, high = check_guidance(settings.guidance_interval, settings.guidance_rescale)
    sampler, schedule = choose_sampler(pipeline, settings)
    start = 0 if init_picture is None else start_index(settings.strength, settings.steps)
    evaluations = len(plan(schedule, settings.steps).timesteps)
    shape = latent_shape(pipeline, settings, jobs)
    with matmul_precision(pipeline):
        encode = text_encoder(pipeline, adapters)
        texts = {prompt: encode([prompt]) for prompt in dict.fromkeys(job.prompt for job in jobs)}
        negative = encode_negative(encode, settings.negative_prompt, pipeline.model_index)
        each = init_picture is not None and init_picture.ndim == 4
        pictures = [] if init_picture is None else list(init_picture) if each else [init_picture]
        moments = [_encode_picture(pipeline, picture, shape) for picture in pictures]
    stochastic = is_stochastic(sampler, settings.eta)
    from_clean = init_picture is not None
    course = course_of(schedule, steps=settings.steps, start=start, eta=settings.eta, from_clean=from_clean)
    counts = course.inputs["i"]
    # The whole run at once, or where somebody looks on, one evaluation after the other.
    windows = [(0, len(counts))] if on_step is None else [(row, row + 1) for row in range(len(counts))]
    course = course if stochastic else padded(course)
    sampling = {
        "unet": pipeline.unet.module,
        "sampler": sampler,
        "clip_range": schedule.clip_range,
        "guided": settings.guidance > 1,
    }
    if not stages:
        stages = [Stage(0, pipeline.unet.params, (adapters or {}).get("unet", {}))]
    variables, staged, lows = stacked(stages)
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        variables, staged, decoder = jax.device_put((variables, staged, pipeline.vae.params), everywhere)
        pipeline = pipeline._replace(vae=pipeline.vae._replace(params=decoder))
    if jax.default_backend() == "cpu" and pipeline.unet.module.dtype == jnp.float32:
        with matmul_precision(pipeline):
            kernels, of_stages = programs.transformed(variables, staged)
        variables, staged = variables | {"winograd": kernels}, staged | {"winograd": of_stages}
    guidance = np.asarray([settings.guidance, low, high, settings.guidance_rescale], np.float32)
    devices = 1 if mesh is None else mesh.size

    def begin(batch: Sequence[Job], places: Sequence[int]) -> tuple:
        """What one device reads of its pictures."""
        noise = np.stack([initial_noise(job, shape) for job in batch])
        fresh = clean = None
        if stochastic:
            fresh = jnp.stack([step_noise(job.seed, evaluations, shape) for job in batch], axis=1)
        if moments:
            own = [moments[place] if each else moments[0] for place in places]
            seen = zip(batch, own, strict=True)
            clean = jnp.concatenate([_clean_latents(pipeline, picture, job.seed) for job, picture in seen])
        text = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[texts[job.prompt] for job in batch])
        return noise, clean, fresh, *conditions(pipeline, text, negative, settings, shape[:2])

    for first in range(0, len(jobs), devices * settings.batch_size):
        batch = list(jobs[first : first + devices * settings.batch_size])
        filled = batch + batch[-1:] * (devices * settings.batch_size - len(batch))
        places = [min(first + i, len(jobs) - 1) for i in range(len(filled))]
        # Each device has a batch that one device alone would make, too.
        size = settings.batch_size
        own = [slice(i * size, (i + 1) * size) for i in range(devices)]
        inputs = [begin(filled[part], places[part]) for part in own]
        given = inputs[0] if mesh is None else programs.place(mesh, inputs)
        noise, clean, *read = given
        with matmul_precision(pipeline):
            state = programs.begun(course, noise, clean, sampler=sampler)
            for window in windows:
                own_rows = np.asarray(window, np.int32)
                state = programs.denoise(
                    variables, staged, lows, state, *read, guidance, course, own_rows, mesh=mesh, **sampling
                )
                if on_step is not None:
                    jax.block_until_ready(state)
                    on_step(int(counts[window[0]]))
            latents = state[0]
            if mesh is None:
                for i, job in enumerate(batch):
                    yield decode(pipeline, latents[i], job)
                continue
            parts = latents.reshape(devices, size, *shape)
            rows = [decode_all(pipeline, parts[:, row], filled[row::size], mesh) for row in range(size)]
            yield from [rows[i % size][i // size] for i in range(len(batch))]


def devices_of(mesh: Mesh) -> Mesh | None:
    """This process's part of a mesh, which makes pictures by itself; None where that is a single device.

    Raises:
        ValueError: the mesh divides the base.
    """
    if mesh.shape["fsdp"] > 1:
        raise ValueError(
            f"fsdp={mesh.shape['fsdp']} would divide the base, and devices that make pictures hold all of it "
            "each: --config.mesh.fsdp=1 --config.mesh.data=-1"
        )
    own = local_mesh(mesh)
    return own if own.size > 1 else None


def choose_sampler(pipeline: Pipeline, settings: Settings) -> tuple[str, Schedule]:
    """The sampler's name, and the base's schedule read for it."""
    sampler = sampler_for(pipeline.scheduler) if settings.sampler == "auto" else settings.sampler
    schedule = schedule_from_config(
        pipeline.scheduler, sampler, pipeline=pipeline.model_index.get("_class_name")
    )
    return sampler, schedule


def vae_factor(pipeline: Pipeline) -> int:
    """Pixels of a picture for one pixel of its latents, in each direction."""
    return 2 ** (len(pipeline.vae.module.block_out_channels) - 1)


def latent_shape(pipeline: Pipeline, settings: Settings, jobs: Sequence[Job]) -> tuple[int, int, int]:
    """Shape [h, w, c] of the latents, from the settings, else from given latents, else from the base.

    Raises:
        ValueError: a height or width that the VAE cannot make, given latents of another shape, or a base
            whose UNet reads more than latents.
    """
    factor, channels = vae_factor(pipeline), pipeline.vae.module.latent_channels
    if pipeline.unet.module.in_channels != channels:
        raise ValueError(
            f"the base's UNet reads {pipeline.unet.module.in_channels} channels, its VAE makes {channels}: "
            "bases for inpainting and upscaling are not supported"
        )
    default = pipeline.unet.config.get("sample_size") or 64
    sizes = [default, default] if isinstance(default, int) else list(default)
    given = [job.latents.shape for job in jobs if job.latents is not None]
    if given:
        sizes = list(given[0][:2])
    for axis, (name, pixels) in enumerate((("height", settings.height), ("width", settings.width))):
        if pixels < 0 or pixels % factor:
            nearest = max(1, round(pixels / factor)) * factor
            raise ValueError(f"{name}={pixels} must be a multiple of {factor}; the nearest is {nearest}")
        if pixels:
            sizes[axis] = pixels // factor
    shape = (sizes[0], sizes[1], channels)
    for other in given:
        if other != shape:
            raise ValueError(
                f"latents have shape {list(other)} each, and these pictures need {list(shape)}: "
                "[height, width, channels], channels last"
            )
    return shape


def initial_noise(job: Job, shape: tuple[int, int, int]) -> Float[np.ndarray, "h w c"]:
    """The noise that a job begins with: its own, or that of its seed."""
    if job.latents is not None:
        return np.asarray(job.latents, np.float32)
    key = jax.random.fold_in(jax.random.key(job.seed), INITIAL_NOISE)
    return np.asarray(jax.random.normal(key, shape))


def step_noise(seed: int, evaluations: int, shape: tuple[int, int, int]) -> Float[Array, "n h w c"]:
    """The noise that a stochastic sampler adds on its way."""
    key = jax.random.fold_in(jax.random.key(seed), STEP_NOISE)
    return jax.random.normal(key, (evaluations, *shape))


def conditions(
    pipeline: Pipeline, text: Encoded, negative: Encoded, settings: Settings, size: tuple[int, int]
) -> tuple[Float[Array, "bb t d"], dict[str, Array] | None]:
    """What the UNet reads besides latents and time; with guidance, the negative prompt's in front.

    SDXL also reads the pooled text, and sizes in pixels (Podell et al. 2023, §2.2): original height and
    width, top and left of the crop, target height and width. A picture asked for is its own original, not
    cropped.
    """
    batch = len(text.context)
    if settings.guidance > 1:
        text = jax.tree.map(lambda n, t: jnp.concatenate([jnp.repeat(n, batch, axis=0), t]), negative, text)
    if text.pooled is None:
        return text.context, None
    pixels = [side * vae_factor(pipeline) for side in size]
    sizes = jnp.asarray([*pixels, 0, 0, *pixels], jnp.float32)
    return text.context, {"text_embeds": text.pooled, "time_ids": jnp.tile(sizes, (len(text.context), 1))}


def decode(pipeline: Pipeline, latents: Float[Array, "h w c"], job: Job) -> UInt8[np.ndarray, "H W 3"]:
    """One picture from its latents; in tiles where it is large.

    Raises:
        ValueError: the picture is not finite.
    """
    return decode_all(pipeline, latents[None], [job], None)[0]


def decode_all(
    pipeline: Pipeline, latents: Float[Array, "n h w c"], jobs: Sequence[Job], mesh: Mesh | None
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Pictures from latents: one, or one for each device of a mesh.

    Raises:
        ValueError: a picture is not finite.
    """
    vae = pipeline.vae
    z = unscale_latents(latents.astype(jnp.float32), *latent_scale(pipeline))
    pictures = tiled_decode(
        lambda part: programs.decode(vae.params, part, vae=vae.module, mesh=mesh),
        z,
        tile=TILE,
        overlap=TILE // 4,
    )
    decoded = np.asarray(pictures, np.float32)
    for picture, job in zip(decoded, jobs, strict=True):
        if not np.isfinite(picture).all():
            raise ValueError(
                f"the picture of {job.prompt!r}, seed {job.seed}, is not finite: compute in bfloat16 or "
                "float32 rather than float16, or lower the guidance; else the base's weights are damaged"
            )
    return [to_uint8(picture) for picture in decoded]


def matmul_precision(pipeline: Pipeline):
    """float32 means float32: accelerators would otherwise multiply its mantissas in fewer bits."""
    float32 = pipeline.unet.module.dtype == jnp.float32
    return jax.default_matmul_precision("highest" if float32 else "default")


def _encode_picture(pipeline: Pipeline, picture: np.ndarray, shape: tuple[int, int, int]):
    factor = vae_factor(pipeline)
    if picture.shape != (shape[0] * factor, shape[1] * factor, 3):
        raise ValueError(
            f"the initial picture is {list(picture.shape)}, not [{shape[0] * factor}, {shape[1] * factor}, 3]"
        )
    return programs.encode(pipeline.vae.params, picture[None], vae=pipeline.vae.module)


def _clean_latents(pipeline: Pipeline, moments: Any, seed: int) -> Float[Array, "1 h w c"]:
    z = moments.sample(jax.random.fold_in(jax.random.key(seed), ENCODER_NOISE))
    return scale_latents(z.astype(jnp.float32), *latent_scale(pipeline))


def latent_scale(pipeline: Pipeline) -> tuple[float, float | None]:
    """The VAE's factor and shift; configs of Stable Diffusion 1.x do not name the factor."""
    return pipeline.vae.config.get("scaling_factor", 0.18215), pipeline.vae.config.get("shift_factor")
