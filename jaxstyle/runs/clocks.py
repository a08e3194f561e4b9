"""The two clocks of a run: seconds spent optimising, and when a checkpoint is due. Effects only."""

import time
from collections.abc import Callable
from typing import Any

import jax

from jaxstyle.runs import processes

#: A checkpoint is due no sooner than so many times what writing the last one took: 2.5 % of the time.
REST = 40

#: Parts of a call's time, and seconds at most, that the process rests after it. XLA frees what a call held in between
#: some time after its results are there; the next call, begun before, takes as much memory beside it.
LET_GO, LONGEST = 1 / 200, 0.002


class Stopwatch:
    """`seconds` spent in the calls that it makes, until the device has done them."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.perf_counter()
        value = jax.block_until_ready(function(*arguments))
        spent = time.perf_counter() - begun
        self.seconds += spent
        time.sleep(min(LET_GO * spent, LONGEST))
        return value


class Pace:
    """How often a run is kept, or what many come to so far.

    Args:
      seconds: between two checkpoints, more where writing one takes more than 2.5 % of it; 0 is one after every
        step, whatever it takes.
      now: the time in seconds, the same in all processes.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = processes.now):
        self._seconds, self._now = seconds, now
        self._written, self._cost = now(), 0.0

    def keep(self, write: Callable[[], None]) -> bool:
        """Calls `write` if it is time, and tells whether it did; to be asked after each step."""
        begun = self._now()
        if self._seconds and begun - self._written <= max(self._seconds, REST * self._cost):
            return False
        write()
        self._written = self._now()
        self._cost = self._written - begun
        return True
