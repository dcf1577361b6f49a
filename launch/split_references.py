#!/usr/bin/env python3
r"""Splits a list of references over slices, and runs a launcher for each.

    .venv/bin/python launch/split_references.py LIST.jsonl --slices=4 --to=references/many [--dry_run] -- \
        launch/tpu_vm.sh run --name='pod-{slice}' --zone=ZONE -- --config=FILE \
        --config.references='{references}' --workdir='runs/many/{slice}'

LIST has one reference in each line, as a JSON object. Line i goes to slice i mod --slices, so that a list
that is sorted by size or kind is spread evenly. In the command {slice} is the slice's number from 0,
{slices} how many there are, and {references} its part of the list, --to/slice-0-of-4.jsonl; everything else
stays as it is. The same call writes the same files, so that it also goes on with runs that were stopped.
Paths in the list keep their meaning: they are relative to the directory that attrjax runs in.

The commands run one after the other. The exit code is the first bad one, after all have run; SIGTERM is
passed on to the command that runs, and no other is begun. --dry_run prints the commands and writes nothing.
It needs Python 3.11 and nothing else, and costs what the launcher costs, once for each slice.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

EXIT_MISTAKE = 2


def read_list(path: Path) -> list[str]:
    """The lines of a list, each a JSON object, without empty ones.

    Raises:
        ValueError: a line is none, or says the same as one before.
    """
    lines: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        try:
            reference = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: this is not JSON: {error}") from error
        if not isinstance(reference, dict):
            raise ValueError(f"{path}, line {number}: a reference is a JSON object, {{...}}")
        if line in seen:
            raise ValueError(f"{path}, line {number}: the reference of line {seen[line]} again")
        seen[line] = number
        lines.append(line)
    return lines


def split(lines: list[str], slices: int) -> list[list[str]]:
    """The lines of each slice.

    Raises:
        ValueError: a slice would have none.
    """
    if not 1 <= slices <= len(lines):
        raise ValueError(f"{len(lines)} references cannot be split over {slices} slices: each needs one")
    return [lines[first::slices] for first in range(slices)]


def write_part(path: Path, lines: list[str]) -> None:
    """Write a slice's list, whole or not at all.

    Raises:
        ValueError: the file is there and says something else, so that a run may be going on with that.
    """
    text = "".join(line + "\n" for line in lines)
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} is there and is of another list: take another directory, --to=...")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def filled(command: list[str], slice_index: int, slices: int, part: Path) -> list[str]:
    """The command for one slice. Other braces, as in prompts, stay."""
    names = {"{slice}": str(slice_index), "{slices}": str(slices), "{references}": part.as_posix()}
    for name, value in names.items():
        command = [word.replace(name, value) for word in command]
    return command


def run_all(commands: list[list[str]]) -> int:
    """Run the commands in order; the first bad exit code, or 0."""
    running: subprocess.Popen | None = None
    told = False

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal told
        told = True
        if running:
            running.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    codes = []
    for command in commands:
        if told:
            break
        running = subprocess.Popen(command)
        if told:  # while it was starting
            running.terminate()
        code = running.wait()
        running = None
        codes.append(code if code >= 0 else 128 - code)  # as a shell says it
    return next((code for code in codes if code), 128 + signal.SIGTERM if told else 0)


def main(arguments: list[str]) -> int:
    """Run as the module says."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("list", type=Path)
    parser.add_argument("--slices", type=int, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--dry_run", action="store_true", default=bool(os.environ.get("DRY_RUN")))
    options = parser.parse_args(own)
    try:
        if not any("{references}" in word for word in command):
            raise ValueError("the launcher's command is missing after --, with {references} in it")
        parts = split(read_list(options.list), options.slices)
        paths = [options.to / f"slice-{i}-of-{options.slices}.jsonl" for i in range(options.slices)]
        commands = [filled(command, i, options.slices, path) for i, path in enumerate(paths)]
        if options.dry_run:
            for path, lines, line in zip(paths, parts, commands, strict=True):
                total = sum(map(len, parts))
                print(f"# {path.as_posix()}: {len(lines)} of {total} references\n{shlex.join(line)}")
            return 0
        for path, lines in zip(paths, parts, strict=True):
            write_part(path, lines)
        return run_all(commands)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
