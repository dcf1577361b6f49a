"""Stand-ins for a cloud's commands: they write down what they are asked, and answer as they are told.

A stand-in NAME runs the bash script ``replies/NAME`` if there is one, with its own arguments; the tests write
these. Every call is one JSON line of ``calls``.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
NAMES = (
    "gcloud",
    "kubectl",
    "xpk",
    "docker",
    "sbatch",
    "srun",
    "squeue",
    "scontrol",
    "scancel",
    "sky",
    "git",
)
# Of a TPU host.
HOST_NAMES = ("python3", "sudo", "gcsfuse", "mountpoint")
PROGRAM = """#!{python} -S
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
if os.path.exists({reply!r}):
    os.execv("/bin/bash", ["bash", {reply!r}, *sys.argv[1:]])
"""


class Cloud:
    """A directory of stand-ins, first on the PATH of what runs in it.

    Args:
        directory: an empty one.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.log = directory / "calls"
        (directory / "bin").mkdir()
        (directory / "replies").mkdir()
        for name in NAMES + HOST_NAMES:
            program = directory / "bin" / name
            reply = str(directory / "replies" / name)
            text = PROGRAM.format(python=sys.executable, calls=str(self.log), name=name, reply=reply)
            program.write_text(text)
            program.chmod(0o755)

    def reply(self, name: str, script: str) -> None:
        """What a stand-in does from now on; ``$STATE`` is a directory that it can keep things in."""
        (self.directory / "replies" / name).write_text(f"STATE={self.directory}\n{script}")

    @property
    def environment(self) -> dict[str, str]:
        """Of what runs in it: nothing of the caller's but the paths."""
        return {"PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}", "HOME": str(self.directory)}

    def run(
        self, *command: str | Path, timeout: float = 120, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """A launcher's run, to its end; ``more`` goes into its environment."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def calls(self, name: str = "") -> list[list[str]]:
        """The calls of a stand-in, or of all, each with its name and arguments."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [call for call in map(json.loads, lines) if name in ("", call[0])]


def option(call: list[str], name: str) -> str:
    (value,) = [word.split("=", 1)[1] for word in call if word.startswith(f"--{name}=")]
    return value


def kubernetes(text: str) -> str:
    """What Kubernetes makes of a container's command: $$ is $, and no name is known."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), "Kubernetes would take this for a variable of its own"
    return text.replace("$$", "$")


def wait_until(condition, process=None, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]
