"""Bases from the Hub: what is fetched, what is never fetched, and one line where there is no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from attrjax.checkpoints.hub import download, find_base, find_image_encoder

ROOT = Path(__file__).parents[1]
STEM = "diffusion_pytorch_model"
REMOTE = [
    "model_index.json",
    "README.md",
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
    "unet/config.json",
    f"unet/{STEM}.bin",
    f"unet/{STEM}.safetensors",
    f"unet/{STEM}.fp16.safetensors",
    f"unet/{STEM}.non_ema.safetensors",
    "unet/model.onnx",
    "vae/config.json",
    f"vae/{STEM}.safetensors",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model.fp16-00001-of-00001.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
    "safety_checker/model.safetensors",
    "filters/shape.safetensors",
]
INDEX = (
    '{"unet": ["diffusers", "A"], "vae": ["diffusers", "B"], "text_encoder": ["transformers", "C"], "_x": 1}'
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that has REMOTE; what is fetched goes to the folder that is returned."""

    def snapshot_download(hub_id, *, allow_patterns, ignore_patterns):
        assert hub_id == "org/base"
        for name in filter_repo_objects(
            REMOTE, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(INDEX if name == "model_index.json" else name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return tmp_path


def fetched(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


SMALL = {name for name in REMOTE if name.endswith((".json", ".txt"))}


def test_what_is_fetched(hub):
    assert find_base("org/base") == hub
    shards = {f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    weights = {f"unet/{STEM}.safetensors", f"vae/{STEM}.safetensors", "filters/shape.safetensors"}
    assert fetched(hub) == SMALL | shards | weights


def test_a_variant_is_fetched_where_there_is_one(hub):
    assert download("org/base", "fp16") == hub
    variant = {f"unet/{STEM}.fp16.safetensors", "text_encoder/model.fp16-00001-of-00001.safetensors"}
    assert fetched(hub) == SMALL | variant | {f"vae/{STEM}.safetensors", "filters/shape.safetensors"}


def test_of_a_clip_its_safetensors_are_fetched(hub, monkeypatch):
    remote = ["config.json", "README.md", "pytorch_model.bin", "model.safetensors", "model.fp16.safetensors"]
    monkeypatch.setattr(sys.modules[__name__], "REMOTE", [*remote, "onnx/model.onnx", "tokenizer.json"])
    assert find_image_encoder("org/base") == hub
    assert fetched(hub) == {"config.json", "model.safetensors"}


def test_an_image_encoder_may_be_a_bases_own(tmp_path):
    (tmp_path / "base" / "image_encoder").mkdir(parents=True)
    assert find_image_encoder(tmp_path / "base") == tmp_path / "base" / "image_encoder"
    (tmp_path / "base" / "config.json").write_text("{}")
    assert find_image_encoder(tmp_path / "base") == tmp_path / "base"
    with pytest.raises(FileNotFoundError, match="no Hub id"):
        find_image_encoder(tmp_path / "nowhere")


def test_a_folder_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "base").mkdir(parents=True)
    assert find_base("org/base") == Path("org/base")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "../nowhere", "a/b/c", "/a/b", "org/ba se"])
def test_what_is_no_hub_id_is_not_looked_for_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(FileNotFoundError, match="there is no folder .* no Hub id"):
        find_base(name)


def test_failures_of_the_hub_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\n\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError) as error:
        find_base("org/base")
    assert "org/base" in str(error.value) and "no route to host" in str(error.value)
    assert "network" in str(error.value) and "\n" not in str(error.value)


LOAD = """
import sys
from attrjax.checkpoints.pipeline import load_pipeline
try:
    print(load_pipeline(sys.argv[1], components=["vae", "scheduler"]).scheduler["_class_name"])
except FileNotFoundError as error:
    print("refused:", error)
"""


def load_offline(cache: Path, hub_id: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOAD, hub_id]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_network_what_is_cached_is_used(small_base, tmp_path):
    """The Hub's own library, with its cache laid out as it does: links from a snapshot to blobs."""
    repository = tmp_path / "hub" / "models--org--base"
    snapshot, blobs = repository / "snapshots" / ("0a" * 20), repository / "blobs"
    shutil.copytree(small_base, snapshot)
    blobs.mkdir()
    for i, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(i))
        path.symlink_to(os.path.relpath(blobs / str(i), path.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a" * 20)
    assert load_offline(tmp_path, "org/base") == "DDIMScheduler"
    refusal = load_offline(tmp_path, "org/other")
    assert refusal.startswith("refused: there is no folder org/other") and "\n" not in refusal
