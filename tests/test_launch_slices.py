"""A TPU slice: what is asked of gcloud, one host's supervisor, and the babysitter that recreates it."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch_fakes import LAUNCH, ROOT, Cloud, alive, option, wait_until

RUN = ["--config=configs/sample.py", "--workdir=runs/x y", "--config.prompts=('a $b',)"]
NODE = ["--name=pod", "--zone=us-west4-a"]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


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
    (cloud.directory / "node").unlink()
    assert cloud.run(*status).stdout == "LOST\n"


def test_a_gcloud_that_fails_is_no_missing_slice(cloud):
    cloud.reply("gcloud", "echo 'ERROR: you are not logged in' >&2; exit 1")
    result = cloud.run(LAUNCH / "tpu_vm.sh", "status", *NODE)
    assert result.returncode != 0 and "not logged in" in result.stderr and "ABSENT" not in result.stdout


def test_a_missing_slice_is_not_deleted(cloud):
    cloud.reply("gcloud", GCLOUD)
    result = cloud.run(LAUNCH / "tpu_vm.sh", "delete", *NODE)
    assert result.returncode == 0 and "nothing to delete" in result.stderr
    assert not [call for call in cloud.calls("gcloud") if "delete" in call]


# One host of a slice.


class Host:
    """A copy of the launchers in a directory of its own, with a python that does as it is told."""

    def __init__(self, cloud: Cloud):
        self.cloud, self.root = cloud, cloud.directory / "attrjax"
        shutil.copytree(LAUNCH, self.root / "launch")
        self.python = self.root / "python"

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        environment = self.cloud.environment | {"PYTHON": str(self.python)} | environment
        return subprocess.run(
            [self.root / "launch/worker.sh", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def program(self, script: str) -> None:
        self.python.write_text(f'#!/bin/bash\ncd {self.root}\necho "$@" >arguments\n{script}\n')
        self.python.chmod(0o755)

    def set_up(self) -> None:
        venv = self.root / ".venv/bin/python"
        venv.parent.mkdir(parents=True)
        venv.write_text("#!/bin/bash\n")
        venv.chmod(0o755)
        result = self("setup", "--bucket=b")
        assert result.returncode == 0, result.stderr

    def state(self) -> str:
        return self("state").stdout.strip().removeprefix("attrjax: ")


@pytest.fixture
def host(cloud):
    host = Host(cloud)
    yield host
    pid = host.root / "build/worker/pid"
    if host.state() == "running":
        os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_a_host_is_set_up_before_it_starts(host):
    assert host.state() == "absent"
    refused = host("start", "--", *RUN)
    assert refused.returncode == 2 and "not set up" in refused.stderr
    host.set_up()
    assert host.state() == "ready"


def test_a_set_up_that_fails_leaves_the_host_absent(host):
    host.cloud.reply("python3", "exit 1")
    assert host("setup").returncode != 0
    assert host.state() == "absent"


def test_a_host_that_lost_its_bucket_is_absent(host):
    host.set_up()
    host.cloud.reply("mountpoint", "exit 1")  # as after a restart of the host
    assert host.state() == "absent"


@pytest.mark.parametrize("code", [0, 1, 2, 42])
def test_a_run_leaves_its_exit_code_and_its_output(host, code):
    host.set_up()
    host.program(f"echo out; echo errors >&2; exit {code}")
    assert host("start", "--", *RUN).returncode == 0
    wait_until(lambda: host.state() == f"exited {code}")
    assert host("logs").stdout == "out\nerrors\n"
    said = (host.root / "arguments").read_text().strip()
    assert said == " ".join(["-m attrjax.main --coordinator=auto --resume", *RUN])


def test_a_run_is_stopped_and_started_again(host):
    host.set_up()
    host.program("trap 'sleep 1; exit 42' TERM; touch ready; while true; do sleep 0.1; done")
    assert host("start", "--", *RUN).returncode == 0
    wait_until((host.root / "ready").exists)
    assert host.state() == "running"
    again = host("start", "--", *RUN)
    assert again.returncode == 2 and "runs here already" in again.stderr
    assert host("stop").stdout == "attrjax: exited 42\n"  # it waits for the save
    host.program("exit 0")
    assert host("start", "--", *RUN).returncode == 0
    wait_until(lambda: host.state() == "exited 0")


def test_a_run_that_does_not_stop_is_killed(host):
    host.set_up()
    host.program("trap '' TERM; echo $$ >ready; while true; do sleep 0.1; done")
    assert host("start", "--", *RUN).returncode == 0
    wait_until((host.root / "ready").exists)
    assert host("stop", STOP_SECONDS="1").stdout == "attrjax: exited 137\n"
    assert not alive(int((host.root / "ready").read_text()))


@pytest.mark.parametrize("mounted", [0, 1])  # the bucket may be gone while the run is there
def test_a_set_up_stops_what_runs_before_it_takes_its_environment_away(host, mounted):
    host.set_up()
    host.program("trap 'sleep 1; touch saved; exit 42' TERM; touch ready; while true; do sleep 0.1; done")
    assert host("start", "--", *RUN).returncode == 0
    wait_until((host.root / "ready").exists)
    host.cloud.reply("mountpoint", f"exit {mounted}")
    host.cloud.reply("python3", f"[ -e {host.root}/saved ]")
    result = host("setup", "--bucket=b")
    assert result.returncode == 0, "a run was there: " + result.stderr
    assert (host.root / "build/worker/code").read_text() == "42\n"


def test_a_killed_supervisor_is_no_running_run(host):
    host.set_up()
    host.program("touch ready; while true; do sleep 0.1; done")
    assert host("start", "--", *RUN).returncode == 0
    wait_until((host.root / "ready").exists)
    os.killpg(int((host.root / "build/worker/pid").read_text()), signal.SIGKILL)
    wait_until(lambda: host.state() == "exited 137")
    (host.root / "build/worker/pid").write_text(f"{os.getpid()}\n")  # the number is another program's by now
    assert host.state() == "exited 137"


# The babysitter.

# Each look at the slice takes the next line of the story: its state, and then its hosts'.
STORY = """
case "$*" in
  *describe*name*) echo pod ;;
  *describe*)
    head -n 1 $STATE/story >$STATE/now
    sed -i 1d $STATE/story
    read -r node hosts <$STATE/now
    case $node in
      "" | ERROR) echo "ERROR: no network" >&2; exit 1 ;;
      ABSENT) echo "ERROR: NOT_FOUND" >&2; exit 1 ;;
      *) echo $node ;;
    esac ;;
  *worker.sh\\ state*)
    read -r node hosts <$STATE/now
    [ "$hosts" != unreachable ] || exit 255
    tr , '\\n' <<<"$hosts" | sed 's/^/attrjax: /' ;;
  *create*) exit ${CREATE:-0} ;;
  *worker.sh\\ setup*) exit ${SETUP:-0} ;;
esac
"""
VERBS = {"create": "create", "delete": "delete", "worker.sh setup": "setup"}
VERBS |= {"worker.sh start": "start", "worker.sh stop": "stop"}


def babysit(cloud: Cloud, story: list[str], *options: str, **environment: str):
    """The babysitter's result, and what it did to the slice."""
    (cloud.directory / "story").write_text("".join(f"{line}\n" for line in story))
    cloud.reply("gcloud", STORY)
    (cloud.directory / "bin/sleep").write_text("#!/bin/bash\n")
    (cloud.directory / "bin/sleep").chmod(0o755)
    node = ["--name=pod", "--zone=z", "--type=v6e-8", "--spot", "--bucket=b"]
    result = cloud.run(LAUNCH / "babysit.sh", *node, *options, "--", *RUN, **environment)
    calls = [" ".join(call) for call in cloud.calls("gcloud")]
    return result, [
        verb for call in calls for text, verb in VERBS.items() if f" {text}" in call or f"/{text}" in call
    ]


DONE = "READY exited 0,exited 0"


@pytest.mark.parametrize(
    ("story", "done"),
    [
        (
            ["ABSENT", "CREATING", "READY absent,absent", "READY running,running"],
            ["create", "setup", "start"],
        ),
        (["READY running", "PREEMPTED", "READY absent"], ["delete", "create", "setup", "start"]),
        (["FAILED", "SUSPENDED"], ["delete", "create"] * 2),
        (["READY ready,ready"], ["start"]),
        (["READY exited 42,exited 42", "READY running,running", "READY exited 42"], ["start", "start"]),
        (["READY exited 42,exited 0"], ["start"]),
        (["READY running,exited 0", "READY running,exited 42"], []),  # the others are about to end too
        (["READY exited 1,running", "READY running"], ["stop", "start"]),
        (["READY exited 137,exited 42"], ["stop", "start"]),
        (["READY absent,running"], ["setup", "start"]),
        (["WAITING_FOR_RESOURCES", "PROVISIONING", "STARTING", "REPAIRING"], []),
        (["ERROR"] * 9 + ["READY running"] + ["ERROR"] * 9, []),
        (["READY unreachable"] * 9, []),
        (["READY unreachable"] * 10, ["delete", "create"]),
        (["READY exited 1,exited 1", "READY exited 1"], ["stop", "start"] * 2),
        # In a row: what is scattered ends nothing, and a gcloud that is silent says nothing of the hosts.
        (["ERROR", "WAITING_FOR_RESOURCES"] * 11, []),
        (["ERROR"] * 9 + ["READY unreachable"], []),
        (["READY unreachable"] * 9 + ["ERROR"] * 9, []),
        (["READY unreachable"] * 9 + ["REPAIRING", "READY unreachable"], []),
        (["READY unreachable", "ERROR"] * 9 + ["READY unreachable"], ["delete", "create"]),
    ],
)
def test_the_babysitter_does_what_the_state_asks_for(cloud, story, done):
    result, verbs = babysit(cloud, [*story, DONE])
    assert result.returncode == 0, result.stderr
    assert verbs == done
    assert "the run is done" in result.stderr
    commands = [word for call in cloud.calls("gcloud") for word in call if "worker.sh start" in word]
    assert len(set(commands)) <= 1  # it goes on with the same command


@pytest.mark.parametrize(
    ("story", "options", "code", "done"),
    [
        (["READY exited 2,exited 2"], [], 2, []),
        (["READY exited 1,exited 2"], [], 2, []),
        (["READY exited 1"] * 3, ["--max_failures=2"], 1, ["stop", "start"] * 2),
        (["READY exited 139"] * 3, ["--max_failures=2"], 139, ["stop", "start"] * 2),
        (["ABSENT"] * 4, ["--max_creates=3"], 1, ["create"] * 3),
        (["PREEMPTED"] * 3, ["--max_creates=1"], 1, ["delete", "create", "delete"]),
        (["ERROR"] * 10, [], 1, []),
        ([DONE], ["--delete_when_done"], 0, ["delete"]),
    ],
)
def test_the_babysitter_ends(cloud, story, options, code, done):
    result, verbs = babysit(cloud, story, *options)
    assert (result.returncode, verbs) == (code, done), result.stderr
    assert result.stderr.strip()


def test_a_queued_resource_without_its_slice_is_deleted_before_another_is_asked_for(cloud):
    story = ["ACTIVE", "ABSENT", "ACTIVE", DONE]  # the queued resource and the slice by turns
    result, verbs = babysit(cloud, story, "--queued")
    assert result.returncode == 0 and verbs == ["delete", "create"], result.stderr


def test_the_babysitter_asks_again_where_there_is_no_slice_to_be_had(cloud):
    result, verbs = babysit(cloud, ["ABSENT", "ABSENT", DONE], CREATE="1")
    assert result.returncode == 0 and verbs == ["create", "create"]


def test_a_set_up_that_fails_is_tried_again_and_then_given_up(cloud):
    result, verbs = babysit(cloud, ["READY absent"] * 3, "--max_failures=2", SETUP="1")
    assert result.returncode == 1 and verbs == ["setup"] * 3


def test_the_babysitter_needs_a_place_that_outlives_the_slice(cloud):
    result = cloud.run(LAUNCH / "babysit.sh", "--name=pod", "--zone=z", "--type=v6e-8", "--", *RUN)
    assert result.returncode == 2 and "--bucket is missing" in result.stderr and not cloud.calls()


@pytest.mark.parametrize("wrong", ["--type=v9-8", "--copy=../secrets", "--reserved"])
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_the_babysitter_tells_a_mistake_at_once(cloud, wrong, dry):
    result, _ = babysit(cloud, [DONE], wrong, *dry)
    assert result.returncode == 2 and not cloud.calls("gcloud")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_signal_just_as_the_babysitter_stops_waiting_ends_it_as_any_other(cloud, tmp_path):
    (tmp_path / "wait").write_text('wait() { builtin wait "$@"; kill -TERM $$; }\n')
    result, _ = babysit(cloud, ["READY running"] * 100, BASH_ENV=str(tmp_path / "wait"))
    assert result.returncode == 130 and "The run goes on, and costs" in result.stderr


def test_the_babysitter_can_be_ended_alone(cloud):
    (cloud.directory / "story").write_text("READY running\n" * 100)
    cloud.reply("gcloud", STORY)
    command = [LAUNCH / "babysit.sh", "--name=pod", "--zone=z", "--type=v6e-8", "--bucket=b", "--every=600"]
    process = subprocess.Popen(
        [*command, "--", *RUN], cwd=ROOT, env=cloud.environment, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(cloud.calls("gcloud")) >= 2, process)
    time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "The run goes on, and costs" in errors
    assert not [call for call in cloud.calls("gcloud") if "stop" in " ".join(call) or "delete" in call]
