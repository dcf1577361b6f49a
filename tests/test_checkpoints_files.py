"""Safetensors files and weight folders: what is read and written, and what is refused in one line."""

import json
import shlex
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from attrjax.checkpoints.files import (
    NewTensor,
    find_weights,
    open_safetensors,
    open_weights,
    write_safetensors,
    write_weights,
)

STEM = "diffusion_pytorch_model"


def random_tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "scalar": (), "none": (0, 4), "odd": (5, 7)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def new_tensors(tensors: dict[str, np.ndarray]) -> list[NewTensor]:
    return [
        NewTensor(name, value.dtype, value.shape, lambda value=value: value)
        for name, value in tensors.items()
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_same_files_as_the_safetensors_library(tmp_path, dtype):
    tensors = random_tensors(dtype)
    write_safetensors(tmp_path / "ours.safetensors", new_tensors(tensors))
    save_file(tensors, tmp_path / "theirs.safetensors")
    theirs_of_ours = load_file(tmp_path / "ours.safetensors")
    ours_of_theirs = open_safetensors(tmp_path / "theirs.safetensors")
    assert theirs_of_ours.keys() == ours_of_theirs.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(theirs_of_ours[name], value)
        np.testing.assert_array_equal(ours_of_theirs[name].view(), value)
        assert ours_of_theirs[name].view().dtype == value.dtype
    with safe_open(tmp_path / "ours.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it, transformers refuses the file


def test_a_released_view_can_be_read_again(tmp_path):
    save_file(random_tensors(), tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")["odd"]
    view = tensor.view()
    before = view.copy()
    tensor.release()
    np.testing.assert_array_equal(view, before)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_truncated(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    save_file(random_tensors(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert_one_line(ValueError, path, "damaged", "download or copy it again", lambda: open_safetensors(path))


def header(**entry) -> bytes:
    text = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"not weights at all, but text that goes on",
        (8).to_bytes(8, "little") + b"[1, 2,3]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        header(shape=[3]),
        header(shape=[-2], data_offsets=[0, -8]),
        header(data_offsets=[8, 16]),
        header(data_offsets=[-8, 0]),
        header(dtype="F32_SECRET"),
        header(shape=None),
    ],
)
def test_garbage(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert_one_line(ValueError, path, "damaged", "download or copy it again", lambda: open_safetensors(path))


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_one_line(ValueError, path, "git lfs pull", "pointer", lambda: open_safetensors(path))


def assert_one_line(kind, path, problem, remedy, call) -> None:
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert str(path) in message and problem in message and remedy in message
    assert "\n" not in message


def test_which_file_is_read(tmp_path):
    for name in (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.safetensors.index.bf16.json"):
        (tmp_path / name).touch()
    assert find_weights(tmp_path, STEM).name == f"{STEM}.safetensors"
    assert find_weights(tmp_path, STEM, "fp16").name == f"{STEM}.fp16.safetensors"
    assert find_weights(tmp_path, STEM, "bf16").name == f"{STEM}.safetensors.index.bf16.json"


def test_plain_weights_stand_in_for_a_variant_and_this_is_said(tmp_path, caplog):
    (tmp_path / f"{STEM}.safetensors").touch()
    assert find_weights(tmp_path, STEM, "fp16").name == f"{STEM}.safetensors"
    assert "no weights of variant 'fp16'" in caplog.text


def test_missing_weights_say_what_was_looked_for(tmp_path):
    folder = tmp_path / "unet"
    assert_one_line(FileNotFoundError, folder, "no folder", "", lambda: find_weights(folder, STEM))
    folder.mkdir()
    (folder / "config.json").touch()
    looked_for = f"looked for {STEM}.safetensors or {STEM}.safetensors.index.json; it holds config.json"
    assert_one_line(FileNotFoundError, folder, "no weights", looked_for, lambda: find_weights(folder, STEM))
    (folder / f"{STEM}.fp16.safetensors").touch()
    assert_one_line(
        FileNotFoundError, folder, f"{STEM}.fp16.safetensors", "variants", lambda: find_weights(folder, STEM)
    )


@pytest.mark.parametrize(
    ("stem", "variant", "names", "converted"),
    [
        (STEM, None, [f"{STEM}.bin", f"{STEM}.fp16.bin"], [f"{STEM}.bin"]),
        (STEM, "fp16", [f"{STEM}.bin", f"{STEM}.fp16.bin"], [f"{STEM}.fp16.bin"]),
        ("model", None, ["pytorch_model.bin"], ["pytorch_model.bin"]),
        ("model", None, ["model.ckpt"], ["model.ckpt"]),
        ("model", None, ["x.pt", "y.pth"], ["x.pt"]),
        (
            STEM,
            None,
            [f"{STEM}-00001-of-00002.bin", f"{STEM}-00002-of-00002.bin", f"{STEM}.bin.index.json"],
            [f"{STEM}-00001-of-00002.bin", f"{STEM}-00002-of-00002.bin"],
        ),
    ],
)
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, stem, variant, names, converted):
    folder = tmp_path / "my folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="can run any code") as error:
        find_weights(folder, stem, variant)
    (program,) = shlex.split(str(error.value).partition("python -c ")[2])
    compile(program, "command", "exec")
    assert str([str(folder / name) for name in converted]) in program
    suffix = "" if variant is None else f".{variant}"
    assert f"'{folder / f'{stem}{suffix}.safetensors'}'" in program


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path):
    save_file(random_tensors(), tmp_path / f"{STEM}.safetensors")
    (tmp_path / f"{STEM}.bin").write_bytes(b"\x80\x02.")
    assert open_weights(tmp_path, STEM).keys() == random_tensors().keys()


def test_shards(tmp_path):
    tensors = random_tensors()
    write_weights(tmp_path, STEM, new_tensors(tensors), max_shard_size=150)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"{STEM}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sum(len(load_file(tmp_path / name)) for name in shards) == len(tensors)
    index = json.loads((tmp_path / f"{STEM}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    stored = open_weights(tmp_path, STEM)
    for name, value in tensors.items():
        np.testing.assert_array_equal(stored[name].view(), value)
        assert stored[name].file.name == index["weight_map"][name]


def write_index(folder: Path, places: object) -> None:
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "inner/../../outside.safetensors",
        "..\\outside.safetensors",
        "link/outside.safetensors",
        "C:\\outside.safetensors",
        "\\\\host\\outside.safetensors",
        "ABSOLUTE",
        "weights.bin",
    ],
)
def test_an_index_cannot_leave_its_folder(tmp_path, name):
    folder = tmp_path / "unet"
    (folder / "inner").mkdir(parents=True)
    save_file(random_tensors(), tmp_path / "outside.safetensors")
    (folder / "link").symlink_to(tmp_path)
    name = str(tmp_path / "outside.safetensors") if name == "ABSOLUTE" else name
    write_index(folder, {"odd": name})
    assert_one_line(ValueError, folder, repr(name), "inside", lambda: open_weights(folder, STEM))


def test_shards_in_the_hub_cache_are_links_out_of_the_folder(tmp_path):
    folder = tmp_path / "snapshots" / "0a1b" / "unet"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    save_file(random_tensors(), tmp_path / "blobs" / "77aa")
    (folder / "a.safetensors").symlink_to("../../../blobs/77aa")
    write_index(folder, dict.fromkeys(random_tensors(), "a.safetensors"))
    assert open_weights(folder, STEM).keys() == random_tensors().keys()


def test_an_index_that_does_not_fit_its_shards(tmp_path):
    save_file(random_tensors(), tmp_path / "a.safetensors")
    save_file({"other": np.zeros(3)}, tmp_path / "b.safetensors")
    index = tmp_path / f"{STEM}.safetensors.index.json"
    write_index(tmp_path, {"odd": "a.safetensors", "lost": "a.safetensors", "scalar": "b.safetensors"})
    assert_one_line(
        ValueError, index, "do not hold them", "lost, scalar", lambda: open_weights(tmp_path, STEM)
    )
    write_index(tmp_path, {"odd": "c.safetensors"})
    assert_one_line(FileNotFoundError, index, "c.safetensors", "", lambda: open_weights(tmp_path, STEM))
    write_index(tmp_path, ["a.safetensors"])
    assert_one_line(ValueError, index, "weight_map", "download", lambda: open_weights(tmp_path, STEM))
    index.write_text('{"weight_map": {')
    assert_one_line(ValueError, index, "not a JSON file", "download", lambda: open_weights(tmp_path, STEM))
