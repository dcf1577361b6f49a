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

The commands run side by side, in no terminal, so that none can ask for anything; each line that one prints
is shown after the number of its slice. When one fails the others go on; which it was is told, and the exit
code is that of the first slice that failed, after all have ended. Ctrl-C, SIGTERM and SIGHUP are passed on to
all, as SIGTERM. --dry_run prints the commands and writes nothing. It needs Python 3.11 and nothing else, and
costs what the launcher costs, once for each slice.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
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
    """Run the commands side by side; the exit code of the first of them that failed, or 0.

    A signal to end goes to all of them. Where one comes and none fails, the exit code says which it was.

    Raises:
        OSError: a program is not there, or cannot run. Those before it have been ended.
    """
    running: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if number != signal.SIGHUP or not told:  # a terminal that closes says so twice
            told.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, note)
    try:
        for index, command in enumerate(commands):
            if told:
                break
            running.append(begin(command, index))
    except OSError:
        told.append(signal.SIGTERM)
        raise
    finally:
        pass_on_until_all_ended(running, told)
    codes = [exit_code(launcher) for launcher, _ in running]
    return next((code for code in codes if code), 128 + told[0] if told else 0)


def begin(command: list[str], index: int) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    """A launcher, and the thread that shows what it prints and ends with it."""
    # A session of its own: from the terminal it would get each Ctrl-C itself, too, and the second one kills.
    launcher = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    watcher = threading.Thread(target=watch, args=(launcher, index))
    watcher.start()
    return launcher, watcher


def watch(launcher: subprocess.Popen[bytes], index: int) -> None:
    """Show what a launcher prints, with its slice's number, and say where it failed."""
    assert launcher.stdout
    for line in launcher.stdout:
        with suppress(OSError):  # nobody reads it any more: the launcher goes on all the same
            sys.stdout.buffer.write(b"%d: %s\n" % (index, line.rstrip(b"\n")))
            sys.stdout.buffer.flush()
    launcher.wait()
    if code := exit_code(launcher):
        with suppress(OSError):
            print(f"slice {index} ended with exit code {code}", file=sys.stderr, flush=True)


def pass_on_until_all_ended(
    running: list[tuple[subprocess.Popen[bytes], threading.Thread]], told: list[int]
) -> None:
    """Wait for the launchers, and send them SIGTERM for each signal that is in ``told``, or comes to it."""
    passed_on = 0
    while alive := [launcher for launcher, watcher in running if watcher.is_alive()]:
        if passed_on < len(told):
            passed_on += 1
            for launcher in alive:
                with suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGTERM)  # with what it has started
        time.sleep(0.2)


def exit_code(launcher: subprocess.Popen[bytes]) -> int:
    """Of a launcher that has ended, as a shell says it."""
    return launcher.returncode if launcher.returncode >= 0 else 128 - launcher.returncode


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
