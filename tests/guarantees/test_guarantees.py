"""DESIGN's guarantees on the bundled base, with the command line that a user types.

`make guarantees` runs them: each starts the real program, often several times, which takes minutes. That what
is exported makes the same picture in torch diffusers (G6) is in tests/live.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from attrjax.attributes.apply import apply_attributes
from attrjax.attrworld.bundled import BASE
from attrjax.checkpoints.attribute import load_attribute, weights_digest
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.training import EXIT_SAVED
from tests.reference_cases import write_disc

ROOT = Path(__file__).parents[2]
# A user's, whose programs are optimized as far as they can be.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
STEPS, SAVE_EVERY, PROBE_EVERY = 24, 2, 6
KILLS = 20
RECIPE = {
    "partition": "encoder_attention",
    "rule": "lora:2",
    "steps": STEPS,
    "batch_size": 2,
    "save_every": SAVE_EVERY,
    "keep_checkpoints": True,
    "log_every": 1,
    "optimizer.warmup": 2,
    "prior.count": 0,
    "probe.every": PROBE_EVERY,
    "probe.prompts": '("a red {}",)',
    "probe.seeds": "(0,)",
    "probe.steps": 4,
    "probe.batch_size": 1,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Compiled programs, so that most starts take seconds."""
    return tmp_path_factory.mktemp("jit")


@pytest.fixture(scope="session")
def whole(cache, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done(start(workdir, cache))
    return workdir


def command(workdir, cache, *more, config="shape", **changes):
    recipe = (RECIPE if config == "shape" else {}) | {"cache_dir": cache} | changes
    flags = [f"--config.{name}={value}" for name, value in recipe.items()]
    run = [f"--config=configs/{config}.py", f"--workdir={workdir}", "--resume"]
    return [sys.executable, "-m", "attrjax.main", *run, *flags, *more]


def start(workdir, cache, *more, environment=(), prefix=(), **changes):
    return subprocess.Popen(
        [*prefix, *command(workdir, cache, *more, **changes)],
        cwd=ROOT,
        env=ENVIRONMENT | dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def pod(count, workdir, cache, logs, **changes):
    """As ``start``, of several processes on this machine, with a device each."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    options = [str(count), "--devices=1", f"--logs={logs}", f"--port={port}"]
    arguments = [one for one in command(workdir, cache, **changes)[3:] if one != "--resume"]
    return subprocess.Popen(
        [str(ROOT / "launch/local_pod.sh"), *options, "--", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def terminate_second(process):
    """SIGTERM to the second process of a pod alone."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    (second,) = [line for line in found.stdout.splitlines() if "--process=1" in line]
    os.kill(int(second.split()[0]), signal.SIGTERM)


def done(process, code=0):
    """The program's messages, when it has ended as it should."""
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors[-3000:]
    return errors


def logged(workdir, name="step"):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)[name] for line in lines if line.endswith("}")]


def wait(reached, process):
    """Until something is reached, or the program has ended."""
    while not reached() and process.poll() is None:
        time.sleep(0.005)


def being_saved(workdir, since):
    """Whether a checkpoint is being written that was begun after a time."""
    found = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
    try:
        return any(path.stat().st_mtime > since for path in found)
    except FileNotFoundError:  # it has just been finished
        return False


def learned(workdir):
    return (workdir / "attribute.safetensors").read_bytes()


def last_state(workdir, like=None, step=STEPS):
    """What the checkpoint of a run's last step holds; placed as another such state is, if one is given."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir / "checkpoints" / str(step) / "default", like)


def same(one, other):
    """All that a run learned, and what it measured, to the last bit."""
    assert learned(one) == learned(other)
    assert (one / "probes.jsonl").read_text().splitlines()[-1:] == (
        other / "probes.jsonl"
    ).read_text().splitlines()[-1:]
    numbers = [
        [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in text.splitlines()]
        for text in ((path / "metrics.jsonl").read_text() for path in (one, other))
    ]
    assert numbers[0] == numbers[1]


def test_g1_the_same_seed_and_config_give_the_same_bytes(whole, cache, tmp_path):
    done(start(tmp_path / "again", cache))
    same(whole, tmp_path / "again")


def test_g2_killed_at_random_steps_it_ends_with_the_same_bytes(whole, cache, tmp_path):
    """Some of the kills fall into a save: those wait for a checkpoint that is being written."""
    workdir, kills, saving = tmp_path / "run", 0, 0
    random.seed(time.time_ns())
    while kills < KILLS:
        before = logged(workdir)[-1] if logged(workdir) else 0
        process = start(workdir, cache)
        if kills % 3 == 2:
            since = time.time()
            wait(lambda since=since: being_saved(workdir, since), process)
            saving += being_saved(workdir, since)
        else:
            # Not far behind the last checkpoint, so that there are steps left for all kills.
            target = before + random.randint(0, 2)
            wait(lambda target=target: logged(workdir) and logged(workdir)[-1] > target, process)
            time.sleep(random.random() * 0.1)
        if process.poll() is not None:  # it was done before
            shutil.rmtree(workdir)
            done(process)
            continue
        process.kill()
        process.communicate()
        kills += 1
    done(start(workdir, cache))
    same(whole, workdir)
    assert saving > 0


def test_g3_sigterm_saves_the_step_and_exits_with_42(whole, cache, tmp_path):
    process = start(tmp_path / "run", cache)
    wait(lambda: len(logged(tmp_path / "run")) >= 3, process)
    process.send_signal(signal.SIGTERM)
    errors = done(process, EXIT_SAVED)
    assert "saved step" in errors
    done(start(tmp_path / "run", cache))
    same(whole, tmp_path / "run")


def test_g3_sigterm_to_one_of_two_processes_stops_both_at_one_step(cache, tmp_path):
    """With what two processes learn to the end as the measure."""

    def begin(workdir):
        return pod(2, workdir, cache, tmp_path / "logs")

    done(begin(tmp_path / "whole"))
    process = begin(tmp_path / "run")
    wait(lambda: len(logged(tmp_path / "run")) >= 3, process)
    terminate_second(process)
    done(process, EXIT_SAVED)
    done(begin(tmp_path / "run"))
    same(tmp_path / "whole", tmp_path / "run")


def test_g3_sigterm_to_one_of_two_processes_that_sample_loses_no_picture(cache, smallest_base, tmp_path):
    """There is no step to save: pictures that are there are not made again, and the others come as ever."""
    asked = {"base": smallest_base, "prompts": '("a cat",)', "seeds": tuple(range(40)), "steps": 50}

    def begin(workdir):
        return pod(2, workdir, cache, tmp_path / "logs", config="sample", **asked)

    def made(workdir):
        return {path.name: path for path in (workdir / "samples").glob("*.png")}

    done(begin(tmp_path / "whole"))
    process = begin(tmp_path / "run")
    wait(lambda: len(made(tmp_path / "run")) >= 4, process)
    terminate_second(process)
    done(process, 128 + signal.SIGTERM)
    kept = {name: path.stat().st_mtime_ns for name, path in made(tmp_path / "run").items()}
    assert 4 <= len(kept) < 40
    done(begin(tmp_path / "run"))
    whole, run = made(tmp_path / "whole"), made(tmp_path / "run")
    assert {name: run[name].stat().st_mtime_ns for name in kept} == kept
    assert len(whole) == 40 and whole.keys() == run.keys()
    assert all(whole[name].read_bytes() == run[name].read_bytes() for name in whole)


def test_g2_a_pod_that_learns_a_list_is_killed_and_ends_with_the_same_bytes(cache, smallest_base, tmp_path):
    """Four processes learn a picture each, of a small base; a kill -9 ends all of them at once."""
    names = ["one", "two", "three", "four"]
    pictures = [write_disc(tmp_path, name, (60 * i, 90, 60), 12 + 2 * i) for i, name in enumerate(names)]
    lines = [{"reference": str(picture), "mask": str(mask)} for picture, mask in pictures]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = {
        "base": smallest_base,
        "references": tmp_path / "list.jsonl",
        "filter": "mlp",
        "initial": "at",
        "num_tokens": 2,
        "pairs": "whole",
        "probe.steps": 2,
        "probe.prompts": '("a {}",)',
    }

    def begin(workdir):
        return pod(4, workdir, cache, tmp_path / "logs", **changes)

    done(begin(tmp_path / "whole"))
    process = begin(tmp_path / "run")
    steps = PROBE_EVERY + SAVE_EVERY  # behind the first measurement
    wait(lambda: all(max(logged(tmp_path / "run" / name), default=0) >= steps for name in names), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run/index.html").exists()
    done(begin(tmp_path / "run"))
    assert (tmp_path / "run/index.html").exists()
    for name in names:
        same(tmp_path / "whole" / name, tmp_path / "run" / name)


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped"])
def test_g4_a_damaged_newest_checkpoint_is_put_aside_loudly(whole, cache, tmp_path, damage):
    workdir = tmp_path / "run"
    process = start(workdir, cache)
    wait(lambda: logged(workdir) and logged(workdir)[-1] > 4 * SAVE_EVERY, process)
    process.send_signal(signal.SIGTERM)
    done(process, EXIT_SAVED)
    newest = max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    arrays = max((newest / "default/d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(arrays.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    errors = done(start(workdir, cache))
    assert f"checkpoint {newest.name} is damaged and is now" in errors
    assert (workdir / "checkpoints" / f"{newest.name}.corrupt").is_dir()
    same(whole, workdir)


def test_g5_frozen_weights_are_those_of_the_base(whole):
    attribute, pipeline = load_attribute(whole), load_pipeline(BASE)
    digest = weights_digest(BASE)
    assert attribute.base == digest  # the base's files are as they were
    assert attribute.adapter and all(path.startswith("down_blocks_") for path in attribute.adapter)
    tuned = apply_attributes(pipeline, [(attribute, 1.0)], digest=digest).pipeline
    for name in ("unet", "vae", "image_encoder"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(tuned, name).params, getattr(pipeline, name).params
        )


def test_g7_a_run_goes_on_on_another_mesh(whole, cache, tmp_path):
    """Begun on one device, ended on four, with two rows for each of them: sums are made in another order."""
    workdir = tmp_path / "run"
    process = start(workdir, cache, batch_size=4)
    wait(lambda: logged(workdir) and logged(workdir)[-1] > STEPS // 2, process)
    process.send_signal(signal.SIGTERM)
    done(process, EXIT_SAVED)
    done(start(workdir, cache, environment={"JAX_NUM_CPU_DEVICES": "4"}.items(), batch_size=4))
    done(start(tmp_path / "one", cache, batch_size=4))
    # The last step's, in float32: the file may hold an earlier one, of which nothing was tuned yet.
    expected = last_state(tmp_path / "one")
    states = last_state(workdir, like=expected), expected
    one, other = (flatten_dict(state["params"]["adapter"], sep="/") for state in states)
    ups = [name for name in other if name.endswith("lora_up")]  # which began at zero
    one, other = (np.concatenate([np.ravel(tree[name]) for name in ups]) for tree in (one, other))
    assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other) > 0
    np.testing.assert_allclose(logged(workdir, "loss"), logged(tmp_path / "one", "loss"), rtol=1e-5)


def in_namespace(script):
    """A shell in a namespace of its own, where a user may mount."""
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", script + ' && exec "$@"', "sh"]


def test_g8_a_full_disk_is_one_line_and_what_was_saved_stays(whole, cache, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    # The disk is gone with its namespace, so what it holds is copied before.
    script = f"mount -t tmpfs -o size=1500k tmpfs {disk}"
    prefix = [
        *in_namespace(script)[:-2],
        f'{script} && "$@"; code=$?; cp -r {disk}/run {kept}; exit $code',
        "sh",
    ]
    errors = done(start(disk / "run", cache, prefix=prefix), 1)
    # Threads of Orbax may say more after it.
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the disk is full: make room and give the same command with --resume")
    done(start(kept, cache))
    same(whole, kept)


def test_g8_a_workdir_that_cannot_be_written_is_one_line(cache, tmp_path):
    target = tmp_path / "readonly"
    target.mkdir()
    script = f"mount --bind {target} {target} && mount -o remount,ro,bind {target}"
    errors = done(start(target / "run", cache, prefix=in_namespace(script)), 2)
    assert errors.splitlines()[-1].startswith("error: ") and str(target) in errors.splitlines()[-1]
