"""The command line, as a user types it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from attrjax.arguments import base_preset, one_line, parse_arg
from attrjax.main import stop
from attrjax.runs import use_compile_cache
from attrjax.sample_parts import make_settings
from configs import sample

ROOT = Path(__file__).parent.parent


def attrjax(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "attrjax.main", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def flags(small_base, tmp_path_factory):
    """Small pictures, and a cache of compiled programs that all runs share."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        "--config=configs/sample.py",
        f"--config.base={small_base}",
        "--config.steps=2",
        "--config.progress=picture",
        f"--config.cache_dir={cache}",
    ]


PROMPTS = """--config.prompts=("a cat", "A very, very long prompt: """ + "many words " * 40 + '")'


@pytest.fixture(scope="session")
def finished(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "x"
    return workdir, attrjax(*flags, PROMPTS, "--config.seeds=(0, 7)", f"--workdir={workdir}")


def refused(result, message):
    """Whether a run ended with one line that says this."""
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "Traceback" not in result.stderr
    return True


def test_a_run_writes_pictures_grid_and_record(finished):
    workdir, result = finished
    assert result.returncode == 0, result.stderr
    record = json.loads((workdir / "run.json").read_text())
    names = sorted(path.name for path in (workdir / "samples").iterdir())
    assert len(names) == 4 and names[:2] == ["a-cat-0.png", "a-cat-7.png"]
    assert sorted(record["chosen"]["pictures"]) == [f"samples/{name}" for name in names]
    assert {Image.open(workdir / "samples" / name).size for name in names} == {(64, 64)}
    assert Image.open(workdir / "grid.png").width > 2 * 64
    assert record["config"]["seeds"] == [0, 7] and record["chosen"]["sampler"] == "ddim"
    assert {"jax", "flax", "python", "device"} <= record["versions"].keys()
    assert {"load", "compile", "per_picture"} <= record["timings"].keys()


def test_more_steps_and_their_bar_are_no_other_program(flags, finished, tmp_path):
    """A program that called the host at every step could not be kept, and each run would compile it."""
    (cache,) = (Path(flag.partition("=")[2]) for flag in flags if "cache_dir" in flag)
    compiled = {path.name for path in cache.rglob("jit_denoise*-cache")}
    assert len(compiled) == 1
    more = ["--config.steps=5", "--config.progress=step", "--config.seeds=(7,)"]
    result = attrjax(*flags, '--config.prompts=("a cat",)', *more, f"--workdir={tmp_path / 'x'}")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in cache.rglob("jit_denoise*-cache")} == compiled


def test_a_long_prompt_is_cut_with_a_warning(finished):
    _, result = finished
    assert "a prompt is cut at 77" in result.stderr and "many words" in result.stderr


def test_same_config_and_seed_give_the_same_bytes(finished, flags, tmp_path):
    workdir, _ = finished
    again = attrjax(
        *flags, '--config.prompts=("a cat",)', "--config.seeds=(7,)", f"--workdir={tmp_path / 'y'}"
    )
    assert again.returncode == 0, again.stderr
    name = "samples/a-cat-7.png"
    assert (tmp_path / "y" / name).read_bytes() == (workdir / name).read_bytes()


def test_resume_keeps_what_is_there_and_makes_what_is_missing(flags, tmp_path):
    arguments = [*flags, '--config.prompts=("a cat",)', f"--workdir={tmp_path / 'x'}"]
    first = attrjax(*arguments, "--config.seeds=(0, 1)")
    assert first.returncode == 0, first.stderr
    samples = tmp_path / "x" / "samples"
    made = (samples / "a-cat-1.png").read_bytes()
    (samples / "a-cat-1.png").unlink()
    red = Image.new("RGB", (64, 64), "red")
    red.save(samples / "a-cat-0.png")
    assert refused(attrjax(*arguments, "--config.seeds=(0, 1)"), "already holds a run")
    resumed = attrjax(*arguments, "--config.seeds=(0, 1, 2)", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert Image.open(samples / "a-cat-0.png").tobytes() == red.tobytes()
    assert (samples / "a-cat-1.png").read_bytes() == made
    assert (samples / "a-cat-2.png").exists()
    other = attrjax(*arguments, "--config.seeds=(0, 1)", "--config.guidance=2.0", "--resume")
    assert refused(other, "guidance was 0.0, is 2.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.promts=('a',)"], "the config has no key 'promts'; did you mean 'prompts'?"),
        (["--config.steps=many"], "--config.steps=many"),
        (["--wrokdir=x"], "'wrokdir'. Did you mean: workdir"),
        (["--config=configs/smaple.py"], "there is no config file configs/smaple.py"),
        (["--config=configs/sample.py:base=sd16"], "there is no preset base=sd16"),
        (["--config=configs/sample.py:bse=sd15"], "no argument 'bse'; did you mean 'base'?"),
        (["--config.prompts=('a',", "cat)"], "prompts"),
        (["--config.task=smaple"], "did you mean 'sample'?"),
    ],
)
def test_a_mistyped_command_line_is_one_line(arguments, message, tmp_path):
    config = [] if arguments[0].startswith("--config=") else ["--config=configs/sample.py"]
    assert refused(attrjax(*config, *arguments, f"--workdir={tmp_path / 'x'}"), message)
    assert not (tmp_path / "x").exists()


def test_workdir_is_required():
    assert refused(attrjax("--config=configs/sample.py"), "--workdir is missing")


def test_a_missing_base_is_named(tmp_path):
    base = tmp_path / "no" / "such" / "base"
    result = attrjax("--config=configs/sample.py", f"--config.base={base}", f"--workdir={tmp_path / 'x'}")
    assert refused(result, str(base))
    assert not (tmp_path / "x").exists()


def test_latents_of_another_shape_are_refused(flags, tmp_path):
    np.save(tmp_path / "noise.npy", np.zeros((4, 4, 8, 8), np.float32))
    result = attrjax(*flags, f"--config.latents={tmp_path / 'noise.npy'}", f"--workdir={tmp_path / 'x'}")
    assert refused(result, "channels last")
    (tmp_path / "noise.npy").write_text("no numbers")
    result = attrjax(*flags, f"--config.latents={tmp_path / 'noise.npy'}", f"--workdir={tmp_path / 'x'}")
    assert refused(result, "is not an .npy file")
    assert not (tmp_path / "x").exists()


def test_config_arguments_are_typed():
    parsed = parse_arg("name=x,count=3,fast", name="", count=1, fast=False, rate=0.5)
    assert parsed.to_dict() == {"name": "x", "count": 3, "fast": True, "rate": 0.5}
    with pytest.raises(ValueError, match="count='many' should be of type int"):
        parse_arg("count=many", count=1)
    with pytest.raises(ValueError, match="fast='perhaps' should be of type bool"):
        parse_arg("fast=perhaps", fast=False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/x/run.json"),
        ValueError("RESOURCE_EXHAUSTED: Error writing \"a\"\n[os_error_code='28'] [No space left on device]"),
    ],
)
def test_a_full_disk_is_one_line_that_says_what_to_do(error):
    assert one_line(error).startswith("the disk is full: make room") and "\n" not in one_line(error)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("steps=0 must be 1 or more"), 2),
        (FileNotFoundError("there is no file of latents x.npy"), 2),
        (OSError(errno.EACCES, "Permission denied", "runs/x"), 2),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/run.json"), 1),
        (OSError(errno.EIO, "Input/output error", "runs/x/run.json"), 1),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 1),
        (ValueError('RESOURCE_EXHAUSTED: Error writing "a" [No space left on device]'), 1),
        (ValueError('UNAVAILABLE: Error writing "gs://bucket/run"'), 1),
    ],
)
def test_what_another_start_may_do_better_is_no_mistake_of_the_user(error, code, capsys):
    with pytest.raises(SystemExit) as end:
        stop(error)
    assert end.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1 and len(said) > len("error: 104\n")


def test_programs_compiled_for_another_number_of_cores_are_not_run(tmp_path, monkeypatch):
    """XLA divides sums by how many cores there are, so a run would depend on who filled the cache."""
    before, found = jax.config.jax_compilation_cache_dir, []
    try:
        for cores in ({0}, {0, 1}, {1}):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
            use_compile_cache(str(tmp_path))
            found.append(jax.config.jax_compilation_cache_dir)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert found[0] == found[2] != found[1]
    assert all(Path(one).is_dir() and Path(one).parent == tmp_path for one in found)


def test_guidance_suits_the_base():
    config = sample.get_config()
    assert make_settings(config).guidance == 4.0
    config.base = "DIR"
    assert make_settings(config).guidance == 7.5
    assert make_settings(sample.get_config("base=sdxl")).guidance == 5.0
    config.guidance = 1.0
    assert make_settings(config).guidance == 1.0


def test_presets_know_their_size():
    assert base_preset("sdxl")["height"] == 1024
    with pytest.raises(ValueError, match="did you mean 'sdxl'"):
        base_preset("sdlx")
