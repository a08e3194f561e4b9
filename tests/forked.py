"""Runs things each in a fork of one process that has imported all: starting takes milliseconds.

    python tests/forked.py stylize < arguments.json > outcomes.json

runs the command with each list of arguments, one after another.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
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


def main() -> None:
    module = importlib.import_module(f"experiments.{sys.argv[1]}")

    def run(arguments: list[str]) -> None:
        sys.argv = [module.__file__, *arguments]
        module.launch.run(module.main)

    json.dump([call(lambda given=given: run(given)) for given in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
