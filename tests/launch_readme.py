"""launch/README.md shows what its commands print with --dry_run: this reads them, and writes them again.

python -m tests.launch_readme
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "launch" / "README.md"
BLOCK = re.compile(r"```bash\n(?P<command>[^`]*)```\n(?:\n```text\n(?P<shown>[^`]*)```\n)?")


def ours(command: str) -> bool:
    """Whether a block of commands is of a launcher; the others are gcloud's and the like, as they are."""
    return "launch/" in command


def dry_run(command: str) -> str:
    """What a command prints with --dry_run, which may be put nowhere after ``--``."""
    command = command.replace(".venv/bin/python launch/", f"{sys.executable} launch/")
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "DRY_RUN": "1"}
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def blocks() -> list[tuple[str, str | None]]:
    """Each launcher's command of the README and what it shows below it."""
    found = BLOCK.finditer(README.read_text())
    return [(block["command"], block["shown"]) for block in found if ours(block["command"])]


def renewed(text: str) -> str:
    """The README with what the commands print now."""

    def show(block: re.Match[str]) -> str:
        if not ours(block["command"]):
            return block[0]
        return f"```bash\n{block['command']}```\n\n```text\n{dry_run(block['command'])}```\n"

    return BLOCK.sub(show, text)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
