"""The launch scripts: what they ask of a cloud, in every state that it can be in, and how they quote it."""

import json
import re
import shlex
import subprocess
import sys

import jsonschema
import pytest
import yaml

from tests.launch_fakes import ROOT, Cloud
from tests.launch_readme import blocks, renewed

LAUNCH = ROOT / "launch"
# Everything that a shell could take for its own.
HARD = [
    "--config.prompts=('a cat', \"it's $HOME $(id) `id`\")",
    "--config.path=a  b\tc*?[x]{y,z}~!#&;|<>\\",
    "--config.lines=one\ntwo",
    "--config.empty=",
    "é €",
]
RUN = ["--config=configs/sample.py", "--workdir=runs/x y", *HARD]
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


def option(call: list[str], name: str) -> str:
    (value,) = [word.split("=", 1)[1] for word in call if word.startswith(f"--{name}=")]
    return value


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


def kubernetes(text: str) -> str:
    """What Kubernetes makes of a container's command: $$ is $, and no name is known."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), "Kubernetes would take this for a variable of its own"
    return text.replace("$$", "$")


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


# A slice by hand.


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_a_slice_gets_the_image_of_its_generation(cloud, kind, image):
    assert cloud.run(LAUNCH / "tpu_vm.sh", "create", *NODE, f"--type={kind}").returncode == 0
    queued = ["--queued", "--spot", "--valid_until=6h"]
    assert cloud.run(LAUNCH / "tpu_vm.sh", "create", *NODE, f"--type={kind}", *queued).returncode == 0
    direct, queued = cloud.calls()
    assert direct[3:6] == ["tpu-vm", "create", "pod"] and option(direct, "version") == image
    assert queued[3:6] == ["queued-resources", "create", "pod"] and option(queued, "runtime-version") == image
    assert option(queued, "node-id") == "pod" and "--spot" in queued
    assert option(queued, "valid-until-duration") == "6h"


GCLOUD = """
show() { cat $STATE/$1 2>/dev/null || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }; }
case "$*" in
  *queued-resources\\ describe*) show queue ;;
  *describe*) show node ;;
  *worker.sh\\ state*) cat $STATE/hosts ;;
esac
"""


@pytest.mark.parametrize("state", ["READY", "PREEMPTED", "CREATING", "FAILED", None])
def test_status_of_a_slice(cloud, state):
    cloud.reply("gcloud", GCLOUD)
    (cloud.directory / "hosts").write_text(
        "Using ssh batch size of 2.\nattrjax: running\nattrjax: exited 42\n"
    )
    if state:
        (cloud.directory / "node").write_text(f"{state}\n")
    result = cloud.run(LAUNCH / "tpu_vm.sh", "status", *NODE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == (state or "ABSENT")
    assert ("attrjax: exited 42" in result.stdout) == (state == "READY")


def test_status_of_a_queued_slice(cloud):
    cloud.reply("gcloud", GCLOUD)
    status = [LAUNCH / "tpu_vm.sh", "status", "--queued", *NODE]
    assert cloud.run(*status).stdout == "ABSENT\n"
    (cloud.directory / "queue").write_text("WAITING_FOR_RESOURCES\n")
    assert cloud.run(*status).stdout == "WAITING_FOR_RESOURCES\n"
    (cloud.directory / "queue").write_text("ACTIVE\n")
    (cloud.directory / "node").write_text("PREEMPTED\n")
    assert cloud.run(*status).stdout == "PREEMPTED\n"


def test_a_gcloud_that_fails_is_no_missing_slice(cloud):
    cloud.reply("gcloud", "echo 'ERROR: you are not logged in' >&2; exit 1")
    result = cloud.run(LAUNCH / "tpu_vm.sh", "status", *NODE)
    assert result.returncode != 0 and "not logged in" in result.stderr and "ABSENT" not in result.stdout


def test_a_missing_slice_is_not_deleted(cloud):
    cloud.reply("gcloud", GCLOUD)
    result = cloud.run(LAUNCH / "tpu_vm.sh", "delete", *NODE)
    assert result.returncode == 0 and "nothing to delete" in result.stderr
    assert not [call for call in cloud.calls("gcloud") if "delete" in call]


# Kubernetes.


def schema(name: str) -> dict:
    return json.loads((ROOT / "tests/launch_schemas" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["jobset", "skypilot"])
def test_yaml_follows_its_schema(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))
    written = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    jsonschema.validate(written, schema(name))
    with pytest.raises(jsonschema.ValidationError):  # it does look
        jsonschema.validate(written | {"no_such_field": 1}, schema(name))


def test_skypilot_recovers_what_saved_itself_and_nothing_else():
    recovery = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [42] and recovery["max_restarts_on_errors"] == 0


APPLY = ["--name=n", "--image=registry/a:b", "--bucket=b"]


def applied(cloud, *arguments) -> dict:
    cloud.reply("kubectl", 'case "$*" in apply*) cat >$STATE/manifest ;; esac')
    result = cloud.run(LAUNCH / "xpk.sh", "apply", *arguments, "--", *RUN)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load((cloud.directory / "manifest").read_text())


@pytest.mark.parametrize(
    ("kind", "selector", "topology", "hosts", "chips"),
    [
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5litepod-256", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v6e-1", "tpu-v6e-slice", "1x1", 1, 1),
        ("v6e-8", "tpu-v6e-slice", "2x4", 1, 8),
        ("v5p-8", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v5p-128", "tpu-v5p-slice", "4x4x4", 16, 4),
    ],
)
def test_the_jobset_is_filled_in(cloud, kind, selector, topology, hosts, chips):
    got = applied(cloud, *APPLY, f"--type={kind}", "--slices=3", "--spot", "--grace=120", "--max_restarts=7")
    jsonschema.validate(got, schema("jobset"))
    assert got["metadata"]["name"] == "n" and got["spec"]["failurePolicy"]["maxRestarts"] == 7
    (job,) = got["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["replicas"] == 3 and spec["parallelism"] == spec["completions"] == hosts
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == selector
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    numbers = [int(n) for n in topology.split("x")]
    total = numbers[0] * numbers[1] * (numbers[2] if len(numbers) == 3 else 1)
    assert hosts * chips == total and container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["terminationGracePeriodSeconds"] == 120 and container["image"] == "registry/a:b"
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert [kubernetes(word) for word in container["args"]] == RUN


def test_on_demand_slices_are_not_asked_for_as_spot(cloud):
    got = applied(cloud, *APPLY, "--type=v6e-8")
    pod = got["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


def test_the_jobset_ends_at_a_users_mistake_and_at_no_other_exit_code():
    got = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (rule,) = got["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = got["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert job["backoffLimit"] == 0  # a pod alone cannot come back


def test_status_of_a_jobset(cloud):
    cloud.reply(
        "kubectl", 'case "$*" in *jobset\\ pod*) [ -e $STATE/jobset ] && cat $STATE/jobset || true ;; esac'
    )
    assert cloud.run(LAUNCH / "xpk.sh", "status", "--name=pod").stdout == "ABSENT\n"
    (cloud.directory / "jobset").write_text("NAME  TERMINALSTATE  RESTARTS\npod   Failed   3\n")
    assert "Failed" in cloud.run(LAUNCH / "xpk.sh", "status", "--name=pod").stdout
    cloud.reply("kubectl", "echo 'cannot reach the cluster' >&2; exit 1")
    result = cloud.run(LAUNCH / "xpk.sh", "status", "--name=pod")
    assert result.returncode == 1 and "ABSENT" not in result.stdout and "cannot reach" in result.stderr


# Slurm.


@pytest.mark.parametrize(
    ("ended", "refused", "code", "requeued"),
    [
        (0, 0, 0, False),
        (42, 0, 0, True),
        (42, 1, 42, True),
        (1, 0, 1, False),
        (2, 0, 2, False),
        (137, 0, 137, False),
    ],
)
def test_a_slurm_job_that_saved_itself_is_queued_again(cloud, ended, refused, code, requeued):
    cloud.reply("srun", f"exit {ended}")
    cloud.reply("scontrol", f"exit {refused}")
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "77"}
    result = cloud.run("bash", LAUNCH / "slurm.sbatch", *RUN, **slurm)
    assert result.returncode == code, result.stderr
    assert cloud.calls("scontrol") == ([["scontrol", "requeue", "77"]] if requeued else [])


def test_a_preempted_slurm_script_outlives_its_processes(cloud):
    cloud.reply("srun", "kill -TERM $PPID; sleep 0.2; exit 42")
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "77"}
    assert cloud.run("bash", LAUNCH / "slurm.sbatch", *RUN, **slurm).returncode == 0
    assert cloud.calls("scontrol") == [["scontrol", "requeue", "77"]]


def test_the_slurm_job_leaves_time_to_save():
    lines = re.findall(
        r"^#SBATCH --([a-z-]+)(?:=(.*))?$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE
    )
    settings = dict(lines)
    signal, seconds = settings["signal"].split("@")
    assert signal == "TERM" and int(seconds) >= 60 and "requeue" in settings
    assert settings["open-mode"] == "append"  # a job that comes back must not erase its log
    assert settings["gpus-per-node"] == settings["ntasks-per-node"]


def test_states_of_a_slurm_job(cloud):
    status = [LAUNCH / "slurm.sh", "status", "--job=9"]
    cloud.reply("squeue", "echo '9 attrjax RUNNING 1:00 node1'")
    assert cloud.run(*status).stdout == "9 attrjax RUNNING 1:00 node1\n"
    cloud.reply("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert cloud.run(*status).stdout == "ABSENT\n"
    cloud.reply("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    result = cloud.run(*status)
    assert result.returncode == 2 and "Unable to contact" in result.stderr


def test_a_slurm_job_that_is_stopped_does_not_come_back(cloud):
    assert cloud.run(LAUNCH / "slurm.sh", "stop", "--job=9").returncode == 0
    assert cloud.calls() == [
        ["scontrol", "update", "JobId=9", "Requeue=0"],
        ["scancel", "--signal=TERM", "9"],
    ]
    assert cloud.run(LAUNCH / "slurm.sh", "stop", "--job=9; reboot").returncode == 2


# A list over slices.


SPLIT = [sys.executable, LAUNCH / "split_references.py"]
MANY = ROOT / "tests/launch_references.jsonl"


def test_a_list_is_split_evenly_and_the_same_again(cloud, tmp_path):
    list_ = tmp_path / "list.jsonl"
    list_.write_text("\n".join(json.dumps({"reference": f"{i}.png"}) for i in range(7)) + "\n\n")
    command = [*SPLIT, list_, "--slices=3", f"--to={tmp_path / 'to'}"]
    launcher = ["--", "sky", "{slice}/{slices}", "--x={references}", "{y} $z"]
    for _ in range(2):
        result = cloud.run(*command, *launcher)
        assert result.returncode == 0, result.stderr
    parts = [tmp_path / "to" / f"slice-{i}-of-3.jsonl" for i in range(3)]
    assert cloud.calls() == [["sky", f"{i}/3", f"--x={parts[i]}", "{y} $z"] for i in range(3)] * 2
    read = [[json.loads(line)["reference"] for line in part.read_text().splitlines()] for part in parts]
    assert read == [["0.png", "3.png", "6.png"], ["1.png", "4.png"], ["2.png", "5.png"]]
    list_.write_text('{"reference": "other.png"}\n' * 1 + '{"a": 1}\n{"a": 2}\n')
    changed = cloud.run(*command, *launcher)
    assert changed.returncode == 2 and "of another list" in changed.stderr
    assert len(cloud.calls()) == 6


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ('{"a": 1}\n', 2, "1 references cannot be split over 2 slices"),
        ('{"a": 1}\n', 0, "over 0 slices"),
        ('{"a": 1}\nmug.png\n', 1, "line 2: this is not JSON"),
        ('"mug.png"\n', 1, "line 1: a reference is a JSON object"),
        ('{"a": 1}\n{"a": 2}\n{"a": 1}\n', 1, "line 3: the reference of line 1 again"),
    ],
)
def test_lists_that_cannot_be_split(cloud, tmp_path, text, slices, message):
    (tmp_path / "list.jsonl").write_text(text)
    command = [*SPLIT, tmp_path / "list.jsonl", f"--slices={slices}", f"--to={tmp_path / 'to'}"]
    result = cloud.run(*command, "--", "sky", "{references}")
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not cloud.calls() and not (tmp_path / "to").exists()


def test_every_slice_is_launched_and_the_first_bad_exit_code_is_told(cloud, tmp_path):
    cloud.reply("sky", "case $1 in 0) exit 0 ;; 1) exit 42 ;; *) exit 1 ;; esac")
    result = cloud.run(
        *SPLIT, MANY, "--slices=3", f"--to={tmp_path / 'to'}", "--", "sky", "{slice}", "{references}"
    )
    assert result.returncode == 42 and len(cloud.calls()) == 3
    cloud.reply("sky", "kill -TERM $PPID; sleep 5; exit 0")
    result = cloud.run(
        *SPLIT, MANY, "--slices=3", f"--to={tmp_path / 'to'}", "--", "sky", "{slice}", "{references}"
    )
    assert result.returncode == 128 + 15 and len(cloud.calls()) == 4  # no other was begun


def test_a_dry_split_writes_nothing_and_can_be_pasted(cloud, tmp_path):
    launcher = [
        LAUNCH / "slurm.sh",
        "run",
        "--name=part-{slice}",
        "--",
        *RUN,
        "--config.references={references}",
    ]
    command = [*SPLIT, MANY, "--slices=2", f"--to={tmp_path / 'to'}"]
    dry = cloud.run(*command, "--dry_run", "--", *launcher)
    assert dry.returncode == 0 and not cloud.calls() and not (tmp_path / "to").exists()
    lines = [line for line in dry.stdout.split("\n# ")]
    assert len(lines) == 2 and f"part-1 -- {shlex.join(RUN)}" in lines[1]
    cloud.run("bash", "-c", dry.stdout)
    pasted = cloud.calls()
    assert cloud.run(*command, "--", *launcher).returncode == 0
    assert cloud.calls() == pasted * 2 and len(pasted) == 2
