"""Concepts side by side, on a linear model: as alone, on many devices and processes, and after a kill."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from attrjax.attributes import phases, stack
from attrjax.attributes.concepts import Concept
from attrjax.fit import STEPS
from attrjax.metrics_log import METRICS
from attrjax.parallel.mesh import local_mesh, make_mesh, place_batch
from attrjax.parallel.start import start
from attrjax.training import init_state, make_optimizer, make_step, train

ROOT = Path(__file__).parent.parent
COLLECTIVES = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
OPTIMIZER = {"learning_rate": 1e-2, "warmup": 2, "clip": 0.5, "weight_decay": 0.1}
MADE = (6, 10, 3, 10, 7)  # steps of concepts 0, 1, ...
ENDS = (6, 10, 2, 4, 6)  # of these, each second one is measured; the fourth is stopped by what was found


def concept(i):
    config = {
        "steps": MADE[i],
        "seed": 10 + i,
        "probe": {"every": 2},
        "save_every": 3,
        "log_every": 1,
        "profile": (0, 0),
    }
    config |= {"ema_decay": 0.9, "optimizer": OPTIMIZER}
    return Concept(f"c{i}", ConfigDict(config), f"list, line {i}")


def params_of(i):
    rng = np.random.default_rng(i)
    return {"kernel": rng.normal(size=(8, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}


def batch_at(i, step):
    rng = np.random.default_rng((i, step))
    return {"x": rng.normal(size=(4, 8)).astype(np.float32), "y": rng.normal(size=(4, 4)).astype(np.float32)}


def begun(i):
    return np.full((1, 4), float(i), np.float32)


FROZEN = {"w": np.random.default_rng(99).normal(size=(8, 8)).astype(np.float32)}


def loss_fn(params, batch, key, frozen):
    x = (batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)) @ frozen["w"]
    error = x @ params["kernel"] + params["bias"] - batch["y"]
    far = (params["bias"] - frozen["begun"]) ** 2
    return (error**2).mean() + 0.01 * far.mean(), {"largest": abs(error).max()}


def alone(i, workdir):
    """What a run of its own ends with, at its last step that is measured."""
    own, mesh = concept(i).config, make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(steps=own.steps, **OPTIMIZER)
    result = train(
        init_state(params_of(i), optimizer, mesh, ema=True),
        make_step(loss_fn, optimizer, mesh, ema_decay=own.ema_decay),
        functools.partial(batch_at, i),
        root_key=jax.random.fold_in(jax.random.key(own.seed), STEPS),
        steps=ENDS[i],
        workdir=workdir / str(i),
        mesh=mesh,
        frozen=FROZEN | {"begun": begun(i)},
    )
    return jax.device_get(result.state.averaged)


def learn_all(workdir, *, devices=None, most=None, then=lambda step: None):
    """Learn all concepts; gives what each was at its end, of several processes to each its own.

    ``then`` is called after each measurement.
    """
    mesh = make_mesh(concept=-1, data=1, devices=devices)
    concepts = [concept(i) for i in range(len(MADE))]
    held = [list(range(place, len(MADE), mesh.size)) or [0] for place in range(mesh.size)]
    places = stack.local_places(mesh)
    local = sorted({i for place in places for i in held[place]})
    directories = [Path(workdir) / f"c{i}" for i in range(len(MADE))]
    roots = [jax.random.fold_in(jax.random.key(one.config.seed), STEPS) for one in concepts]
    most = most or -(-len(MADE) // mesh.size)
    own = {i: stack.own_of(begun(i), roots[i], MADE[i]) for i in local}
    turn = phases.Turn(
        config=concepts[0].config,
        mesh=mesh,
        most=most,
        concepts=concepts,
        runs={i: SimpleNamespace(directory=directories[i], i=i) for i in local if i % mesh.size in places},
        batches_of=lambda rows: (
            lambda step: stack.stacked([{**own[i], "pairs": batch_at(i, step)} for i in rows])
        ),
        ends={i: ENDS[i] if (directories[i] / f"{ENDS[i]}.npz").exists() else None for i in range(len(MADE))},
        step_fn=stack.make_stacked_step(loss_fn, OPTIMIZER, mesh, ema_decay=0.9),
        frozen=FROZEN,
        directory=Path(workdir) / "stack",
        deadline=None,
    )

    def look(run, step, params):
        run.directory.mkdir(parents=True, exist_ok=True)
        np.savez(run.directory / f"{step}.npz", **params)
        then(step)
        return step == ENDS[run.i]

    rows = stack.rows_of(held, (), most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "look", look)
        assert phases.train_phases(turn, rows, [params_of(i) for place in places for i in rows[place]])
    return [dict(np.load(directories[i] / f"{ENDS[i]}.npz")) for i in turn.runs]


def logged(workdir, i):
    lines = [json.loads(line) for line in (workdir / f"c{i}" / METRICS).read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All of them on one device, without an interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, learn_all(workdir, devices=jax.devices()[:1])


def same(expected, got, **tolerance):
    for one, other in zip(expected, got, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], **{"rtol": 0, "atol": 0} | tolerance)


def test_each_ends_as_it_would_alone(whole, tmp_path):
    same([alone(i, tmp_path) for i in range(len(MADE))], whole[1], atol=2e-6)
    assert not np.allclose(whole[1][1]["kernel"], whole[1][3]["kernel"], atol=1e-2)


def test_what_has_ended_is_dropped_and_no_longer_measured(whole):
    phases_ = sorted(int(path.name) for path in (whole[0] / "stack").iterdir())
    # Five rows, three from step 4 on, where two have ended, and one from step 6 on.
    assert phases_ == [0, 4, 6]
    for i, end in enumerate(ENDS):
        measured = sorted(int(path.stem) for path in (whole[0] / f"c{i}").glob("*.npz"))
        assert measured == list(range(2, end + 1, 2))
        assert [step for step, _ in logged(whole[0], i)] == list(range(1, end + 1))


def test_rows_are_halved_and_concepts_stay_on_their_device():
    held = [[0, 2, 4, 6], [1, 3, 5]]
    assert stack.rows_of(held, (), 4) == [[0, 2, 4, 6], [1, 3, 5, 1]]
    assert stack.rows_of(held, {0}, 4) == [[2, 4, 6, 0], [1, 3, 5, 1]]
    assert stack.rows_of(held, {0, 2, 1}, 4) == [[4, 6], [3, 5]]
    assert stack.rows_of([[4, 6], [3, 5]], {0, 2, 1, 3, 5, 4}, 4) == [[6], [3]]
    assert stack.rows_of(held, set(range(7)), 4) == [[], []]


@pytest.mark.parametrize("at", [6, 8])
def test_killed_at_a_measurement_it_ends_with_the_same_bytes(whole, tmp_path, at):
    def kill(step):
        if step == at:
            raise KeyboardInterrupt

    devices = jax.devices()[:1]
    with pytest.raises(KeyboardInterrupt):
        learn_all(tmp_path, devices=devices, then=kill)
    same(whole[1], learn_all(tmp_path, devices=devices))
    assert [logged(tmp_path, i) for i in range(len(MADE))] == [logged(whole[0], i) for i in range(len(MADE))]


def test_sigterm_saves_the_step_and_exits_42(whole, tmp_path):
    devices, told = jax.devices()[:1], []

    def tell(step):
        if step == 4 and not told:
            told.append(step)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as error:
        learn_all(tmp_path, devices=devices, then=tell)
    assert error.value.code == 42
    assert (tmp_path / "stack/0/checkpoints/4").is_dir() and not (tmp_path / "stack/4").exists()
    same(whole[1], learn_all(tmp_path, devices=devices))


def test_a_loss_that_is_not_finite_names_the_line(tmp_path, monkeypatch):
    bad = begun(1) * np.nan
    monkeypatch.setattr("tests.test_stack.begun", lambda i: bad if i == 1 else np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="list, line 1: loss is nan at step 1: .* take it out of the list"):
        learn_all(tmp_path, devices=jax.devices()[:1])


# On several devices.


def compiled_text(mesh, loss=loss_fn):
    """The program of a step with a row for each device."""
    count = mesh.size
    state = stack.first_stack([params_of(i) for i in range(count)], OPTIMIZER, mesh, ema=True)
    own = stack.own_of(begun(0), jax.random.key(0), 10)
    batch = place_batch(mesh, stack.stacked([own | {"pairs": batch_at(i, 0)} for i in range(count)]))
    step = stack.make_stacked_step(loss, OPTIMIZER, mesh, ema_decay=0.9)
    return step.lower(state, batch, None, FROZEN).compile().as_text()


def several_devices(workdir, expected):
    """In a process with four devices."""
    assert jax.device_count() == 4
    expected = [dict(np.load(Path(expected) / f"c{i}" / f"{end}.npz")) for i, end in enumerate(ENDS)]
    same(expected, learn_all(workdir), atol=1e-6)

    mesh = make_mesh(concept=4, data=1)
    assert not re.search(COLLECTIVES, compiled_text(mesh))
    # Were the concepts to share anything, it would be seen.
    shared = compiled_text(mesh, lambda *a: (jax.lax.psum(loss_fn(*a)[0], "concept"), {}))
    assert re.search(COLLECTIVES, shared)


def several_processes(workdir, expected, port, process):
    """In one of two processes with a device each."""
    start(f"localhost:{port}", 2, process)
    found = learn_all(workdir)
    mine = [i for i in range(len(MADE)) if i % 2 == process]
    same([dict(np.load(Path(expected) / f"c{i}" / f"{ENDS[i]}.npz")) for i in mine], found, atol=1e-6)


def placed_by_two(port, process):
    """In one of two processes with two devices each: rows that lie where they belong stay there."""
    start(f"localhost:{port}", 2, process)
    mesh = make_mesh(concept=-1, data=1)
    rows = np.arange(24, dtype=np.float32).reshape(4, 3, 2)[2 * process :][:2]
    here = place_batch(local_mesh(mesh), rows)
    lying = jax.numpy.concatenate([here, -here], axis=1)
    found = place_batch(mesh, lying)
    assert found.shape == (4, 6, 2) and not found.is_fully_addressable
    for shard in found.addressable_shards:
        own = next(one.data for one in lying.addressable_shards if one.device == shard.device)
        assert shard.data.unsafe_buffer_pointer() == own.unsafe_buffer_pointer()
        row = shard.index[0].start
        expected = np.arange(24, dtype=np.float32).reshape(4, 3, 2)[row : row + 1]
        np.testing.assert_array_equal(shard.data, np.concatenate([expected, -expected], axis=1))


def begin(call, devices):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    program = f"from tests import test_stack; test_stack.{call}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, **pipes)


def test_four_devices_learn_as_one_does_and_tell_each_other_nothing(whole, tmp_path):
    process = begin(f"several_devices({str(tmp_path)!r}, {str(whole[0])!r})", devices=4)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def run_two(call, devices):
    """Let two processes make a call, with a port and their numbers as its last arguments."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    processes = [begin(f"{call}{port}, {i})", devices=devices) for i in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "".join(outputs)


def test_two_processes_learn_as_one_does_and_write_once(whole, tmp_path):
    run_two(f"several_processes({str(tmp_path)!r}, {str(whole[0])!r}, ", devices=1)
    for i, end in enumerate(ENDS):  # each line of metrics is there once
        assert [step for step, _ in logged(tmp_path, i)] == list(range(1, end + 1))


def test_rows_that_lie_on_a_process_s_devices_are_not_copied():
    run_two("placed_by_two(", devices=2)
