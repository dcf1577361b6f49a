"""The task ``evaluate``: how good a base of the world is, as the judges see it.

Prompts name a shape and a material that no training picture has together (``scenes.unseen``). The judges say
whether they find the prompted shape and the prompted material; both are also measured on renders of the same
scenes, which is what a perfect base would reach. The Fréchet distance between features of made and rendered
pictures stands beside that between two sets of renders, its floor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.linalg
from absl import logging
from jaxtyping import Float, Int, UInt8
from PIL import Image

from attrjax.attrworld import looks, shapes
from attrjax.attrworld.batches import slices
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.captions import caption, prompt
from attrjax.attrworld.judges import (
    Judges,
    classify_appearance,
    classify_shape,
    embed_appearance,
    embed_shape,
    load_judges,
)
from attrjax.attrworld.render import render_batch
from attrjax.attrworld.scenes import Drawn, draw_scenes, generator_of, unseen
from attrjax.checkpoints.pipeline import Pipeline, load_pipeline
from attrjax.data.pictures import png_bytes, to_floats
from attrjax.data.prompts import text_encoder
from attrjax.fit import begin
from attrjax.generate import Job, Settings, make_pictures
from attrjax.models.vae import AutoencoderKL
from attrjax.report.grid import labelled_grid
from attrjax.runs import write_record, write_whole

AT_ONCE = 64  # scenes that are rendered at a time
# What the run's key is folded with.
PROMPTED, RENDERED, OTHERS, NATURAL = range(4)


def evaluate(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Measure the base, and write ``run.json`` and ``grid.png``, a part of the pictures.

    Raises:
        ValueError, FileExistsError: the config does not fit itself, or the run that the directory holds.
        FileNotFoundError: there is no base.
    """
    directory, root = begin(config, workdir, resume)
    pipeline = load_pipeline(config["base"] or BASE)
    judges = load_judges()
    settings = Settings(**{name: config[name] for name in ("sampler", "steps", "guidance", "batch_size")})

    pairs = unseen_pairs(config["prompts"])
    prompts = [prompt(*pair) for pair in pairs]
    made = make(pipeline, prompts, config["seed"], settings)
    results: dict[str, Any] = {"prompts": len(pairs), **found(judges, made, pairs, "made")}
    rendered = render_pairs(pairs, generator_of(jax.random.fold_in(root, RENDERED)))
    results |= found(judges, rendered, pairs, "rendered")

    # Captions as natural as in training, and pictures of what they were drawn from.
    generator = generator_of(jax.random.fold_in(root, NATURAL))
    drawn = draw_scenes(generator, config["captions"])
    captions = [caption(facts, generator) for facts in drawn.facts]
    natural = make(pipeline, captions, config["seed"] + len(pairs), settings)
    true = seen(drawn)
    other = seen(draw_scenes(generator_of(jax.random.fold_in(root, OTHERS)), config["captions"]))
    features = [both_embeddings(judges, pictures) for pictures in (natural, true, other)]
    results["frechet_distance"] = frechet_distance(features[0], features[1])
    results["frechet_distance_of_renders"] = frechet_distance(features[2], features[1])
    results["psnr_of_autoencoder"] = reconstruction(pipeline, true)
    results |= {f"{name}_share_of_context": share for name, share in context_shares(pipeline).items()}
    write_record(directory, config, {"results": results})

    grid = grid_of(pairs, made)
    write_whole(directory / "grid.png", png_bytes(grid))
    for name, value in results.items():
        logging.info("%-36s %.4g", name, value)


def unseen_pairs(count: int) -> list[tuple[str, str]]:
    """So many pairs of families of training that no training picture has, in turn."""
    pairs = [(s, m) for s in shapes.FAMILIES for m in looks.FAMILIES if unseen(s, m)]
    return [pairs[i % len(pairs)] for i in range(count)]


def grid_of(pairs: Sequence[tuple[str, str]], pictures: UInt8[np.ndarray, "n h w 3"]) -> Image.Image:
    """Pictures of the first pairs, one for each of up to six seeds."""
    places: dict[tuple[str, str], list[int]] = {}
    for i, pair in enumerate(pairs):
        places.setdefault(pair, []).append(i)
    columns = min(6, min(len(found) for found in places.values()))
    # Pairs from all over the list, so that several shapes are shown.
    shown = list(places)[:: max(1, len(places) // 12)][:12]
    table = [[pictures[i] for i in places[pair][:columns]] for pair in shown]
    rows = [prompt(*pair) for pair in shown]
    note = "pairs that no training picture has; a row for each prompt, a column for each seed"
    return labelled_grid(table, rows, [str(i) for i in range(columns)], note)


def make(
    pipeline: Pipeline, prompts: Sequence[str], seed: int, settings: Settings
) -> UInt8[np.ndarray, "n h w 3"]:
    """A picture of each prompt, each from its own seed, counted from ``seed``."""
    jobs = [Job(text, seed + i) for i, text in enumerate(prompts)]
    return np.stack(list(make_pictures(pipeline, jobs, settings)))


def seen(drawn: Drawn) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Scenes as pictures."""
    parts = [np.asarray(render_batch(some).picture) for some in slices(drawn.scene, AT_ONCE)]
    return np.round(255 * np.concatenate(parts)).astype(np.uint8)


def render_pairs(
    pairs: Sequence[tuple[str, str]], generator: np.random.Generator
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """A render of each pair, in a view at random."""
    names, materials = zip(*pairs, strict=True)
    return seen(draw_scenes(generator, len(pairs), shape_names=names, material_names=materials))


def found(
    judges: Judges, pictures: UInt8[np.ndarray, "n 64 64 3"], pairs: Sequence[tuple[str, str]], what: str
) -> dict[str, float]:
    """Shares of pictures in which the judges find the named shape, the named material, and both."""
    pictures = to_floats(pictures)
    wanted = [
        np.array([names.index(pair[i]) for pair in pairs])
        for i, names in enumerate((judges.shapes, judges.materials))
    ]
    right: list[Int[np.ndarray, " n"]] = [
        np.asarray(logits.argmax(-1) == target)
        for logits, target in zip(
            (classify_shape(judges, pictures), classify_appearance(judges, pictures)), wanted, strict=True
        )
    ]
    shares = {"shape": right[0], "material": right[1], "both": right[0] & right[1]}
    return {f"{name}_found_in_{what}": float(np.mean(share)) for name, share in shares.items()}


def context_shares(pipeline: Pipeline) -> dict[str, float]:
    """Of the variance of the context over all pairs of training families, the share of each attribute.

    A UNet cannot draw what its context does not tell. Prompts are those of ``captions.prompt``; the share of
    an attribute is the variance of its families' means, as in an analysis of variance.
    """
    kinds = tuple(shapes.FAMILIES), tuple(looks.FAMILIES)
    encode = text_encoder(pipeline)
    contexts = [encode([prompt(s, m) for m in kinds[1]]).context for s in kinds[0]]
    x = np.stack([np.asarray(context).reshape(len(kinds[1]), -1) for context in contexts])
    x = x - x.mean((0, 1))
    total = (x**2).sum(-1).mean()
    return {
        "shape": float((x.mean(1) ** 2).sum(-1).mean() / total),
        "material": float((x.mean(0) ** 2).sum(-1).mean() / total),
    }


def both_embeddings(judges: Judges, pictures: UInt8[np.ndarray, "n 64 64 3"]) -> Float[np.ndarray, "n d"]:
    """The judges' embeddings of a picture, side by side."""
    pictures = to_floats(pictures)
    return np.concatenate([embed_shape(judges, pictures), embed_appearance(judges, pictures)], -1)


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Fréchet distance between normal distributions of two sets of features (Heusel et al. 2017, eq. 6)."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = (np.cov(x.astype(np.float64), rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def reconstruction(pipeline: Pipeline, pictures: UInt8[np.ndarray, "n h w 3"]) -> float:
    """Mean PSNR in dB of pictures that the autoencoder encodes and decodes."""
    module, params = pipeline.vae.module, pipeline.vae.params
    assert isinstance(module, AutoencoderKL)
    through = jax.jit(lambda x: module.apply({"params": params}, x))
    values = []
    for some in slices(pictures, AT_ONCE):
        picture = to_floats(some)
        error = np.mean((np.clip(through(picture), -1, 1) - picture) ** 2, axis=(1, 2, 3))
        values.append(10 * np.log10(4 / error))
    return float(np.concatenate(values).mean())
