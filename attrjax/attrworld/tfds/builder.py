"""The builder: splits of named shapes in named materials, drawn and rendered a batch at a time.

    from attrjax.attrworld.tfds import Attrworld

    builder = Attrworld(data_dir="data")  # or config="pairs"
    builder.download_and_prepare()
    train = builder.as_data_source("train")  # train[0]["picture"]: uint8 [64, 64, 3]

Examples are stored in the order of their index, and each is a function of the seed, the split, the index and
the batch size: a larger build begins with the examples of a smaller one. Two builds on one machine are the
same bytes; another kind of device may round a pixel differently.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from attrjax.arguments import did_you_mean
from attrjax.attrworld import words
from attrjax.attrworld.captions import Facts, caption
from attrjax.attrworld.render import render_batch
from attrjax.attrworld.scenes import (
    BACKDROPS,
    LIGHTS,
    UNNAMED_MATERIALS,
    UNNAMED_SHAPES,
    Drawn,
    draw_scenes,
    unseen,
)
from attrjax.attrworld.sharing import ask

ATTRIBUTES = ("shape", "appearance")
# Depth is stored in steps of 1/1024, which costs half of what all its bits cost.
_DEPTH_STEPS = 1024


_TRAIN = tuple(itertools.product(words.TRAIN_SHAPES, words.TRAIN_MATERIALS))
# The combinations (shape, material) of every split. ``train`` also has unnamed shapes and materials in the
# place of some.
SPLITS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "train": tuple(pair for pair in _TRAIN if not unseen(*pair)),
    "validation": tuple(pair for pair in _TRAIN if unseen(*pair)),
    "held_out_shapes": tuple(itertools.product(words.HELD_OUT_SHAPES, words.TRAIN_MATERIALS)),
    "held_out_materials": tuple(itertools.product(words.TRAIN_SHAPES, words.HELD_OUT_MATERIALS)),
    "held_out_both": tuple(itertools.product(words.HELD_OUT_SHAPES, words.HELD_OUT_MATERIALS)),
}
_SIZES = {
    "train": 20_000,
    "validation": 2_000,
    "held_out_shapes": 2_000,
    "held_out_materials": 2_000,
    "held_out_both": 1_000,
}


@dataclasses.dataclass(eq=False)
class AttrworldConfig(tfds.core.BuilderConfig):
    """What is built.

    TFDS keeps what it built under a config's name: give other settings another name.

    Attributes:
        sizes: number of examples of each split; splits that are not named are not built.
        side: of the pictures, in pixels.
        seed: of all that is drawn.
        batch_size: scenes that are drawn and rendered at once. Part of what decides on an example.
        pairs: whether an example is two pictures that share one attribute alone.

    Raises:
        ValueError: a split is not known, or a number is not positive.
    """

    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(_SIZES))
    side: int = 64
    seed: int = 0
    batch_size: int = 64
    pairs: bool = False

    def __post_init__(self):
        for split, size in self.sizes.items():
            if split not in SPLITS:
                raise ValueError(f"there is no split {split!r}{did_you_mean(split, SPLITS)}")
            if size < 1:
                raise ValueError(f"the split {split!r} must have at least one example, not {size}")
        if not self.sizes or self.side < 1 or self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                "a config needs a split, a positive side and batch_size, and a seed of 0 or more, not "
                f"sizes={dict(self.sizes)}, side={self.side}, batch_size={self.batch_size}, seed={self.seed}"
            )


class Attrworld(tfds.core.GeneratorBasedBuilder):
    """Pictures of one object on a backdrop, with its mask, depth, caption and all that was drawn."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "The first.",
        "1.1.0": "Pairs have captions of their second picture in which {} stands for what they share.",
    }
    BUILDER_CONFIGS = [
        AttrworldConfig(name="scenes", description="Single pictures."),
        AttrworldConfig(
            name="pairs",
            description="Two pictures that share their shape or their appearance, and nothing else.",
            sizes={name: size // 2 for name, size in _SIZES.items()},
            pairs=True,
        ),
    ]

    def __init__(self, *, file_format: str | None = "array_record", **kwargs: Any):
        # TFDS's own default needs TensorFlow.
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                _pair_features(config) if config.pairs else _features(config)
            ),
            # Scenes are random already; so an example is found at its index.
            disable_shuffling=True,
            license="Apache-2.0",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in self.builder_config.sizes}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        make = _pair_examples if config.pairs else _examples
        for start in range(0, config.sizes[split], config.batch_size):
            for index, example in enumerate(make(config, split, start), start):
                # Batches are full, so that an example does not depend on how many follow.
                if index < config.sizes[split]:
                    yield index, example | {"seed": config.seed, "index": index}


def _features(config: AttrworldConfig) -> dict[str, Any]:
    side = config.side
    return {
        "picture": tfds.features.Image(shape=(side, side, 3), dtype=np.uint8, encoding_format="png"),
        "mask": tfds.features.Image(shape=(side, side, 1), dtype=np.uint8, encoding_format="png"),
        "depth": tfds.features.Tensor(shape=(side, side), dtype=np.float32, encoding="zlib"),
        "caption": tfds.features.Text(),
        "shape": tfds.features.Text(),
        "material": tfds.features.Text(),
        # -1 where it is unnamed.
        "shape_id": tfds.features.ClassLabel(names=list(words.SHAPES)),
        "material_id": tfds.features.ClassLabel(names=list(words.MATERIALS)),
        "pattern": tfds.features.Text(),
        "colours": tfds.features.Text(),
        "finish": tfds.features.Text(),
        "backdrop": tfds.features.Text(),
        "backdrop_id": tfds.features.ClassLabel(names=list(BACKDROPS)),
        "light": tfds.features.Text(),
        "light_id": tfds.features.ClassLabel(names=list(LIGHTS)),
        "view": tfds.features.Text(),
        "azimuth": np.float32,
        "elevation": np.float32,
        "seed": np.int64,
        "index": np.int64,
    }


def _pair_features(config: AttrworldConfig) -> dict[str, Any]:
    of_one = {
        name: feature for name, feature in _features(config).items() if name not in ("depth", "seed", "index")
    }
    both = {f"{name}_{which}": feature for which in "ab" for name, feature in of_one.items()}
    return both | {
        "attribute": tfds.features.ClassLabel(names=list(ATTRIBUTES)),
        # Of the second picture, with {} for the attribute, and with words for it.
        "asked": tfds.features.Text(),
        "told": tfds.features.Text(),
        "seed": np.int64,
        "index": np.int64,
    }


def _examples(config: AttrworldConfig, split: str, start: int) -> list[dict[str, Any]]:
    """A batch of examples from an index on."""
    generator = np.random.default_rng([config.seed, list(SPLITS).index(split), start])
    names = _names(config, split, start)
    if split == "train":
        unnamed = generator.random((config.batch_size, 2)) < (UNNAMED_SHAPES, UNNAMED_MATERIALS)
        names = [
            ("" if no_shape else shape, "" if no_material else material)
            for (shape, material), (no_shape, no_material) in zip(names, unnamed, strict=True)
        ]
    drawn = _drawn(generator, names)
    return _seen(config, drawn, generator)


def _pair_examples(config: AttrworldConfig, split: str, start: int) -> list[dict[str, Any]]:
    """A batch of pairs from an index on.

    The second picture of a pair has the very shape, or the very material, of the first and another family of
    the other attribute; camera, light and backdrop are drawn anew.
    """
    generator = np.random.default_rng([config.seed, list(SPLITS).index(split), start])
    first_names = _names(config, split, start)
    attributes = generator.integers(0, len(ATTRIBUTES), config.batch_size)
    second_names = [
        _partner(generator, split, pair, ATTRIBUTES[attribute])
        for pair, attribute in zip(first_names, attributes, strict=True)
    ]
    first, second = _drawn(generator, first_names), _drawn(generator, second_names)
    shape, material = (
        _where(attributes == i, getattr(first.scene, leaf), getattr(second.scene, leaf))
        for i, leaf in enumerate(("shape", "material"))
    )
    facts = [
        # The finish belongs to the material that was taken over.
        there._replace(finish=here.finish) if ATTRIBUTES[attribute] == "appearance" else there
        for here, there, attribute in zip(first.facts, second.facts, attributes, strict=True)
    ]
    second = Drawn(second.scene._replace(shape=shape, material=material), facts)
    seen = _seen(config, first, generator), _seen(config, second, generator)
    # With random numbers of their own, so that all else is as it was before there were these captions.
    forms = np.random.default_rng([config.seed, list(SPLITS).index(split), start, 1])
    captions = [
        ask(ATTRIBUTES[attribute], one, forms, "{}") for one, attribute in zip(facts, attributes, strict=True)
    ]
    return [
        {f"{name}_a": value for name, value in a.items() if name != "depth"}
        | {f"{name}_b": value for name, value in b.items() if name != "depth"}
        | {"attribute": ATTRIBUTES[attribute], "asked": asked, "told": told}
        for a, b, attribute, (asked, told) in zip(*seen, attributes, captions, strict=True)
    ]


def _names(config: AttrworldConfig, split: str, start: int) -> list[tuple[str, str]]:
    """Shape and material of a batch of indices: all combinations in a random order, again and again."""
    combinations = SPLITS[split]
    order = np.random.default_rng([config.seed, list(SPLITS).index(split)]).permutation(len(combinations))
    return [combinations[order[i % len(order)]] for i in range(start, start + config.batch_size)]


def _partner(
    generator: np.random.Generator, split: str, pair: tuple[str, str], attribute: str
) -> tuple[str, str]:
    """A combination of the same split that has one attribute of a pair's, and not the other."""
    shared = ATTRIBUTES.index(attribute)
    others = [other for other in SPLITS[split] if other[shared] == pair[shared] and other != pair]
    return others[generator.integers(len(others))]


def _drawn(generator: np.random.Generator, names: list[tuple[str, str]]) -> Drawn:
    shape_names, material_names = zip(*names, strict=True)
    return draw_scenes(generator, len(names), shape_names=shape_names, material_names=material_names)


def _where(chosen: np.ndarray, first: Any, second: Any) -> Any:
    """Rows of the first tree where chosen, else of the second."""

    def pick(a, b):
        return np.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, first, second)


def _seen(config: AttrworldConfig, drawn: Drawn, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Scenes, rendered and said."""
    rendered = render_batch(drawn.scene, size=config.side)
    pictures = np.rint(255 * np.asarray(rendered.picture)).astype(np.uint8)
    masks = np.rint(255 * np.asarray(rendered.mask)).astype(np.uint8)
    depths = (np.rint(np.asarray(rendered.depth) * _DEPTH_STEPS) / _DEPTH_STEPS).astype(np.float32)
    return [
        {
            # TFDS needs TensorFlow to encode an array, and not to encode a PIL image.
            "picture": Image.fromarray(pictures[i]),
            "mask": Image.fromarray(masks[i]),
            "depth": depths[i],
            "caption": caption(facts, generator),
            **_said(facts),
            "azimuth": drawn.scene.azimuth[i],
            "elevation": drawn.scene.elevation[i],
        }
        for i, facts in enumerate(drawn.facts)
    ]


def _said(facts: Facts) -> dict[str, Any]:
    return facts._asdict() | {
        "colours": ", ".join(facts.colours),
        "shape_id": facts.shape or -1,
        "material_id": facts.material or -1,
        "backdrop_id": facts.backdrop,
        "light_id": facts.light,
    }
