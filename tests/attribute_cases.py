"""Learned attributes to test with."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from attrjax.attributes.partition import rules_of, split
from attrjax.checkpoints.attribute import Attribute


def learned(pipeline, digest, word, part, rule="train", seed=0):
    """An attribute whose every number differs from the base's."""
    partition = split(pipeline.unet.params, rules_of(part, rule), jax.random.key(seed))
    generator = np.random.default_rng(seed)

    def moved(tree):
        flat = flatten_dict(tree, sep="/")
        return {k: np.asarray(v) + 0.2 * generator.standard_normal(v.shape) for k, v in flat.items()}

    width = pipeline.text_encoder.config["hidden_size"]
    return Attribute(
        attribute="shape",
        word=word,
        initial="at",
        base=digest,
        vectors=generator.standard_normal((2, width)).astype(np.float32),
        origin=generator.standard_normal(width).astype(np.float32),
        other=None if seed else generator.standard_normal((3, width)).astype(np.float32),
        weights=moved(partition.trainable),
        adapter=moved(partition.adapter),
        recipe={"steps": 3},
    )
