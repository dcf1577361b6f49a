"""What is asked of Kubernetes and Slurm, and how a list of references is split over slices."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

from tests.launch_fakes import LAUNCH, ROOT, RUN, Cloud, kubernetes, wait_until


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


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


@pytest.mark.parametrize("where", ["--x=a\1b", "--image=a\1b", "--service_account=a\1b"])
def test_what_no_jobset_can_hold_is_not_applied(cloud, where):
    arguments = [*APPLY, "--type=v6e-8", "--", *RUN]
    arguments.insert(len(arguments) if where.startswith("--x=") else 0, where)
    if where.startswith("--image="):
        arguments.remove("--image=registry/a:b")
    result = cloud.run(LAUNCH / "xpk.sh", "apply", *arguments)
    assert result.returncode == 2 and not cloud.calls()
    assert "control character" in result.stderr and "a\\001b" in result.stderr
    assert result.stderr.count("\n") == 1


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
    assert got["spec"]["failurePolicy"]["maxRestarts"] > 0  # for all that no rule names


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
    assert sorted(cloud.calls()) == sorted(
        [["sky", f"{i}/3", f"--x={parts[i]}", "{y} $z"] for i in range(3)] * 2
    )
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


def many(tmp_path, *launcher: str) -> list:
    return [*SPLIT, MANY, "--slices=3", f"--to={tmp_path / 'to'}", "--", *launcher, "{references}"]


def test_every_slice_is_launched_and_the_first_bad_exit_code_is_told(cloud, tmp_path):
    cloud.reply("sky", "case $1 in 0) exit 0 ;; 1) exit 42 ;; *) kill -KILL $$ ;; esac")
    result = cloud.run(*many(tmp_path, "sky", "{slice}"))
    assert result.returncode == 42 and len(cloud.calls()) == 3
    told = ["slice 1 ended with exit code 42", "slice 2 ended with exit code 137"]
    assert sorted(result.stderr.splitlines()) == told


def test_launchers_run_side_by_side_and_each_line_says_whose_it_is(cloud, tmp_path):
    together = """
    touch $STATE/begun-$1
    for ((i = 0; i < 300; i++)); do
      [ -e $STATE/begun-0 -a -e $STATE/begun-1 -a -e $STATE/begun-2 ] && break
      sleep 0.1
    done
    ((i < 300)) || exit 9
    echo out; printf 'an error without an end' >&2
    """
    cloud.reply("sky", together)
    result = cloud.run(*many(tmp_path, "sky", "{slice}"))
    assert result.returncode == 0 and not result.stderr, result.stderr
    lines = result.stdout.splitlines()
    for index in range(3):
        of_slice = [line for line in lines if line.startswith(f"{index}: ")]
        assert of_slice == [f"{index}: out", f"{index}: an error without an end"]


def begun(cloud, command: list) -> subprocess.Popen[str]:
    """What runs the launchers, once all three have begun."""
    # Under nohup, or in a script's background, it would inherit that these are ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=cloud.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for number, handler in before.items():
        signal.signal(number, handler)
    wait_until(lambda: all((cloud.directory / f"begun-{index}").exists() for index in range(3)), process)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_launchers_and_lets_them_save(cloud, tmp_path, number):
    saves = """
    trap 'echo told; told=$((told + 1))' TERM
    touch $STATE/begun-$1
    for ((i = 0; i < 600; i++)); do [ -z "$told" ] || break; sleep 0.1; done
    for ((i = 0; i < 10; i++)); do sleep 0.1; done
    exit $((told == 1 ? CODE : 9))
    """
    for code, expected in ((42, 42), (0, 128 + number)):
        cloud.reply("sky", f"CODE={code}\n{saves}")
        for mark in cloud.directory.glob("begun-*"):
            mark.unlink()
        process = begun(cloud, many(tmp_path, "sky", "{slice}"))
        process.send_signal(number)
        shown, errors = process.communicate(timeout=60)
        assert process.returncode == expected, errors
        assert sorted(re.findall("^.*told$", shown, re.MULTILINE)) == ["0: told", "1: told", "2: told"]


def test_a_signal_ends_what_launchers_have_started(cloud, tmp_path):
    cloud.reply("sky", "touch $STATE/begun-$1\nsleep 120\nexit 0")
    process = begun(cloud, many(tmp_path, "sky", "{slice}"))
    process.terminate()
    process.communicate(timeout=60)  # until nothing holds what it writes to
    assert process.returncode == 128 + signal.SIGTERM


def test_ctrl_c_at_a_terminal_reaches_a_local_pod_once(cloud, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/bash
trap 'sleep 1; touch {tmp_path}/saved-$SLICE; exit 42' TERM
touch {tmp_path}/begun-$SLICE
for ((i = 0; i < 600; i++)); do sleep 0.1; done
""")
    python.chmod(0o755)
    environment = ["env", "SLICE={slice}", f"PYTHON={python}"]
    pod = ["launch/local_pod.sh", "1", "--port=1{slice}987", f"--logs={tmp_path}", "--", *RUN]
    process = begun(cloud, many(tmp_path, *environment, *pod))
    time.sleep(0.5)  # the pods' own traps
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 42, errors
    assert len(list(tmp_path.glob("saved-*"))) == 3


def test_a_launcher_that_is_not_there_is_told_and_ends_the_others(cloud, tmp_path):
    cloud.reply("sky", "sleep 60")
    (tmp_path / "launch-0").symlink_to(cloud.directory / "bin/sky")
    result = cloud.run(*many(tmp_path, str(tmp_path / "launch-{slice}")), timeout=60)
    told = result.stderr.splitlines()
    assert result.returncode == 2 and told[0] == "slice 0 ended with exit code 143"
    assert len(told) == 2 and told[1].startswith("error: ") and "launch-1" in told[1]


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
    assert sorted(cloud.calls()) == sorted(pasted * 2) and len(pasted) == 2
