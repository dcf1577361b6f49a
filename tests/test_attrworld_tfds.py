"""The world as a TFDS data set: a tiny one is built, twice, and read back; TensorFlow is never imported."""

import re
import sys
from pathlib import Path

import grain
import jax
import numpy as np
import pytest

from attrjax.attributes.amortized import filters
from attrjax.attributes.conditioning import new_word
from attrjax.attributes.stored import Pairs, open_pairs, stored_at
from attrjax.attrworld import words
from attrjax.attrworld.scenes import unseen
from attrjax.attrworld.tfds import SPLITS, Attrworld, AttrworldConfig
from attrjax.attrworld.tfds.builder import ATTRIBUTES
from attrjax.checkpoints.filter import load_filter
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.data.prompts import tokenize
from configs.attrworld import filters as filters_config

SIDE = 16
SIZES = {"train": 40, "validation": 8, "held_out_shapes": 8, "held_out_materials": 8, "held_out_both": 8}
ALL_BUT_TRAIN = [name for name in SIZES if name != "train"]


def build(directory, *, sizes=SIZES, **settings):
    # All builds here render 8 scenes of one size: one program, compiled once.
    config = AttrworldConfig(name="tiny", sizes=sizes, side=SIDE, batch_size=8, **settings)
    builder = Attrworld(data_dir=directory, config=config)
    builder.download_and_prepare()
    return builder


def rows(builder, split):
    source = builder.as_data_source(split)
    return [source[i] for i in range(len(source))]


def text(row, name):
    return row[name].decode()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def built(directory):
    builder = build(directory)
    return {split: rows(builder, split) for split in SIZES}


@pytest.fixture(scope="module")
def pair_builder(tmp_path_factory):
    sizes = {"train": 16, "validation": 8, "held_out_both": 8}
    return build(tmp_path_factory.mktemp("pairs"), sizes=sizes, pairs=True)


@pytest.fixture(scope="module")
def pairs(pair_builder):
    return {split: rows(pair_builder, split) for split in pair_builder.info.splits}


def test_it_is_built_and_read_without_tensorflow(built):
    assert {split: len(of) for split, of in built.items()} == SIZES
    assert "tensorflow" not in sys.modules


def test_an_example_has_a_picture_its_mask_its_depth_and_its_facts(built):
    for split, of in built.items():
        for i, row in enumerate(of):
            assert row["index"] == i and row["seed"] == 0
            assert row["picture"].shape == (SIDE, SIDE, 3) and row["picture"].dtype == np.uint8
            assert row["mask"].shape == (SIDE, SIDE, 1) and row["mask"].dtype == np.uint8
            assert row["depth"].shape == (SIDE, SIDE) and row["depth"].dtype == np.float32
            assert row["mask"].min() == 0 and row["mask"].max() == 255, (split, i)
            inside = row["depth"][row["mask"][..., 0] == 255]
            assert 4.3 < inside.min() and inside.max() < 7.7  # a ball of radius 1.55 in a distance of 6
            assert text(row, "backdrop") == words.BACKDROPS[row["backdrop_id"]]
            assert abs(row["azimuth"]) <= 0.55 and 0.08 <= row["elevation"] <= 0.6
            assert (text(row, "view") == "above") == (row["elevation"] > 0.35)


def test_ids_are_those_of_names_and_unnamed_ones_are_said_by_their_pattern(built):
    for row in (row for of in built.values() for row in of):
        for what, names in (("shape", list(words.SHAPES)), ("material", list(words.MATERIALS))):
            name, identity = text(row, what), row[f"{what}_id"]
            assert (name == "") == (identity == -1) and (name == "" or names[identity] == name)
        unnamed = text(row, "material") == ""
        colours = [c for c in text(row, "colours").split(", ") if c]
        assert (text(row, "pattern") in words.PATTERNS) == unnamed == bool(colours)
        assert set(colours) <= set(words.COLOURS)


def test_splits_hold_what_they_promise(built):
    kinds = {
        "train": (words.TRAIN_SHAPES, words.TRAIN_MATERIALS),
        "validation": (words.TRAIN_SHAPES, words.TRAIN_MATERIALS),
        "held_out_shapes": (words.HELD_OUT_SHAPES, words.TRAIN_MATERIALS),
        "held_out_materials": (words.TRAIN_SHAPES, words.HELD_OUT_MATERIALS),
        "held_out_both": (words.HELD_OUT_SHAPES, words.HELD_OUT_MATERIALS),
    }
    for split, (shapes, materials) in kinds.items():
        unnamed = {""} if split == "train" else set()
        assert {text(row, "shape") for row in built[split]} <= set(shapes) | unnamed
        assert {text(row, "material") for row in built[split]} <= set(materials) | unnamed
    for split, held in (("train", False), ("validation", True)):
        for row in built[split]:
            if text(row, "shape") and text(row, "material"):
                assert unseen(text(row, "shape"), text(row, "material")) == held
    assert {text(row, "shape") for row in built["train"]} >= {""}
    assert {text(row, "material") for row in built["train"]} >= {""}


def test_the_combinations_of_splits_are_disjoint_and_every_family_is_in_each():
    seen = [set(combinations) for combinations in SPLITS.values()]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert sum(map(len, seen)) == len(words.SHAPES) * len(words.MATERIALS)
    for split in ("train", "validation"):
        shapes, materials = zip(*SPLITS[split], strict=True)
        assert set(shapes) == set(words.TRAIN_SHAPES) and set(materials) == set(words.TRAIN_MATERIALS)
        # No family is much rarer than another.
        for names in (shapes, materials):
            counts = [names.count(name) for name in set(names)]
            assert max(counts) - min(counts) <= 1


def test_captions_name_what_is_there_and_nothing_that_is_held_out(built):
    nouns = {name: set(forms) for name, forms in words.SHAPES.items()}
    sayings = {name: set(a.after) | set(a.before) for name, a in words.MATERIALS.items()}

    def names(caption, forms):
        return any(re.search(rf"\b{re.escape(form)}\b", caption) for form in forms)

    held_out = [(n, nouns[n]) for n in words.HELD_OUT_SHAPES]
    held_out += [(n, sayings[n]) for n in words.HELD_OUT_MATERIALS]
    for split, of in built.items():
        for row in of:
            said = text(row, "caption")
            own = {text(row, "shape"), text(row, "material")}
            for name, forms in held_out:
                assert name in own or not names(said, forms), (split, name, said)
    # Most captions say the family of each attribute.
    of = [row for split in ALL_BUT_TRAIN for row in built[split]]
    assert np.mean([names(text(row, "caption"), nouns[text(row, "shape")]) for row in of]) > 0.7
    assert np.mean([names(text(row, "caption"), sayings[text(row, "material")]) for row in of]) > 0.7


def test_two_builds_are_the_same_bytes_and_a_larger_one_begins_with_a_smaller(built, directory, tmp_path):
    again = build(tmp_path / "again")
    for first in sorted((directory / "attrworld/tiny/1.0.0").glob("*.array_record*")):
        second = tmp_path / "again/attrworld/tiny/1.0.0" / first.name
        assert first.read_bytes() == second.read_bytes(), first.name
    assert again.info.splits["train"].num_examples == 40
    small = rows(build(tmp_path / "small", sizes={"train": 11}), "train")
    for here, there in zip(small, built["train"][:11], strict=True):
        for name, value in here.items():
            np.testing.assert_array_equal(value, there[name])


def test_another_seed_makes_another_set(built, tmp_path):
    other = rows(build(tmp_path, sizes={"train": 8}, seed=1), "train")
    assert all(row["seed"] == 1 for row in other)
    assert not any((a["picture"] == b["picture"]).all() for a, b in zip(other, built["train"], strict=False))


def test_pairs_share_one_attribute_and_not_the_other(pairs):
    kinds = set()
    for split, of in pairs.items():
        for row in of:
            shared = ("shape", "material")[row["attribute"]]
            other = ("material", "shape")[row["attribute"]]
            kinds.add(shared)
            assert text(row, f"{shared}_a") == text(row, f"{shared}_b")
            assert text(row, f"{other}_a") != text(row, f"{other}_b")
            assert (row["picture_a"] != row["picture_b"]).any()
            for which in "ab":
                assert (text(row, f"shape_{which}"), text(row, f"material_{which}")) in SPLITS[split]
    assert kinds == {"shape", "material"}


def test_pairs_have_captions_in_which_what_they_share_is_left_open(pairs):
    for of in pairs.values():
        for row in of:
            asked, told = text(row, "asked"), text(row, "told")
            assert asked.count("{}") == 1 and "{}" not in told
            # All else is said in the same words.
            left = set(re.findall(r"[a-z0-9]+", asked)) - {"a", "an", "made", "of"}
            assert left <= set(re.findall(r"[a-z0-9]+", told))


def test_filters_are_trained_on_pairs_that_are_stored(pair_builder, smallest_base, tmp_path, monkeypatch):
    pipeline = load_pipeline(smallest_base)
    word = new_word(pipeline, "<shape>", "at", 2, "placeholder")
    source = open_pairs(str(pair_builder.data_path), "train")
    batch_at = stored_at(jax.random.key(0), source, 6, "shape", word, 77, 24)
    batch = batch_at(3)
    jax.tree.map(np.testing.assert_array_equal, batch, batch_at(3))
    assert batch["seen"].picture.shape == (6, 24, 24, 3) and batch["made"].mask.shape == (6, 24, 24)
    assert -1 <= batch["seen"].picture.min() < 0 < batch["seen"].picture.max() <= 1
    assert 0 <= batch["seen"].mask.min() < 0.1 and 0.9 < batch["seen"].mask.max() <= 1
    shared = [text(row, "told") for row in source.rows if ATTRIBUTES[row["attribute"]] == "shape"]
    said = [tokenize(word.tokenizer, [one], 77)[0].tolist() for one in shared]
    assert all(ids in said for ids in batch["told"].tolist()) and batch["named"].all()
    assert all(sum(word.ids[0] == ids) == 1 for ids in batch["asked"])
    halves = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        halves.append(stored_at(jax.random.key(0), source, 6, "shape", word, 77, 24)(3))
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda *x: np.concatenate(x), *halves))

    config = filters_config.get_config("attribute=shape")
    config.update({"base": str(smallest_base), "dataset": str(pair_builder.data_path), "batch_size": 2})
    config.update({"num_tokens": 2, "initial": "at", "steps": 2, "log_every": 1, "cache_dir": ""})
    config.optimizer.warmup = 1
    filters(config, str(tmp_path / "run"))
    assert load_filter(tmp_path / "run/shape.safetensors").num_tokens == 2
    config.split = "held_out_shapes"
    with pytest.raises(ValueError, match="no examples in a split 'held_out_shapes', only in train"):
        filters(config, str(tmp_path / "other"))
    config.dataset = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no data set"):
        filters(config, str(tmp_path / "none"))
    assert not (tmp_path / "other").exists() and not (tmp_path / "none").exists()


def test_an_epoch_has_each_pair_once_and_the_next_another_order(smallest_base):
    word = new_word(load_pipeline(smallest_base), "<shape>", "at", 2, "placeholder")
    white = np.full((8, 8, 3), 255, np.uint8)
    rows = [
        {"picture_a": white, "picture_b": white // 20 * i, "asked": "a {}", "told": f"{i}"} for i in range(12)
    ]
    batch_at = stored_at(
        jax.random.key(0), Pairs(Path(), grain.MapDataset.source(rows), ()), 4, "shape", word, 77, 8
    )
    read = [batch_at(step)["made"].picture[:, 0, 0, 0].tolist() for step in range(6)]
    first, second = sum(read[:3], []), sum(read[3:], [])
    assert sorted(first) == sorted(second) == sorted({*first}) and len(first) == 12
    assert first != second
    other = stored_at(
        jax.random.key(1), Pairs(Path(), grain.MapDataset.source(rows), ()), 4, "shape", word, 77, 8
    )
    assert other(0)["made"].picture[:, 0, 0, 0].tolist() != read[0]


def test_rows_of_a_batch_are_different_pairs_of_the_attribute(smallest_base):
    word = new_word(load_pipeline(smallest_base), "<shape>", "at", 2, "placeholder")
    white = np.full((8, 8, 3), 255, np.uint8)
    rows = [
        {"picture_a": white, "picture_b": white // 250 * i, "asked": "a {}", "attribute": int(i % 4 == 0)}
        for i in range(200)
    ]
    batch_at = stored_at(
        jax.random.key(0),
        Pairs(Path(), grain.MapDataset.source(rows), ("appearance", "shape")),
        16,
        "shape",
        word,
        77,
        8,
    )
    for step in range(4):
        read = np.round((batch_at(step)["made"].picture[:, 0, 0, 0] + 1) * 127.5).astype(int)
        assert (read % 4 == 0).all() and len({*read.tolist()}) > 10  # some meet by chance


def test_a_data_set_without_the_fields_of_pairs_is_refused(directory, built):
    (path,) = directory.glob("**/dataset_info.json")
    with pytest.raises(ValueError, match="has no picture_a, picture_b, asked"):
        open_pairs(str(path.parent), "train")


def test_the_two_configs_that_users_get_are_of_full_size():
    by_name = {config.name: config for config in Attrworld.BUILDER_CONFIGS}
    assert by_name["scenes"].side == by_name["pairs"].side == 64
    assert by_name["scenes"].sizes["train"] == 20_000 and not by_name["scenes"].pairs
    assert by_name["pairs"].pairs and set(by_name["pairs"].sizes) == set(SPLITS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": {"trian": 1}}, "trian.*train"),
        ({"sizes": {"train": 0}}, "at least one"),
        ({"sizes": {}}, "a split"),
        ({"side": 0}, "side=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_a_config_that_cannot_be_built_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        AttrworldConfig(name="wrong", **settings)
