"""How processes find each other, wait for each other, and are told to end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from attrjax.parallel.start import start
from tests.launch_fakes import ROOT, free_port


@pytest.fixture
def initialized(monkeypatch):
    """Arguments of ``jax.distributed.initialize``."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    for name in ("ATTRJAX_COORDINATOR", "ATTRJAX_PROCESSES", "ATTRJAX_PROCESS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_process_joins_nothing(initialized):
    start()
    start("")
    assert not initialized


def test_processes_meet_where_flags_or_the_environment_say(initialized, monkeypatch):
    alone = {"cluster_detection_method": "deactivate"}  # what it is told is all there is
    start("host:1", 4, 3)
    monkeypatch.setenv("ATTRJAX_COORDINATOR", "[::1]:2")
    monkeypatch.setenv("ATTRJAX_PROCESSES", "2")
    monkeypatch.setenv("ATTRJAX_PROCESS", "0")
    start()
    start(process=1)
    assert initialized == [
        (("host:1", 4, 3), alone),
        (("[::1]:2", 2, 0), alone),
        (("[::1]:2", 2, 1), alone),
    ]


def test_jax_finds_the_others_by_itself(initialized, monkeypatch):
    start("auto")
    assert initialized == [((), {})]
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda: exec('raise ValueError("no coordinator_address")')
    )
    with pytest.raises(ValueError, match="no host of a TPU slice and no task of Slurm"):
        start("auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("auto", 2, None), "leave the rest out"),
        ((None, 2, 0), "need coordinator=HOST:PORT"),
        (("host", 2, 0), "must be HOST:PORT"),
        (("host:port", 2, 0), "must be HOST:PORT"),
        (("host:1", None, 0), "0 <= process < processes"),
        (("host:1", 2, None), "0 <= process < processes"),
        (("host:1", 2, 2), "0 <= process < processes"),
    ],
)
def test_a_meeting_that_cannot_be(initialized, arguments, message):
    with pytest.raises(ValueError, match=message):
        start(*arguments)
    assert not initialized


def test_a_number_in_the_environment_that_is_none(initialized, monkeypatch):
    monkeypatch.setenv("ATTRJAX_PROCESSES", "two")
    with pytest.raises(ValueError, match="ATTRJAX_PROCESSES=two"):
        start("host:1")


def test_the_command_line_says_what_is_wrong_with_a_meeting(tmp_path):
    flags = [
        "--config=configs/sample.py",
        f"--workdir={tmp_path / 'x'}",
        "--coordinator=host",
        "--processes=2",
    ]
    command = [sys.executable, "-m", "attrjax.main", *flags, "--process=0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2 and "error: coordinator=host must be HOST:PORT" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "x").exists()


# The local pod, with a python that does as it is told.


LATE = """
import sys, time
from attrjax.parallel.start import start, together
start("localhost:" + sys.argv[1], 2, int(sys.argv[2]))
import jax
jax.devices()
time.sleep(35 * int(sys.argv[2]))
together("here")
print("met")
"""


def two(program: str, *arguments: str | Path) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of two processes, whose arguments begin with a port and their index."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, port, str(i), *arguments],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
        return [(process.returncode, *one) for process, one in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def test_processes_meet_that_come_half_a_minute_apart():
    """gloo alone gives up after 30 s, where it is their first collective."""
    for _, said, errors in two(LATE):
        assert said.split()[-1:] == ["met"], errors[-2000:]


# As the arguments say: trainings, each to a number of steps in a directory of its own, and SIGTERM to one of
# the processes.
TRAININGS = """
import os, signal, sys, time
from pathlib import Path
from attrjax.parallel.start import start, together
start("localhost:" + sys.argv[1], 2, int(sys.argv[2]))
import jax
from attrjax.parallel.mesh import make_mesh, own_rows
from attrjax.training import init_state, make_optimizer, make_step, train
from tests.test_training import batch_at, first_params, loss_fn
mesh, optimizer = make_mesh(), make_optimizer(1e-2, 60, warmup=5)
step = make_step(loss_fn, optimizer, mesh)
for what in sys.argv[4:]:
    together(what)
    if what == "SIGTERM":
        if jax.process_index():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # then both know
    else:
        name, steps = what.split(":")
        state, rows = init_state(first_params(), optimizer, mesh), lambda number: own_rows(batch_at(number))
        options = {"root_key": jax.random.key(3), "mesh": mesh, "workdir": Path(sys.argv[3], name)}
        train(state, step, rows, steps=int(steps), **options)
"""


@pytest.mark.parametrize("begun", [("a:5", "SIGTERM", "b:5"), ("SIGTERM", "a:10")])
def test_a_signal_between_trainings_or_before_one_that_goes_on_is_not_lost(begun, tmp_path):
    if begun[-1] == "a:10":
        assert [code for code, *_ in two(TRAININGS, tmp_path, "a:5")] == [0, 0]
    for code, _, errors in two(TRAININGS, tmp_path, *begun):
        assert code == 42, errors[-2000:]


ALONE = """
import os, signal, sys, time
from attrjax.parallel.start import start
if "first" in sys.argv:
    os.getpid = lambda: 1
start("localhost:" + sys.argv[1], 1, 0) if sys.argv[1].isdigit() else start()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("in a run of one", -signal.SIGTERM),
        # The first process of a container, which no signal ends that it does not handle.
        ("first", 128 + signal.SIGTERM),
    ],
)
def test_sigterm_ends_a_process_that_has_no_step_to_save(how, code):
    command = [sys.executable, "-c", ALONE, "first" if how == "first" else str(free_port())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=60) == code
    finally:
        process.kill()


DAMAGED = """
import sys
from pathlib import Path
from attrjax.parallel.start import start, together
start("localhost:" + sys.argv[1], 2, int(sys.argv[2]))
import jax, numpy as np
from attrjax.checkpoints.training import open_checkpoints, restore_newest, save_checkpoint
from attrjax.parallel.mesh import make_mesh, on_host, place_state
mesh, directory = make_mesh(data=1, fsdp=-1), Path(sys.argv[3])
together("begun")
states = [{"x": np.random.default_rng(i).normal(size=(256, 256)).astype(np.float32)} for i in range(2)]
manager = open_checkpoints(directory)
for step, state in enumerate(states):
    save_checkpoint(manager, step, place_state(mesh, state))
manager.wait_until_finished()
together("saved")
if jax.process_index():
    file = max((directory / "1/default/ocdbt.process_1/d").iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
together("damaged")
found, step = restore_newest(manager, place_state(mesh, states[1]))
np.testing.assert_array_equal(on_host(found)["x"], states[0]["x"])
manager.close()
print("went on from", step)
"""


def test_where_one_process_cannot_read_its_part_all_put_the_checkpoint_aside(tmp_path):
    for code, said, errors in two(DAMAGED, tmp_path):
        assert code == 0 and "went on from 0" in said, errors[-3000:]
    assert (tmp_path / "1.corrupt").is_dir()
