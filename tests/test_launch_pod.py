"""The local pod, with stand-ins and for real."""

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

import pytest

from tests.launch_fakes import LAUNCH, ROOT, alive, free_port, wait_until

RUN = ["--config=configs/sample.py", "--workdir=runs/x y", "--config.prompts=('a $b',)"]


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
