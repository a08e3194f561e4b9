"""Runs things each in a fork of one process that has imported all: starting takes milliseconds."""

import contextlib
import importlib
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

LIMIT = 10.0  # seconds


class Outcome(NamedTuple):
    """Exit status (of a signal, its negative), standard error, seconds, and peak memory in MiB."""

    status: int
    errors: str
    seconds: float
    memory: int


def call(function: Callable[[], None], limit: float = LIMIT) -> Outcome:
    """Calls a function in a fork, which is killed if it takes longer than `limit` seconds."""
    with tempfile.TemporaryFile() as errors:
        begun = time.monotonic()
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(errors.fileno(), 2)
                signal.setitimer(signal.ITIMER_REAL, limit)
                status = _status(function)
                sys.stderr.flush()
            os._exit(status)
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - begun
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, seconds, usage.ru_maxrss >> 10)


def _status(function: Callable[[], None]) -> int:
    try:
        function()
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def command(name: str, given: Sequence[str], folder: pathlib.Path, limit: float = LIMIT) -> Outcome:
    """What comes of a command that works in a folder."""

    def run() -> None:
        os.chdir(folder)
        module = importlib.import_module(f"experiments.{name}")  # here, as two define one flag
        sys.argv = [module.__file__, *given]
        module.launch.run(module.main)

    return call(run, limit)
