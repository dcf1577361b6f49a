"""From nothing to a base: every training task, tiny, through the command line's own entry."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from attrjax.attrworld import train_judges
from attrjax.attrworld.batches import captioned_at, scenes_at, told_at
from attrjax.attrworld.bundle import bundle
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.pool import pooled_at
from attrjax.attrworld.render import Rendered
from attrjax.attrworld.scenes import unseen
from attrjax.attrworld.sharing import sharing_at
from attrjax.attrworld.train_clip import clip, relief_of_patches
from attrjax.attrworld.train_unet import unet
from attrjax.attrworld.train_vae import vae
from attrjax.checkpoints.pipeline import load_component, load_pipeline, load_tokenizer
from configs.attrworld import bundle as bundle_config
from configs.attrworld import clip as clip_config
from configs.attrworld import judges as judges_config
from configs.attrworld import unet as unet_config
from configs.attrworld import vae as vae_config

TOKENIZER = str(BASE / "tokenizer")
SHORT = {"steps": 2, "log_every": 1, "save_every": 2, "cache_dir": "", "ema_decay": 0.5}


def short(config: ConfigDict, **changes) -> ConfigDict:
    config.update({**SHORT, **changes})
    config.optimizer.warmup = 1
    return config


def small_clip() -> ConfigDict:
    small = short(clip_config.get_config(), rows=2, columns=2, tokenizer=TOKENIZER)
    small.reading.update({"batch_size": 4, "steps": 2})
    small.reading.optimizer.warmup = 1
    for tower in (small.text, small.vision):
        tower.update({"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2})
        tower.update({"num_hidden_layers": 1, "projection_dim": 8})
    small.vision.update({"image_size": 32, "patch_size": 16})
    small.size = 32
    return small


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run directories of all parts, of networks of a few thousand parameters."""
    runs = tmp_path_factory.mktemp("runs")
    small = short(vae_config.get_config(), batch_size=2, size=32)
    small.network.update({"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "latent_channels": 4})
    vae(small, str(runs / "vae"))
    clip(small_clip(), str(runs / "clip"))
    small = short(unet_config.get_config(), batch_size=4, size=32, chunk=64, chunks=2)
    small.update({"vae": str(runs / "vae/vae"), "text_encoder": str(runs / "clip/text_encoder")})
    small.tokenizer = str(runs / "clip/tokenizer")
    small.network.update({"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "attention_head_dim": 2})
    small.network.update({"cross_attention_dim": 16, "sample_size": 8, "in_channels": 4, "out_channels": 4})
    unet(small, str(runs / "unet"))
    return runs


def test_trained_parts_make_a_base(trained, tmp_path):
    config = bundle_config.get_config()
    config.update({"vae": str(trained / "vae/vae"), "unet": str(trained / "unet/unet")})
    config.update(
        {name: str(trained / "clip" / name) for name in ("text_encoder", "image_encoder", "tokenizer")}
    )
    bundle(config, str(tmp_path / "bundle"))
    pipeline = load_pipeline(tmp_path / "bundle/base")
    assert pipeline.vae.config["scaling_factor"] > 0
    assert pipeline.unet.config["cross_attention_dim"] == pipeline.text_encoder.config["hidden_size"]
    assert (tmp_path / "bundle/base/README.md").exists()


@pytest.mark.parametrize(
    ("task", "part"), [("vae", ""), ("clip", "reading"), ("clip", "contrast"), ("unet", "")]
)
def test_a_run_has_its_config_and_its_metrics(trained, task, part):
    lines = [json.loads(line) for line in (trained / task / part / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((trained / task / "run.json").read_text())["config"]["task"] == task


def test_the_contrast_changes_the_projection_of_texts_and_not_what_the_unet_reads(trained, tmp_path):
    config = small_clip()
    config.optimizer.learning_rate *= 3
    clip(config, str(tmp_path / "clip"))
    here, there = (
        load_component(path / "text_encoder", "text_encoder").params
        for path in (trained / "clip", tmp_path / "clip")
    )
    jax.tree.map(np.testing.assert_array_equal, here["text_model"], there["text_model"])
    kernels = [params["text_projection"]["kernel"] for params in (here, there)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_pictures_are_made_as_it_trains(trained):
    assert (trained / "vae/pictures/step-000002.png").exists()
    assert (trained / "unet/pictures/step-000002.png").exists()


def batches(**changes):
    def encode(scenes, key):
        return np.asarray(scenes.zoom)[:, None, None, None] + 0 * np.asarray(jax.random.normal(key))

    settings = {"batch_size": 6, "chunk": 8, "chunks": 3, "reuse": 3.0, "empty": 0.2} | changes
    return pooled_at(jax.random.key(1), encode, load_tokenizer(BASE / "tokenizer"), **settings)


def test_a_batch_of_the_pool_depends_on_its_step_alone():
    in_order = batches()
    expected = [in_order(step) for step in range(20)][19]
    at_once = batches()(19)
    for name in expected:
        np.testing.assert_array_equal(expected[name], at_once[name])


def test_the_pool_forgets_old_pictures_and_brings_new_ones():
    pool = batches()
    zooms = [set(pool(step)["latents"].ravel().tolist()) for step in range(40)]
    assert not zooms[0] & zooms[39]
    assert len(set().union(*zooms)) > 8


def test_empty_captions_are_as_many_as_asked_for():
    tokens = batches(batch_size=400)(0)["tokens"]
    empty = np.mean(tokens[:, 1] == tokens[0, -1])
    assert 0.14 < empty < 0.26


def test_impossible_pools_are_refused():
    with pytest.raises(ValueError, match="reuse"):
        batches(reuse=0.5)


def test_a_pair_that_is_held_out_has_both_names():
    assert not unseen("", "red") and not unseen("ball", "")


def test_the_relief_of_a_patch_is_its_outline_and_depth_about_the_object_s_mean():
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, 2:6, 2:6] = 1
    depth = np.where(mask > 0, 5.0 + 0.1 * np.arange(8), 20.0).astype(np.float32)
    seen = Rendered(np.zeros((1, 8, 8, 3), np.float32), mask, depth)
    relief = np.asarray(relief_of_patches(seen, 2)).reshape(4, 4, 4, 2)
    np.testing.assert_array_equal(relief[0, ..., 0], mask[0, :4, :4] - 0.5)
    np.testing.assert_array_equal(relief[1, ..., 0], mask[0, :4, 4:] - 0.5)
    assert (relief[..., 1][relief[..., 0] < 0] == 0).all()  # nothing is told of the floor's depth
    np.testing.assert_allclose(relief[0, 2, 2:, 1], [-0.45, -0.15], atol=5e-3)


def of_processes(count, make, monkeypatch):
    """A tree of batches of all processes, each made by itself."""
    parts = []
    for index in range(count):
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(make())
    monkeypatch.undo()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("of", ["scenes", "captions", "grids", "pairs", "pool", "judges"])
def test_processes_see_together_what_one_sees_alone(of, count, monkeypatch):
    tokenizer, key = load_tokenizer(BASE / "tokenizer"), jax.random.key(3)

    def make():
        if of == "scenes":
            return scenes_at(key, 8)(5)
        if of == "captions":
            return told_at(key, 8, tokenizer)(5)
        if of == "grids":
            return captioned_at(key, 4, 3, tokenizer)(5)
        if of == "pairs":
            return sharing_at(key, 8, "shape", "<shape>", tokenizer, 24)(5)
        if of == "pool":
            return batches(batch_size=16, chunk=16)(30)
        config = judges_config.get_config().to_dict()
        settings = {**config, **config["appearance"], "rows": 4, "columns": 2}
        chunk = train_judges.chunks_of("appearance", settings, key, None)
        return train_judges.replayed(chunk, key, 2, 4)(5)

    alone = make()
    jax.tree.map(np.testing.assert_array_equal, alone, of_processes(count, make, monkeypatch))


def test_a_process_makes_the_pictures_alone_that_its_rows_draw_from(monkeypatch):
    made = []

    def encode(scenes, key):
        made.append(len(scenes.zoom))
        return np.zeros((len(scenes.zoom), 1, 1, 1))

    settings = {"batch_size": 16, "chunk": 64, "chunks": 2, "reuse": 4.0, "empty": 0.0}
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    pooled_at(jax.random.key(1), encode, load_tokenizer(BASE / "tokenizer"), **settings)(0)
    assert sum(made) == 16
