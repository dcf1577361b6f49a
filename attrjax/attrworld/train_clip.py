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

from attrjax.attrworld import looks, shapes
from attrjax.attrworld.batches import INIT, captioned_at, rendered
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.fit import begin, fit
from attrjax.checkpoints.pipeline import (
    Component,
    build_network,
    load_tokenizer,
    save_component,
    save_tokenizer,
)
from attrjax.models.clip_vision import preprocess
from attrjax.runs import plain, write_record

# exp(scale) is at most this, as in CLIP.
LARGEST_SCALE = 100.0
MEASURED = 1000
# Logits of an embedding of length 1 and a classifier's column of length 1 reach this.
HEAD_SCALE = 16.0
FAMILIES = {"shape": len(shapes.FAMILIES), "material": len(looks.FAMILIES)}


def clip(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train both towers and write them to ``workdir/text_encoder`` and ``workdir/image_encoder``.

    The loss is CLIP's (Radford et al. 2021, figure 3): in a batch of n pictures and captions, which caption
    belongs to which picture, and the reverse. A batch is a grid of shapes and materials, for in batches at
    random material and backdrop tell nearly all pictures apart, and the towers learn to see nothing else. For
    the same reason classifiers are to find the families in each tower's embeddings. Words are learned long
    before shapes in pictures, and the contrast alone makes the text tower forget what pictures do not yet
    answer, so that its weight is the larger one.

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

    def embed(params: Any, batch: dict[str, Any]) -> tuple[Float[Array, "n p"], Float[Array, "n p"]]:
        pixels = preprocess((rendered(batch["scene"], size).picture + 1) / 2, vision.image_size)
        images: Any = vision.apply({"params": params["vision"]}, pixels)
        texts: Any = text.apply({"params": params["text"]}, batch["tokens"])
        return unit(images.image_embeds), unit(texts.text_embeds)

    def loss_fn(
        params: Any, batch: dict[str, Any], _: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        images, texts = embed(params, batch)
        scale = jnp.minimum(jnp.exp(params["scale"]), LARGEST_SCALE)
        logits = scale * images @ texts.T
        right = jnp.arange(len(logits))
        chosen = [jax.nn.log_softmax(logits, axis)[right, right] for axis in (0, 1)]
        metrics = {"found": jnp.mean(jnp.argmax(logits, 1) == right), "scale": scale}
        loss = -jnp.mean(chosen[0] + chosen[1]) / 2
        for name in FAMILIES:
            for tower, embeds in (("image", images), ("text", texts)):
                known = f"{name}_in_{tower}"
                entropy, metrics[known] = classified(embeds, params[known], batch[name])
                loss = loss + config[f"family_weight_{tower}"] * entropy
        return loss, metrics

    keys = jax.random.split(jax.random.fold_in(root, INIT), 2)
    blank = jnp.zeros((1, vision.image_size, vision.image_size, 3))
    params = {
        "text": jax.jit(text.init)(keys[0], jnp.zeros((1, 4), jnp.int32))["params"],
        "vision": jax.jit(vision.init)(keys[1], blank)["params"],
        "scale": jnp.log(jnp.float32(14.0)),
        **{
            f"{name}_in_{tower}": jnp.zeros((vision_config["projection_dim"], count))
            for name, count in FAMILIES.items()
            for tower in ("image", "text")
        },
    }
    batch_at = captioned_at(root, config["rows"], config["columns"], tokenizer)
    trained = fit(config, directory, root, params, loss_fn, batch_at)
    if trained is None:
        return
    # Batches after the last step's are of scenes that it was not trained on.
    among = config["rows"] * config["columns"]
    measured = jax.jit(lambda params, batch: loss_fn(params, batch, root)[1])
    seen = [measured(trained, batch_at(config["steps"] + i)) for i in range(max(1, MEASURED // among))]
    results = {name: float(np.mean([metrics[name] for metrics in seen])) for name in seen[0]}
    save_component(directory / "text_encoder", "text_encoder", Component(text, trained["text"], text_config))
    save_component(
        directory / "image_encoder", "image_encoder", Component(vision, trained["vision"], vision_config)
    )
    save_tokenizer(directory / "tokenizer", tokenizer)
    write_record(directory, config, {"results": {"among": among, **results}})
    logging.info("among %d captions, and the families of both towers: %s", among, results)


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
