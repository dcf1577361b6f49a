"""Bases as directories: a round trip, what is refused in one line, and writing all or nothing."""

import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attrjax.attrworld.bundled import BASE
from attrjax.checkpoints import pipeline as pipeline_module
from attrjax.checkpoints.pipeline import STEMS, build_network, load_pipeline, save_pipeline
from attrjax.models import attention, convolution, layers
from tests import tiny

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def loaded(small_base):
    return load_pipeline(small_base)


def assert_same_networks(a, b) -> None:
    for name in STEMS:
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.module == theirs.module
            jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_round_trip(tmp_path, family):
    base = tmp_path / "a"
    source = tiny.tiny_pipeline(base, family, seed=3)
    save_pipeline(base, source)
    loaded = load_pipeline(base)
    assert_same_networks(loaded, source)
    assert loaded.path == base
    assert loaded.scheduler == source.scheduler and loaded.preprocessor == source.preprocessor
    assert loaded.model_index.items() >= source.model_index.items()
    for tokenizer in (loaded.tokenizer, loaded.tokenizer_2):
        if tokenizer is not None:
            assert tokenizer("a cat, É").input_ids == source.tokenizer("a cat, É").input_ids
            assert tokenizer.model_max_length == 77
    assert (loaded.tokenizer_2 is not None) == (family == "sdxl")

    save_pipeline(tmp_path / "b", loaded)
    files = sorted(path.relative_to(base) for path in base.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file()
    )
    for name in files:
        if name.suffix == ".safetensors":
            assert (base / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        elif name.suffix == ".json" and name.name != "tokenizer_config.json":
            assert json.loads((base / name).read_text()) == json.loads((tmp_path / "b" / name).read_text()), (
                name
            )


def test_types_options_and_a_choice_of_components(small_base):
    loaded = load_pipeline(
        small_base,
        dtype=jnp.bfloat16,
        param_dtype=jnp.float16,
        components=["vae", "scheduler"],
        attention_implementation="xla",
        remat=True,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.vae.params)} == {jnp.float16.dtype}
    assert loaded.vae.module.dtype == jnp.bfloat16 and loaded.vae.module.remat
    assert loaded.vae.module.attention_implementation == "xla"
    assert loaded.scheduler["_class_name"] == "DDIMScheduler"
    assert loaded.unet is None and loaded.tokenizer is None and loaded.preprocessor is None


def test_an_autoencoder_that_overflows_in_half_precision_computes_in_single(small_base, tmp_path):
    edit_json(small_base, tmp_path, "vae/config.json", force_upcast=True)
    assert load_pipeline(tmp_path, dtype=jnp.float16, components=["vae"]).vae.module.dtype == jnp.float32
    assert load_pipeline(tmp_path, dtype=jnp.bfloat16, components=["vae"]).vae.module.dtype == jnp.bfloat16
    assert load_pipeline(small_base, dtype=jnp.float16, components=["vae"]).vae.module.dtype == jnp.float16


def test_the_rule_for_shardings_sees_the_component(small_base):
    seen = []
    load_pipeline(small_base, components=["vae"], shardings=lambda path, shape: seen.append((path, shape)))
    assert ("vae/decoder/conv_in/kernel", (3, 3, 4, 16)) in seen


def test_published_tokenizer_files(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "tokenizer")
    tiny.write_tokenizer_files(tmp_path / "tokenizer")
    tokenizer = load_pipeline(tmp_path, components=["tokenizer"]).tokenizer
    assert tokenizer("a cat").input_ids == tiny.tiny_tokenizer()("a cat").input_ids


def test_a_folder_that_the_index_does_not_mention_is_read(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["image_encoder"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(tmp_path).image_encoder.module.projection_dim is not None
    index["image_encoder"] = [None, None]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(tmp_path).image_encoder is None


def edit_json(base: Path, copy: Path, name: str, **entries) -> None:
    shutil.copytree(base, copy, dirs_exist_ok=True)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | entries))


def refused(kind, call, *parts: str) -> None:
    """One line, with all of ``parts``."""
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_missing_directory(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    refused(FileNotFoundError, lambda: load_pipeline(nowhere), f"there is no folder {nowhere}", "Hub id")


def test_directory_that_is_no_base(tmp_path):
    (tmp_path / "notes.txt").touch()
    refused(
        FileNotFoundError, lambda: load_pipeline(tmp_path), str(tmp_path), "model_index.json", "notes.txt"
    )


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_single_file(tmp_path, suffix):
    path = tmp_path / f"v1-5{suffix}"
    path.touch()
    refused(
        ValueError,
        lambda: load_pipeline(path),
        str(path),
        "python -c",
        "from_single_file",
        "diffusers layout",
    )


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder"])
def test_missing_component(small_base, tmp_path, name):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / name)
    parts = f"no component {name!r}: looked for {tmp_path / name}", "it holds "
    refused(FileNotFoundError, lambda: load_pipeline(tmp_path), *parts)


@pytest.mark.parametrize(
    "name", ["vae/config.json", "scheduler/scheduler_config.json", VAE_FILE, "tokenizer"]
)
def test_missing_file(small_base, tmp_path, name):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / name).iterdir() if (tmp_path / name).is_dir() else [tmp_path / name]:
        path.unlink()
    component = name.split("/")[0]
    refused(
        FileNotFoundError, lambda: load_pipeline(tmp_path, components=[component]), str(tmp_path / component)
    )


def test_truncated_weights(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / VAE_FILE).read_bytes()
    (tmp_path / VAE_FILE).write_bytes(content[:-1000])
    parts = str(tmp_path / VAE_FILE), "damaged", "download or copy it again"
    refused(ValueError, lambda: load_pipeline(tmp_path, components=["vae"]), *parts)


def test_wrong_shape(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / VAE_FILE)
    tensors["decoder.conv_in.weight"] = np.zeros((16, 4, 5, 5), np.float32)
    save_file(tensors, tmp_path / VAE_FILE)
    with pytest.raises(ValueError) as error:
        load_pipeline(tmp_path, components=["vae"])
    first, second = str(error.value).split("\n")
    assert str(tmp_path / "vae") in first and "1 of the wrong shape" in first
    assert "decoder.conv_in.weight: [16, 4, 5, 5] in the file, [16, 4, 3, 3] in the network" in second


def test_pickle(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path, dirs_exist_ok=True)
    (tmp_path / VAE_FILE).rename(tmp_path / VAE_FILE.replace(".safetensors", ".bin"))
    parts = "pickled weights only", "python -c", "weights_only=True", "diffusion_pytorch_model.safetensors"
    refused(ValueError, lambda: load_pipeline(tmp_path, components=["vae"]), *parts)


def test_unknown_config_option(small_base, tmp_path):
    edit_json(small_base, tmp_path, "unet/config.json", time_cond_proj_dim=256)
    refused(ValueError, lambda: load_pipeline(tmp_path, components=["unet"]), "time_cond_proj_dim = 256")


def test_index_outside_the_directory(small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / VAE_FILE).rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"decoder.conv_in.weight": "../../secret.safetensors"}}
    (base / f"{VAE_FILE}.index.json").write_text(json.dumps(index))
    parts = "'../../secret.safetensors'", f"only .safetensors files inside {base / 'vae'}"
    refused(ValueError, lambda: load_pipeline(base, components=["vae"]), *parts)


def test_other_kinds_of_bases(small_base, tmp_path):
    edit_json(small_base, tmp_path / "a", "model_index.json", unet=["diffusers", "FlaxUNet2DConditionModel"])
    parts = "unet of class FlaxUNet2DConditionModel", "supported: UNet2DConditionModel"
    refused(ValueError, lambda: load_pipeline(tmp_path / "a"), *parts)
    edit_json(small_base, tmp_path / "b", "model_index.json", controlnet=["diffusers", "ControlNetModel"])
    refused(
        ValueError, lambda: load_pipeline(tmp_path / "b"), "'controlnet' (ControlNetModel)", "not supported"
    )
    assert load_pipeline(tmp_path / "b", components=["scheduler"]).scheduler


def test_unknown_names(small_base):
    refused(
        ValueError, lambda: load_pipeline(small_base, components=["vea"]), "vea", "unet, vae, text_encoder"
    )
    call = lambda: load_pipeline(small_base, components=["vae", "unet"], variant="fp61")  # noqa: E731
    refused(FileNotFoundError, call, "variant 'fp61'", "diffusion_pytorch_model.fp61.safetensors")


def test_nothing_is_overwritten(loaded, tmp_path):
    (tmp_path / "kept").touch()
    refused(FileExistsError, lambda: save_pipeline(tmp_path, loaded), str(tmp_path), "not empty")
    refused(FileExistsError, lambda: save_pipeline(tmp_path / "kept", loaded), "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    save_pipeline(tmp_path / "empty", loaded)
    assert_same_networks(load_pipeline(tmp_path / "empty"), loaded)


def test_a_full_disk_leaves_nothing(loaded, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses to write, as it does there."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        refused(
            OSError,
            lambda: save_pipeline(tmp_path / "base", loaded),
            f"nothing was saved to {tmp_path / 'base'}",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_nothing(loaded, tmp_path, monkeypatch):

    def interrupt(*_):
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]  # nothing under the final name yet
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline_module, "save_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_pipeline(tmp_path / "base", loaded)
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_pipeline_is_not_saved(small_base, tmp_path):
    loaded = load_pipeline(small_base, components=["vae", "scheduler"])
    refused(
        ValueError, lambda: save_pipeline(tmp_path / "x", loaded), "without unet, text_encoder, tokenizer"
    )


def test_a_safety_checker_is_dropped_and_said_to_be(small_base, tmp_path):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(
        small_base, tmp_path / "a", "model_index.json", safety_checker=checker, requires_safety_checker=True
    )
    save_pipeline(tmp_path / "b", load_pipeline(tmp_path / "a"))
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "image_encoder"])
def test_shapes_are_those_of_networks_that_are_traced_in_full(name, monkeypatch):
    config = json.loads((BASE / name / "config.json").read_text())
    quick = build_network(name, config, param_dtype=jnp.bfloat16)[1]
    for module in (layers, attention, convolution):
        monkeypatch.setattr(module, "shapes_alone", lambda: False)
    assert quick == build_network(name, config, param_dtype=jnp.bfloat16)[1]
