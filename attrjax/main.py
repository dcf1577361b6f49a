"""The one entry: ``python -m attrjax.main --config=configs/sample.py --workdir=runs/x``.

It reads the command line and hands it to the task that the config names. A user's mistake is one line that
says what to do, and exit code 2; ``--debug`` shows where it was noticed. What the machine failed in (a full
disk, a bucket that is not reached) is one line, too, and exit code 1: started again later, it may go on.
"""

import errno
import importlib
import logging as python_logging
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from attrjax.arguments import did_you_mean, one_line

# A task NAME is the function NAME(config, workdir, resume=) of the module that is listed here.
TASKS = {
    "sample": "attrjax.sample",
    "demo": "attrjax.demo",
    "tokenizer": "attrjax.attrworld.tokenizer",
    "vae": "attrjax.attrworld.train_vae",
    "clip": "attrjax.attrworld.train_clip",
    "judges": "attrjax.attrworld.train_judges",
    "unet": "attrjax.attrworld.train_unet",
    "contact_sheet": "attrjax.attrworld.contact_sheet",
    "bundle": "attrjax.attrworld.bundle",
    "evaluate": "attrjax.attrworld.evaluate",
    "filters": "attrjax.attributes.amortized",
    "customize": "attrjax.attributes.customize",
    "export": "attrjax.attributes.export",
}
MISTAKES = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
# In the words of TensorStore, whose errors are ValueErrors, too.
FAILED = re.compile(
    r"No space left|\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|INTERNAL|UNKNOWN): "
)
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/sample.py:base=sd15.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory that the run writes to.")
RESUME = flags.DEFINE_bool("resume", False, "Go on with the run that the workdir holds.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, or auto, where this is one of several processes."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
DEBUG = flags.DEFINE_bool("debug", False, "Show a traceback for every error.")


def read_flags(arguments: list[str]) -> list[str]:
    """Parse the command line, of which the program's name is left."""
    try:
        stray = flags.FLAGS(arguments)[1:]
        if stray:
            raise ValueError(f"{stray[0]!r} belongs to no flag; a value with spaces needs quotes around it")
        for flag, example in ((CONFIG, "configs/sample.py"), (WORKDIR, "runs/NAME")):
            if flag.value is None:
                raise ValueError(f"--{flag.name} is missing, for example --{flag.name}={example}")
        task = CONFIG.value.task
        if task not in TASKS:
            raise ValueError(f"the config's task {task!r} is unknown{did_you_mean(task, TASKS)}")
    except (
        flags.Error,
        AttributeError,
        KeyError,
        OSError,
        ValueError,
    ) as error:  # all that config_flags raises
        stop(error)
    return arguments[:1]


def main(_: list[str]) -> None:
    """Run the task that the config names."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(python_logging.Formatter("%(message)s"))
    from attrjax.parallel.start import start  # here, since it imports jax: a mistyped flag is told at once

    task = CONFIG.value.task
    try:
        start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        getattr(importlib.import_module(TASKS[task]), task)(CONFIG.value, WORKDIR.value, resume=RESUME.value)
    except (ValueError, OSError) as error:
        stop(error)


def stop(error: Exception) -> None:
    """End the program with one line, or with a traceback where that is asked for."""
    if flags.FLAGS.is_parsed() and DEBUG.value:
        raise error
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2 if is_mistake(error) else 1)


def is_mistake(error: Exception) -> bool:
    """Whether an error stays until a user does something about it."""
    if isinstance(error, ConnectionError | TimeoutError):
        return False
    if isinstance(error, OSError) and error.errno is not None:  # the system's own, and no library's
        # The last is of a directory that is mounted to be read.
        return isinstance(error, MISTAKES) or error.errno == errno.EROFS
    return not FAILED.search(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=read_flags)
