"""The task ``clip``: the bundled base's text and image encoders, trained together on captioned pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, Float, Int, Key

from attrjax.attrworld.batches import DATA, INIT, NAMES, NOISE, captioned_at, rendered, told_at
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.render import Rendered
from attrjax.checkpoints.pipeline import (
    Component,
    build_network,
    load_tokenizer,
    save_component,
    save_tokenizer,
)
from attrjax.fit import begin, fit
from attrjax.models.clip_vision import patch_states, preprocess
from attrjax.parallel.start import together
from attrjax.runs import plain, write_record

# exp(scale) is at most this, as in CLIP.
LARGEST_SCALE = 100.0
MEASURED = 1000  # examples
# Logits of an embedding of length 1 and a classifier's column of length 1 reach this.
HEAD_SCALE = 16.0
PROJECTION = "text_projection"
# What the run's key is folded with for its two halves.
READING, CONTRAST = (1 + max(DATA, NOISE, INIT) + i for i in range(2))


def clip(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train both towers and write them to ``workdir/text_encoder`` and ``workdir/image_encoder``.

    The text tower is first taught to read: classifiers are to find in its embedding what a caption tells.
    Then its transformer is locked, and the image tower and both projections learn CLIP's contrast (Radford et
    al. 2021, figure 3; with a locked tower it is that of Zhai et al. 2022, LiT, with the roles exchanged): in
    a batch of n pictures and captions, which caption belongs to which picture, and the reverse. Contrast
    alone does not teach this text tower to read: words are learned long before shapes in pictures, and what
    pictures do not answer yet is forgotten. A batch is a grid of shapes and materials, for in batches at
    random material and backdrop tell nearly all pictures apart, and the image tower learns to see nothing
    else; for the same reason classifiers are to find the families in its embeddings too. And every patch's
    state, where attribute filters read it, is to tell outline and depth within the patch: captions alone
    teach a tower this small next to nothing about shapes in the steps that a CPU affords.

    Raises:
        ValueError, FileExistsError: the config does not fit itself, or the run that the directory holds.
    """
    directory, root = begin(config, workdir, resume)
    tokenizer = load_tokenizer(Path(config["tokenizer"] or BASE / "tokenizer"))
    text_config = plain(config["text"]) | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config, size = plain(config["vision"]), config["size"]
    text, _ = build_network("text_encoder", text_config, "CLIPTextModelWithProjection")
    vision, _ = build_network("image_encoder", vision_config, "CLIPVisionModelWithProjection")
    width = vision_config["projection_dim"]
    keys = jax.random.split(jax.random.fold_in(root, INIT), 2)

    def read(params: Any, tokens: Int[Array, "n t"]) -> Float[Array, "n p"]:
        texts: Any = text.apply({"params": params}, tokens)
        return unit(texts.text_embeds)

    def reading_loss(
        params: Any, batch: dict[str, Any], _: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        embeds = read(params["text"], batch["tokens"])
        entropies, metrics = _all_classified(embeds, params["heads"], batch)
        return sum(entropies.values(), start=jnp.float32(0)), metrics

    reading = {**plain(config), **plain(config["reading"])}
    begun = {
        "text": jax.jit(text.init)(keys[0], jnp.zeros((1, 4), jnp.int32))["params"],
        "heads": {name: jnp.zeros((width, len(known))) for name, known in NAMES.items()},
    }
    key = jax.random.fold_in(root, READING)
    told = told_at(key, reading["batch_size"], tokenizer)
    params = fit(reading, directory / "reading", key, begun, reading_loss, told)
    if params is None:
        return
    read_by = {name: float(value) for name, value in _measured(reading_loss, params, told, reading).items()}
    logging.info("of fresh captions the text tower tells: %s", read_by)
    locked = {name: leaf for name, leaf in params["text"].items() if name != PROJECTION}

    def contrast_loss(
        params: Any, batch: dict[str, Any], _: Key[Array, ""], frozen: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        world = rendered(batch["scene"], size)
        pixels = preprocess((world.picture + 1) / 2, vision.image_size)
        seen: Any = vision.apply({"params": params["vision"]}, pixels)
        images = unit(seen.image_embeds)
        texts = read({**jax.lax.stop_gradient(frozen), PROJECTION: params[PROJECTION]}, batch["tokens"])
        scale = jnp.minimum(jnp.exp(params["scale"]), LARGEST_SCALE)
        logits = scale * images @ texts.T
        right = jnp.arange(len(logits))
        chosen = [jax.nn.log_softmax(logits, axis)[right, right] for axis in (0, 1)]
        entropies, metrics = _all_classified(images, params["heads"], batch)
        loss = -jnp.mean(chosen[0] + chosen[1]) / 2
        loss = loss + config["family_weight"] * sum(entropies.values(), start=jnp.float32(0))
        wanted = relief_of_patches(world, vision.image_size // vision.patch_size)
        told = jax.nn.standardize(patch_states(seen)) @ params["relief"]["kernel"] + params["relief"]["bias"]
        relief = jnp.mean((told - wanted) ** 2) / jnp.mean(wanted**2)
        loss = loss + config["relief_weight"] * relief
        metrics["relief"] = relief
        return loss, {"found": jnp.mean(jnp.argmax(logits, 1) == right), "scale": scale, **metrics}

    blank = jnp.zeros((1, vision.image_size, vision.image_size, 3))
    told = 2 * (size // (vision.image_size // vision.patch_size)) ** 2  # of a patch: outline and depth
    begun = {
        "relief": {"kernel": jnp.zeros((vision.hidden_size, told)), "bias": jnp.zeros(told)},
        "vision": jax.jit(vision.init)(keys[1], blank)["params"],
        PROJECTION: params["text"][PROJECTION],
        "scale": jnp.log(jnp.float32(14.0)),
        "heads": {name: jnp.zeros((width, len(NAMES[name]))) for name in ("shape", "material")},
    }
    key = jax.random.fold_in(root, CONTRAST)
    pairs = captioned_at(key, config["rows"], config["columns"], tokenizer)
    params = fit(config, directory / "contrast", key, begun, contrast_loss, pairs, frozen=locked)
    if params is None:
        return
    found = {
        name: float(value) for name, value in _measured(contrast_loss, params, pairs, config, locked).items()
    }
    towers = {
        "text_encoder": Component(text, {**locked, PROJECTION: params[PROJECTION]}, text_config),
        "image_encoder": Component(vision, params["vision"], vision_config),
    }
    among = config["rows"] * config["columns"]
    if jax.process_index() == 0:
        for name, tower in towers.items():
            save_component(directory / name, name, tower)
        save_tokenizer(directory / "tokenizer", tokenizer)
        write_record(directory, config, {"results": {"reading": read_by, "among": among, "contrast": found}})
    together("written")
    logging.info("among %d captions, and the families of pictures: %s", among, found)


def relief_of_patches(seen: Rendered, side: int) -> Float[Array, "n p v"]:
    """Outline and depth within each of side x side patches, row by row.

    The outline is the mask less a half; depth is the object's, about its mean, in thirds of a unit of the
    world, and 0 beside it.

    Args:
        seen: pictures with a leading axis, of a size that ``side`` divides.
        side: patches along a side.
    """
    mean = (seen.mask * seen.depth).sum((1, 2), keepdims=True) / (seen.mask.sum((1, 2), keepdims=True) + 1e-3)
    both = jnp.stack([seen.mask - 0.5, seen.mask * jnp.clip(3 * (seen.depth - mean), -2, 2)], -1)
    n, size = both.shape[:2]
    patch = size // side
    patches = both.reshape(n, side, patch, side, patch, 2).swapaxes(2, 3)
    return patches.reshape(n, side * side, -1)


def _all_classified(
    embeds: Float[Array, "n p"], heads: Mapping[str, Float[Array, "p families"]], batch: Mapping[str, Array]
) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
    both = {name: classified(embeds, head, batch[name]) for name, head in heads.items()}
    return {name: pair[0] for name, pair in both.items()}, {name: pair[1] for name, pair in both.items()}


def _measured(
    loss_fn: Any, params: Any, batch_at: Any, config: Mapping[str, Any], *frozen: Any
) -> dict[str, Float[np.ndarray, ""]]:
    """A loss's metrics on some thousand examples, of batches after the last that was trained on."""
    measure = jax.jit(lambda batch: loss_fn(params, batch, jax.random.key(0), *frozen)[1])
    first = measure(batch_at(config["steps"]))
    among = len(batch_at(config["steps"])["tokens"])
    more = [measure(batch_at(config["steps"] + i)) for i in range(1, max(1, MEASURED // among))]
    return {name: np.mean([metrics[name] for metrics in (first, *more)]) for name in first}


def classified(
    embeds: Float[Array, "n p"], head: Float[Array, "p families"], family: Int[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the families of embeddings of length 1, and the share that is found; -1 has none."""
    logits = HEAD_SCALE * embeds @ head
    named = family >= 0
    count = jnp.maximum(named.sum(), 1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(family, 0))
    return (entropy * named).sum() / count, ((logits.argmax(-1) == family) & named).sum() / count


def unit(x: Float[Array, "n p"]) -> Float[Array, "n p"]:
    """Vectors of length 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
