"""The demo and the contact sheet, small."""

import json

import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from attrjax.attrworld import bundled
from attrjax.attrworld.contact_sheet import (
    CATALOGUE,
    catalogue_scenes,
    contact_sheet,
    draw_combinations,
    render_all,
)
from attrjax.checkpoints.pipeline import REQUIRED, load_pipeline, save_pipeline
from attrjax.demo import demo
from attrjax.main import TASKS
from configs import demo as demo_config
from configs.attrworld import contact_sheet as contact_sheet_config
from tests.tiny import make_tiny_pipeline

PROMPTS = ["a red vase", "a vase made of wood", "a red mug", "a mug made of wood"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = demo_config.get_config()
    config.shapes, config.materials = ("vase", "mug"), ("red", "wood")
    config.steps, config.batch_size = 2, 4
    config.learn = ConfigDict()
    config.cache_dir = str(tmp_path_factory.mktemp("cache"))
    return config


@pytest.fixture(scope="module")
def finished(config, small_base, tmp_path_factory):
    """A run, with random weights in the bundled base's place."""
    workdir = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "BASE", small_base)
        demo(config, str(workdir))
    return workdir


def test_the_run_has_every_picture_and_a_page_with_them(finished):
    names = sorted(path.name for path in (finished / "samples").iterdir())
    assert names == sorted(f"{prompt.replace(' ', '-')}-0.png" for prompt in PROMPTS)
    assert Image.open(finished / "grid.png").width > 2 * 64
    record = json.loads((finished / "run.json").read_text())
    assert len(record["pictures"]) == 4 and {"load", "compile", "make"} <= record["timings"].keys()
    text = (finished / "index.html").read_text()
    assert text.count("<img ") == 4 and all(f'alt="{prompt}"' in text for prompt in PROMPTS)
    for label in ("vase", "mug", "red", "wooden"):
        assert f">{label}</th>" in text
    # That pair is held out of the bundled base's training.
    assert text.count('class="marked"') == 1 and "never saw the 1 outlined" in text
    assert "--config=configs/sample.py" in text and "unet" in text


def test_a_run_goes_on_with_what_it_lacks(finished, config, small_base, monkeypatch):
    monkeypatch.setattr(bundled, "BASE", small_base)
    with pytest.raises(FileExistsError, match="already holds a run"):
        demo(config, str(finished))
    path = finished / "samples" / "a-red-mug-0.png"
    before = path.read_bytes()
    path.unlink()
    demo(config, str(finished), resume=True)
    assert path.read_bytes() == before


def test_words_must_be_of_the_world(config, small_base, tmp_path):
    config = config.copy_and_resolve_references()
    config.base, config.shapes = str(small_base), ("vaze",)
    with pytest.raises(ValueError, match="did you mean 'vase'"):
        demo(config, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_no_base_is_the_bundled_one_where_that_is(small_base, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "BASE", small_base)
    assert bundled.base_or_bundled("") == str(small_base)
    assert bundled.base_or_bundled("org/name") == "org/name"
    monkeypatch.setattr(bundled, "BASE", tmp_path)
    with pytest.raises(ValueError, match="config.base is empty, and this copy of attrjax has no bundled"):
        bundled.base_or_bundled("")


def test_tasks_are_registered():
    assert TASKS["demo"] == "attrjax.demo" and demo_config.get_config().task == "demo"
    assert TASKS["contact_sheet"] == contact_sheet.__module__


def test_contact_sheets_are_written(tmp_path):
    config = contact_sheet_config.get_config()
    config.size, config.samples, config.cache_dir = 48, 1, ""
    contact_sheet(config, str(tmp_path))
    sizes = {name: Image.open(tmp_path / f"{name}.png").size for name in ("shapes", "materials", "world")}
    assert sizes["world"] == (12 * 48, 2 * 48)
    # Four rows of training families and two of held-out ones; labels are below.
    assert all(width > 7 * 48 and height > 6 * 48 for width, height in (sizes["shapes"], sizes["materials"]))


def test_each_object_is_in_the_middle_of_its_picture():
    shapes = ["key", "pagoda", "dumbbell"]
    scenes = catalogue_scenes(np.random.default_rng(0), shapes, ["red"] * 3, CATALOGUE)
    for mask in render_all(scenes, 48, 1).mask > 0.5:
        where = np.argwhere(mask)
        assert np.abs(where.min(0) + where.max(0) - 47).max() <= 4
        assert 0.5 < np.ptp(where, 0).max() / 48 < 0.9


def test_neighbours_in_the_banner_have_different_backdrops():
    shapes, materials, backdrops = draw_combinations(np.random.default_rng(0), 2, 12)
    assert len(set(shapes)) == len(set(materials)) == 24
    table = np.array(backdrops).reshape(2, 12, 3)
    assert (table[:, 1:] != table[:, :-1]).any(-1).all() and (table[0] != table[1]).any(-1).all()


@pytest.mark.parametrize(
    ("layout", "reason"),
    [("sd15", "has no image_encoder"), ("sdxl", "has two text encoders")],
)
def test_of_a_base_that_cannot_be_learned_of_the_pictures_alone_are_made(
    config, small_base, tmp_path, caplog, layout, reason
):
    if layout == "sdxl":
        make_tiny_pipeline(tmp_path / "base", layout)
    else:
        save_pipeline(tmp_path / "base", load_pipeline(small_base, components=REQUIRED))
    config = config.copy_and_resolve_references()
    config.base, config.shapes, config.materials = str(tmp_path / "base"), ("vase",), ("red",)
    config.learn = demo_config.get_config().learn
    logging.use_absl_handler()
    with caplog.at_level("INFO"):
        demo(config, str(tmp_path / "demo"))
    assert f"nothing is learned: {config.base} {reason}" in caplog.text
    text = (tmp_path / "demo/index.html").read_text()
    assert f"No attribute was learned: {config.base} {reason}" in text and text.count("<img ") == 1
    assert not (tmp_path / "demo/shape").exists()


def test_the_demo_learns_two_attributes_and_composes_them(config, small_base, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "BASE", small_base)
    config = config.copy_and_resolve_references()
    config.shapes, config.materials = ("vase",), ("red",)
    config.learn = demo_config.get_config().learn
    for run in config.learn.values():
        run.update({"initial": "at", "num_tokens": 1, "steps": 1, "batch_size": 1})
        run.cache_dir = config.cache_dir
        run.optimizer.warmup = 0
        run.prior.count = 0
        run.probe.update({"every": 1, "prompts": ("a {}",), "seeds": (0,), "steps": 2, "batch_size": 1})
    demo(config, str(tmp_path / "demo"))
    text = (tmp_path / "demo/index.html").read_text()
    assert text.count("<img ") == 1 + 2 + 4 * 4 + 4 * 4 + 2 * 4
    assert "a &lt;shape&gt; made of &lt;appearance&gt;" in text
    assert text.index("for its shape") < text.index("for its appearance")  # the page says first and second
    for name in ("shape", "appearance", "both"):
        assert (tmp_path / f"demo/{name}.png").is_file()
    for name in ("shape", "appearance"):
        assert (tmp_path / f"demo/{name}/index.html").is_file()
    # What is learned already stays as it is.
    before = (tmp_path / "demo/shape/attribute.safetensors").stat().st_mtime_ns
    demo(config, str(tmp_path / "demo"), resume=True)
    assert (tmp_path / "demo/shape/attribute.safetensors").stat().st_mtime_ns == before
