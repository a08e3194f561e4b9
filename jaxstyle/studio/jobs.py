"""Runs one after another, each a process of its own; and what one would take. Effects only."""

import collections
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxstyle.errors import UserError

#: Runs that may wait.
MAX_WAITING = 20


class Job(NamedTuple):
    """A run by the name of its directory, the module of its command and that command's arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The process of a run.

    Raises:
      UserError: the system has no memory or no number for it.
    """
    try:
        return subprocess.Popen(
            [sys.executable, "-m", job.module, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**environment, "PYTHONUTF8": "1"},
            start_new_session=True,  # so that Ctrl-C here reaches it once, by `Queue.close`
        )
    except OSError as error:
        raise UserError(f"its process cannot be started: {error.strerror}") from error


def _last_line(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Queue:
    """One run at a time, with these variables; the others wait in the order in which they came."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._process: subprocess.Popen[str] | None = None
        self._stopping, self._closed = False, False
        self._failures: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Puts a run at the end; one that is there already stays where it is.

        Raises:
          UserError: too many wait.
        """
        with self._changed:
            if job.name in self.states():
                return
            if len(self._waiting) >= MAX_WAITING:
                raise UserError(f"{MAX_WAITING} pictures wait already; take one off, or wait for one")
            self._failures.pop(job.name, None)
            self._waiting.append(job)
            self._changed.notify()

    def stop(self, name: str) -> None:
        """Takes a run off the queue, or has it end its step and keep it."""
        with self._changed:
            self._waiting = [job for job in self._waiting if job.name != name]
            if self._current and self._current.name == name and not self._stopping:
                self._stopping = True  # a second signal would end it without keeping anything
                # It ends its step and keeps it; on Windows it goes back to its last checkpoint. Not SIGINT,
                # which those that a shell started in the background ignore while they import.
                self._process.send_signal(signal.SIGTERM)

    def states(self) -> dict[str, str]:
        """What is on its way, by name: "running" or "stopping", then those "waiting" in their order."""
        with self._changed:
            found = {self._current.name: "stopping" if self._stopping else "running"} if self._current else {}
            return found | {job.name: "waiting" for job in self._waiting}

    def jobs(self) -> list[Job]:
        with self._changed:
            return [job for job in (self._current, *self._waiting) if job]

    def failures(self) -> dict[str, str]:
        """By name, the last line of what a run said that failed."""
        with self._changed:
            return dict(self._failures)

    def close(self) -> None:
        """Ends: what runs is kept, what waits is forgotten."""
        with self._changed:
            self._closed, self._waiting = True, []
            if self._current:
                self.stop(self._current.name)
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._current, self._stopping = self._waiting.pop(0), False
                try:
                    self._process = _start(self._current, self._environment)
                except UserError as error:
                    self._failures[self._current.name] = str(error)
                    self._current = None
                    continue
            with self._process as process:
                lines = collections.deque(process.stdout, maxlen=20)
            with self._changed:
                if process.returncode and not self._stopping:
                    self._failures[self._current.name] = _last_line(lines)
                self._current = self._process = None


class Estimates:
    """Dry runs, with these variables: the newest alone, as the choices that an older one was for are no more."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._number = 0

    def cancel(self) -> int:
        """Ends what is on its way; a number that tells whether another came since."""
        with self._lock:
            self._number += 1
            if self._process:
                self._process.kill()  # it writes nothing
            return self._number

    def make(self, jobs: Sequence[Job]) -> list[dict[str, str]] | None:
        """For each dry run what it says, by the word before the colon; None if another took its place.

        Raises:
          UserError: a run would be refused, for memory among other things.
        """
        number, found = self.cancel(), []
        for job in jobs:
            with self._lock:
                if number != self._number:
                    return None
                self._process = process = _start(job, self._environment)
            with process:
                lines = list(process.stdout)
            with self._lock:
                if number != self._number:
                    return None
                self._process = None
            if process.returncode:
                command, colon, told = _last_line(lines).partition(": ")
                raise UserError(told if colon else command)
            pairs = (line.partition(": ") for line in lines)
            found.append({name: text.strip() for name, colon, text in pairs if colon})
        return found
