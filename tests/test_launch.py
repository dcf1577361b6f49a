"""The launch scripts: help, the README, dry runs, and how arguments are quoted on their way."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.launch_fakes import LAUNCH, ROOT, RUN, Cloud, kubernetes, option
from tests.launch_readme import blocks, renewed

NODE = ["--name=pod", "--zone=us-west4-a"]
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def words(line: str) -> list[str]:
    """A line as bash reads it: what arrives in a program."""
    program = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "
    result = subprocess.run(["bash", "-c", program + line], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


# What all have in common.


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS if path.name != "common.sh"])
def test_help_is_the_head_of_the_file_and_wrong_options_are_one_line(cloud, script):
    for arguments in (["--help"], ["run", "--help"], ["2", "--help"]):
        shown = cloud.run(LAUNCH / script, *arguments)
        if shown.returncode == 0:
            break
    assert shown.returncode == 0 and f"launch/{script}" in shown.stdout, shown.stderr
    assert "cost" in shown.stdout and "set -euo" not in shown.stdout
    wrong = cloud.run(LAUNCH / script, "run", "--no_such=1")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert not cloud.calls()


def test_scripts_are_strict_and_executable():
    assert len(SCRIPTS) >= 8
    for path in [*SCRIPTS, LAUNCH / "slurm.sbatch"]:
        if path.name != "common.sh":
            assert "\nset -euo pipefail\n" in path.read_text(), path
        if path.name not in ("common.sh", "slurm.sbatch"):
            assert path.stat().st_mode & 0o111, path


@pytest.mark.parametrize(("command", "shown"), blocks(), ids=lambda text: (text or "")[:40].split(" --")[0])
def test_the_readme_shows_what_its_commands_print(command, shown):
    assert shown is not None, "run python -m tests.launch_readme"


def test_the_readme_is_up_to_date():
    text = (LAUNCH / "README.md").read_text()
    assert renewed(text) == text, "run python -m tests.launch_readme, and look at what changed"
    for path in LAUNCH.iterdir():
        if path.suffix in (".sh", ".sbatch", ".yaml", ".py") and path.stem not in ("common", "worker"):
            assert f"]({path.name})" in text, path
    sections = [part for part in text.split("\n## ")[1:] if "What has been tried" not in part]
    assert all("**Costs**" in part and "**Cleaning up**" in part for part in sections)


DRY = [
    ["tpu_vm.sh", "create", *NODE, "--type=v5p-8"],
    ["tpu_vm.sh", "setup", *NODE, "--bucket=b", "--copy=references"],
    ["tpu_vm.sh", "run", *NODE, "--", *RUN],
    ["tpu_vm.sh", "status", *NODE, "--queued"],
    ["tpu_vm.sh", "logs", *NODE],
    ["tpu_vm.sh", "stop", *NODE],
    ["tpu_vm.sh", "delete", *NODE],
    ["babysit.sh", *NODE, "--type=v6e-8", "--bucket=b", "--", *RUN],
    ["worker.sh", "setup", "--bucket=b"],
    ["worker.sh", "start", "--", *RUN],
    ["worker.sh", "logs"],
    ["xpk.sh", "cluster", "--cluster=c", "--zone=z", "--project=p", "--type=v6e-8", "--bucket=b"],
    ["xpk.sh", "image", "--image=i"],
    [
        "xpk.sh",
        "run",
        "--cluster=c",
        "--zone=z",
        "--project=p",
        "--type=v6e-8",
        "--name=n",
        "--image=i",
        "--",
        *RUN,
    ],
    ["xpk.sh", "apply", "--type=v6e-8", "--name=n", "--image=i", "--bucket=b", "--", *RUN],
    ["xpk.sh", "status", "--name=n"],
    ["xpk.sh", "logs", "--name=n"],
    ["xpk.sh", "stop", "--name=n"],
    ["xpk.sh", "delete", "--cluster=c", "--zone=z", "--project=p"],
    ["slurm.sh", "run", "--", *RUN],
    ["slurm.sh", "status", "--job=7"],
    ["slurm.sh", "stop", "--job=7"],
    ["slurm.sh", "delete", "--job=7"],
    ["skypilot.sh", "run", "--name=n", "--bucket=b", "--", *RUN],
    ["skypilot.sh", "status"],
    ["skypilot.sh", "stop", "--name=n"],
]


@pytest.mark.parametrize("command", DRY, ids=lambda command: "-".join(command[:2]).strip("-"))
def test_a_dry_run_runs_nothing_and_can_be_pasted(cloud, command):
    first = 2 if command[0] != "babysit.sh" else 1
    dry = cloud.run(LAUNCH / command[0], *command[1:first], "--dry_run", *command[first:])
    assert dry.returncode == 0 and dry.stdout, dry.stderr
    assert not cloud.calls()
    assert str(ROOT) not in dry.stdout
    assert subprocess.run(["bash", "-n"], input=dry.stdout, text=True).returncode == 0
    if command[0] in ("babysit.sh", "worker.sh") or command[1] == "status":
        return
    # What is run is what was shown.
    cloud.run("bash", "-c", dry.stdout)
    pasted = cloud.calls()
    cloud.log.unlink(missing_ok=True)
    cloud.reply("git", "exit 0")
    real = cloud.run(LAUNCH / command[0], *command[1:])
    assert real.returncode == 0, real.stderr
    looks = ("describe", "status")  # before something is deleted, or left uncommitted
    assert [call for call in cloud.calls() if not set(looks) & set(call[1:5])] == pasted


# Quoting.


def test_arguments_arrive_on_a_tpu_host_as_they_were_typed(cloud):
    assert cloud.run(LAUNCH / "tpu_vm.sh", "run", *NODE, "--", *RUN).returncode == 0
    (call,) = cloud.calls()
    assert call[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"] and option(call, "worker") == "all"
    assert words(option(call, "command")) == ["attrjax/launch/worker.sh", "start", "--", *RUN]
    dry = cloud.run(LAUNCH / "worker.sh", "start", "--dry_run", "--", *RUN)
    main = [".venv/bin/python", "-m", "attrjax.main", "--coordinator=auto", "--resume"]
    assert words(dry.stdout.strip()) == [*main, *RUN]


def test_arguments_arrive_in_a_pod_as_they_were_typed(cloud):
    at = ["--cluster=c", "--zone=z", "--project=p", "--type=v6e-8", "--name=n", "--image=i"]
    assert cloud.run(LAUNCH / "xpk.sh", "run", *at, "--", *RUN).returncode == 0
    (call,) = cloud.calls("xpk")
    command = option(call, "command")
    assert "\n" not in command  # XPK puts it into a line of YAML
    directory, command = kubernetes(command).split(" && ", 1)
    assert directory == "cd /attrjax"
    exec_, *rest = words(command)
    assert [exec_, *rest] == "exec python -m attrjax.main --coordinator=auto --resume".split() + RUN
    assert option(call, "max-restarts") == "100" and option(call, "termination-grace-period-seconds") == "300"
    assert option(call, "restart-on-exit-codes") == "1"  # besides 42 and what signals end, which XPK knows


def test_arguments_arrive_in_slurm_as_they_were_typed(cloud):
    assert cloud.run(LAUNCH / "slurm.sh", "run", "--nodes=2", "--gpus=4", "--", *RUN).returncode == 0
    (call,) = cloud.calls("sbatch")
    assert call[call.index("launch/slurm.sbatch") + 1 :] == RUN
    assert option(call, "nodes") == "2"
    assert option(call, "gpus-per-node") == option(call, "ntasks-per-node") == "4"  # a process for each GPU
    assert cloud.run("bash", LAUNCH / "slurm.sbatch", *RUN, SLURM_SUBMIT_DIR=str(ROOT)).returncode == 0
    (call,) = cloud.calls("srun")
    assert call[call.index("attrjax.main") + 1 :] == ["--coordinator=auto", "--resume", *RUN]


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_arguments_arrive_through_skypilot_as_they_were_typed(cloud, tmp_path, extra):
    gpus = {"cuda": "H100:8", "tpu": "tpu-v6e-8"}[extra]
    result = cloud.run(LAUNCH / "skypilot.sh", "run", "--name=n", "--bucket=b", f"--gpus={gpus}", "--", *RUN)
    assert result.returncode == 0, result.stderr
    (call,) = cloud.calls("sky")
    envs = dict(word.removeprefix("--env=").split("=", 1) for word in call if word.startswith("--env="))
    assert envs["BUCKET"] == "b" and envs["EXTRA"] == extra
    # The task's own script, with a python that shows its arguments.
    python = tmp_path / "work/.venv/bin/python"
    python.parent.mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    shows = "import json, sys; print(json.dumps(sys.argv[1:]))"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} -c "{shows}" "$@"\n')
    python.chmod(0o755)
    script = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=python.parents[2],
        env=cloud.environment | envs | nodes,
        capture_output=True,
        text=True,
    )
    where = {
        "cuda": ["--coordinator=10.0.0.1:12355", "--processes=2", "--process=1"],
        "tpu": ["--coordinator=auto"],
    }
    assert json.loads(ran.stdout) == ["-m", "attrjax.main", *where[extra], "--resume", *RUN], ran.stderr
    assert (python.parents[2] / "runs").resolve() == tmp_path / "runs"


@pytest.mark.parametrize("argument", ["--resume", "--coordinator=auto", "--process=1", "--processes=2"])
def test_what_the_launcher_says_itself_is_refused(cloud, argument):
    result = cloud.run(LAUNCH / "tpu_vm.sh", "run", *NODE, "--", *RUN, argument)
    assert result.returncode == 2 and "is set by the launcher" in result.stderr
    result = cloud.run(LAUNCH / "tpu_vm.sh", "run", *NODE, "--", "--config=configs/sample.py")
    assert result.returncode == 2 and "--workdir" in result.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", *NODE], "--type is missing"),
        (["create", "--name=pod", "--type=v6e-8"], "--zone is missing"),
        (["create", "--name=Pod!", "--zone=z", "--type=v6e-8"], "--name=Pod!"),
        (["create", *NODE, "--type=v9-8"], "--runtime="),
        (["create", *NODE, "--type=v6e-8", "--spot", "--reserved"], "exclude each other"),
        (["create", *NODE, "--type=v6e-8", "--valid_until=6h"], "--queued"),
        (["create", *NODE, "--type="], "--type needs a value"),
        (["create", *NODE, "--type=v6e-8", "--spot=yes"], "--spot takes no value"),
        (["setup", *NODE, "--copy=../secrets"], "inside this directory"),
        (["stop", *NODE, "now"], "now belongs to no option"),
        (["end", *NODE], "what shall it do?"),
    ],
)
def test_mistakes_are_one_line_and_ask_nothing_of_the_cloud(cloud, arguments, message):
    result = cloud.run(LAUNCH / "tpu_vm.sh", *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1 and not cloud.calls()
