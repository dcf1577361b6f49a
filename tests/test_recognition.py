"""Filters that recognize an attribute without tuning: what they learn from, their files, and their use."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from attrjax.attributes.amortized import filters
from attrjax.attributes.customize import customize
from attrjax.attributes.probing import read_probes
from attrjax.attrworld.scenes import unseen
from attrjax.attrworld.sharing import draw_sharing
from attrjax.checkpoints.attribute import load_attribute
from attrjax.checkpoints.filter import load_filter, save_filter
from attrjax.sample import sample
from attrjax.sample_parts import other_said
from configs import sample as sample_config
from configs import shape
from configs.attrworld import filters as filters_config

SIZES = {"num_tokens": 2, "initial": "at"}


def leaves(tree):
    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], 1)


@pytest.mark.parametrize(
    ("attribute", "kept", "free"), [("shape", "shape", "material"), ("appearance", "material", "shape")]
)
def test_pairs_share_the_attribute_and_nothing_else(attribute, kept, free):
    drawn = draw_sharing(np.random.default_rng(0), 64, attribute, "<it>")
    first, second = drawn.seen, drawn.made
    np.testing.assert_array_equal(leaves(getattr(first, kept)), leaves(getattr(second, kept)))
    for name in (free, "azimuth", "light"):
        differs = leaves({name: getattr(first, name)}) != leaves({name: getattr(second, name)})
        assert differs.any(1).mean() > 0.8
    assert all(
        asked.count("<it>") == 1 and "<it>" not in told
        for asked, told in zip(drawn.asked, drawn.told, strict=True)
    )


def test_captions_of_pairs_differ_in_the_attribute_alone():
    drawn = draw_sharing(np.random.default_rng(1), 200, "shape", "<it>")
    for asked, told in zip(drawn.asked, drawn.told, strict=True):
        before, after = asked.split("<it>")
        assert told.endswith(after)
        bare = [word for word in before.split() if word not in ("a", "an")]
        assert [word for word in told.split() if word not in ("a", "an")][: len(bare)] == bare
    unnamed = [text for text, one in zip(drawn.told, drawn.facts, strict=True) if not one.shape]
    assert 0.05 < len(unnamed) / 200 < 0.3 and all("object" in text for text in unnamed)


def test_no_pair_is_held_out():
    for attribute in ("shape", "appearance"):
        facts = draw_sharing(np.random.default_rng(2), 512, attribute, "<it>").facts
        assert not any(unseen(one.shape, one.material) for one in facts)


@pytest.fixture(scope="module")
def trained(small_base, tmp_path_factory):
    """A base with filters of two steps, and the pictures and configs that go with it."""
    directory = tmp_path_factory.mktemp("filters")
    base = directory / "base"
    shutil.copytree(small_base, base)
    (base / "filters").mkdir()
    for attribute in ("shape", "appearance"):
        config = filters_config.get_config(f"attribute={attribute}")
        config.update(
            {"base": str(base), "batch_size": 2, "steps": 2, "save_every": 2, "log_every": 1} | SIZES
        )
        config.update({"cache_dir": str(directory / "jit"), "optimizer": {"warmup": 1}})
        filters(config, str(directory / attribute))
        name = f"{attribute}.safetensors"
        shutil.copy(directory / attribute / name, base / "filters" / name)
    return base


@pytest.fixture
def recognizing(trained, tmp_path):
    """A config that learns nothing but what the filter recognizes."""
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[20:44, 12:50] = (200, 60, 40)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(np.uint8(255 * (picture[..., 0] == 200))).save(tmp_path / "mask.png")
    config = shape.get_config()
    config.update({"base": str(trained), "reference": str(tmp_path / "picture.png"), "steps": 0})
    config.cache_dir = str(trained.parent / "jit")
    config.update({"mask": str(tmp_path / "mask.png")} | SIZES)
    config.probe.update({"prompts": ("a {}",), "seeds": (0,), "steps": 2, "batch_size": 1})
    return config


def test_a_filter_is_what_was_saved(trained, tmp_path):
    saved = load_filter(trained / "filters/shape.safetensors")
    assert (saved.attribute, saved.num_tokens, saved.initial) == ("shape", 2, "at")
    again = save_filter(tmp_path / "again.safetensors", saved)
    assert again.read_bytes() == (trained / "filters/shape.safetensors").read_bytes()


def test_an_attribute_is_recognized_without_tuning(recognizing, tmp_path):
    customize(recognizing, str(tmp_path / "run"))
    attribute = load_attribute(tmp_path / "run")
    assert not attribute.weights and not attribute.adapter
    assert np.abs(attribute.vectors - attribute.origin).max() > 0.01
    assert [one.step for one in read_probes(tmp_path / "run")] == [0]
    assert (tmp_path / "run/index.html").is_file()


def test_guidance_can_lead_away_from_the_other_attribute(recognizing, trained, tmp_path):
    customize(recognizing, str(tmp_path / "run"))
    config = sample_config.get_config()
    config.update({"base": str(trained), "steps": 2, "seeds": (0,), "guidance": 4.0})
    config.cache_dir = recognizing.cache_dir
    config.update({"prompts": ("a red <shape>",), "attributes": (str(tmp_path / "run"),)})
    sample(config, str(tmp_path / "toward"))
    config.negative_attributes = True
    assert other_said(load_attribute(tmp_path / "run")) == "an object made of <shape:appearance>"
    sample(config, str(tmp_path / "away"))
    pictures = [
        np.asarray(Image.open(next((tmp_path / name / "samples").glob("*.png")))).astype(int)
        for name in ("toward", "away")
    ]
    assert np.abs(pictures[0] - pictures[1]).max() > 1


def test_tuning_begins_with_what_is_recognized(recognizing, tmp_path):
    customize(recognizing, str(tmp_path / "recognized"))
    recognizing.update({"steps": 1, "batch_size": 1})
    recognizing.optimizer.update({"warmup": 0, "learning_rate": 1e-9})
    recognizing.prior.count = 0
    recognizing.probe.every = 1
    customize(recognizing, str(tmp_path / "tuned"))
    assert [one.step for one in read_probes(tmp_path / "tuned")] == [0, 1]
    vectors = [load_attribute(tmp_path / name).vectors for name in ("recognized", "tuned")]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-3)


def test_a_filter_of_another_base_or_kind_is_refused(recognizing, trained, tmp_path):
    saved = load_filter(trained / "filters/shape.safetensors")
    other = save_filter(tmp_path / "other.safetensors", saved._replace(base="0" * 64))
    recognizing.filter_weights = str(other)
    with pytest.raises(ValueError, match="was trained on a base with the digest 000000000000"):
        customize(recognizing, str(tmp_path / "run"))
    recognizing.filter_weights = str(trained / "filters/appearance.safetensors")
    with pytest.raises(ValueError, match="attribute='appearance'"):
        customize(recognizing, str(tmp_path / "run"))
    recognizing.update({"filter_weights": "base", "num_tokens": 3})
    with pytest.raises(ValueError, match="has no filter that recognizes"):
        customize(recognizing, str(tmp_path / "run"))
