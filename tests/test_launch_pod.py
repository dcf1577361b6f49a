"""How processes find each other, and the local pod, with stand-ins and for real."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jax
import pytest

from attrjax.parallel.start import start
from tests.launch_fakes import LAUNCH, ROOT, alive, wait_until

RUN = ["--config=configs/sample.py", "--workdir=runs/x y", "--config.prompts=('a $b',)"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


# How processes find each other.


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


class Pod:
    """Processes that run the scripts ``0``, ``1`` ... of a directory in place of attrjax."""

    def __init__(self, directory: Path):
        self.directory = directory
        python = directory / "python"
        python.write_text(
            "#!/bin/bash\n"
            "for word; do case $word in --process=*) index=${word#*=} ;; esac; done\n"
            f'cd {directory}; echo $$ >"pid-$index"\n'
            'printf "%s\\n" "$JAX_PLATFORMS/$JAX_NUM_CPU_DEVICES" "$@" >"arguments-$index"\n'
            '. "./$index"\n'
        )
        python.chmod(0o755)

    def start(self, *scripts: str, options: tuple[str, ...] = (), grace: int = 0) -> subprocess.Popen:
        for index, script in enumerate(scripts):
            (self.directory / str(index)).write_text(script)
        command = [LAUNCH / "local_pod.sh", str(len(scripts)), f"--logs={self.directory / 'logs'}"]
        command += [f"--port={free_port()}", *options, "--", *RUN]
        environment = os.environ | {"PYTHON": str(self.directory / "python"), "GRACE": str(grace)}
        # A job in the background of a script ignores SIGINT, and so does all that it starts, tests too.
        default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=default,
        )

    def pid(self, index: int) -> int:
        file = self.directory / f"pid-{index}"
        wait_until(lambda: file.exists() and file.read_text().strip())
        return int(file.read_text())


@pytest.fixture
def pod(tmp_path):
    return Pod(tmp_path)


TRAP = "trap 'exit 42' TERM; touch ready-$index; while true; do sleep 0.1; done"
DEAF = "trap '' TERM; touch ready-$index; while true; do sleep 0.1; done"


def test_each_process_of_the_pod_knows_its_place(pod):
    process = pod.start("echo first", "echo other", "exit 0", options=("--devices=2",))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    for index in range(3):
        platform, *arguments = (pod.directory / f"arguments-{index}").read_text().splitlines()
        assert platform == "cpu/2" and arguments[:2] == ["-m", "attrjax.main"]
        assert arguments[2].startswith("--coordinator=localhost:")
        assert arguments[3:] == ["--processes=3", f"--process={index}", "--resume", *RUN]
    assert out == "first\n" and (pod.directory / "logs/process-1.log").read_text() == "other\n"


@pytest.mark.parametrize(
    ("scripts", "code"),
    [
        (("exit 42", "exit 42"), 42),
        (("exit 0", "exit 42"), 42),
        (("exit 42", "sleep 0.5; exit 3"), 3),
        (("sleep 0.5; exit 5", "exit 3"), 3),
        (("exit 0", "kill -SEGV $$"), 128 + signal.SIGSEGV),
    ],
)
def test_the_exit_code_is_the_first_bad_one_of_any_process(pod, scripts, code):
    process = pod.start(*scripts, grace=30)
    process.communicate(timeout=60)
    assert process.returncode == code


def test_one_that_fails_ends_the_others_and_shows_why(pod):
    process = pod.start("exec sleep 600", "echo the reason >&2; exit 7")
    others = pod.pid(0)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7 and "process 1 of this pod ended with exit code 7" in errors
    assert "the reason" in errors and not alive(others)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_processes(pod, number):
    process = pod.start(TRAP, TRAP, TRAP)
    wait_until(lambda: all((pod.directory / f"ready-{i}").exists() for i in range(3)), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 42, errors


def test_a_second_signal_kills(pod):
    process = pod.start(DEAF, DEAF)
    wait_until(lambda: all((pod.directory / f"ready-{i}").exists() for i in range(2)), process)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None and alive(pod.pid(0))
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert not alive(pod.pid(0)) and not alive(pod.pid(1))


def test_a_taken_port_is_told_before_anything_starts(pod):
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        process = pod.start("exit 0", options=(f"--port={server.getsockname()[1]}",))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "is taken" in errors and not (pod.directory / "pid-0").exists()


@pytest.mark.parametrize("count", ["0", "two", "--port=1", "2x"])
def test_a_pod_of_no_number(count):
    result = subprocess.run([LAUNCH / "local_pod.sh", count, "--", *RUN], capture_output=True, text=True)
    assert result.returncode == 2 and "the number of processes comes first" in result.stderr


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


# The local pod, for real.

TINY = [
    "--config=configs/attrworld/clip.py",
    "--config.reading.batch_size=4",
    "--config.reading.steps=1000000",
    "--config.reading.optimizer.warmup=1",
    "--config.log_every=1",
    *(f"--config.{tower}.hidden_size=16" for tower in ("text", "vision")),
    *(f"--config.{tower}.intermediate_size=32" for tower in ("text", "vision")),
    *(f"--config.{tower}.num_attention_heads=2" for tower in ("text", "vision")),
    *(f"--config.{tower}.num_hidden_layers=1" for tower in ("text", "vision")),
    *(f"--config.{tower}.projection_dim=8" for tower in ("text", "vision")),
]


SHORT = [
    "--config=configs/attrworld/vae.py",
    "--config.network.block_out_channels=(8,8,8)",
    "--config.size=32",
    "--config.batch_size=2",
    "--config.steps=2",
    "--config.optimizer.warmup=1",
]


def test_a_pod_of_two_real_processes_ends_well_and_so_it_does_again(tmp_path):
    """Again after it was killed while it wrote: one file is there, and the other is not."""
    workdir = tmp_path / "run"
    arguments = [*SHORT, f"--workdir={workdir}", f"--config.cache_dir={tmp_path / 'cache'}"]
    files = [workdir / "vae" / name for name in ("config.json", "diffusion_pytorch_model.safetensors")]

    def made() -> list[bytes]:
        command = [LAUNCH / "local_pod.sh", "2", f"--logs={tmp_path / 'logs'}", f"--port={free_port()}"]
        pod = subprocess.run(
            [*command, "--", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert pod.returncode == 0, pod.stderr[-3000:]
        assert "results" in json.loads((workdir / "run.json").read_text())
        return [file.read_bytes() for file in files]

    first = made()
    files[0].unlink()
    assert made() == first


def test_a_pod_of_two_real_processes_stops_at_one_step_and_goes_on(tmp_path):
    """SIGTERM to one of the processes, then to the pod: each time both save the same step and end with 42."""
    workdir = tmp_path / "run"
    metrics, checkpoints = workdir / "reading/metrics.jsonl", workdir / "reading/checkpoints"
    command = [LAUNCH / "local_pod.sh", "2", f"--logs={tmp_path / 'logs'}"]
    arguments = [*TINY, f"--workdir={workdir}", f"--config.cache_dir={tmp_path / 'cache'}"]

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in metrics.read_text().splitlines() if line.endswith("}")]

    def begin() -> subprocess.Popen:
        return subprocess.Popen(
            [*command, f"--port={free_port()}", "--", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHON": sys.executable},
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / "errors").open("w"),
            start_new_session=True,
        )

    def saved() -> int:
        (log,) = (tmp_path / "logs").iterdir()
        assert pod.wait(timeout=600) == 42, (tmp_path / "errors").read_text() + log.read_text()
        step = max(int(path.name) for path in checkpoints.iterdir())
        assert steps() == list(range(1, step + 1))  # none is missing, none is there twice
        for text in (log.read_text(), (tmp_path / "errors").read_text()):
            assert f"saved step {step} of" in text
        return step

    pod = begin()
    try:
        wait_until(lambda: metrics.exists() and len(steps()) >= 2, pod, seconds=600)
        listed = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pod.pid)], capture_output=True, text=True
        )
        (second,) = [line for line in listed.stdout.splitlines() if "--process=1" in line]
        os.kill(int(second.split()[0]), signal.SIGTERM)
        first = saved()
        pod = begin()
        wait_until(lambda: len(steps()) > first, pod, seconds=600)
        pod.terminate()
        assert saved() > first
        assert f"going on from step {first} of" in (tmp_path / "errors").read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pod.pid, signal.SIGKILL)
