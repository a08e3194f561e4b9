"""A run, step by step, over stages of one size each. Effects only."""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstyle import training
from jaxstyle.runs import journal
from jaxstyle.runs.checkpoints import Checkpoints
from jaxstyle.runs.clocks import Pace, Stopwatch
from jaxstyle.runs.journal import COLUMNS
from jaxstyle.runs.signals import Interrupted, asked, interruptible

#: Seconds between two times that the rows are written while a run is on its way, for who looks on. Those after the
#: last checkpoint are made again if the run is killed.
LIVE_SECONDS = 1.0


class Result(NamedTuple):
    """How a run ended: the last finite image, its rows (see `COLUMNS`) and the status in its manifest."""

    image: np.ndarray
    rows: np.ndarray
    status: str


class Programs(NamedTuple):
    """What a stage needs, compiled.

    Attributes:
      begin: from the last state of the stage before, or None, the state to begin with.
      structure: a state of the same structure, shapes and dtypes, abstract or not, as it is on the host.
      advance: one step.
      result: the image [height, width, 3] that a state has made.
      put, fetch: a state from the host to where those of the stage lie, and back.
    """

    begin: Callable[[training.TransferState | None], training.TransferState]
    structure: training.TransferState
    advance: Callable[[training.TransferState], tuple[training.TransferState, training.Metrics]]
    result: Callable[[training.TransferState], jax.Array]
    put: Callable[[training.TransferState], training.TransferState] = lambda state: state
    fetch: Callable[[training.TransferState], training.TransferState] = lambda state: state


class Stage(NamedTuple):
    """Steps of a run at one size, up to the step `last`. `load` compiles them, when it is their turn."""

    last: int
    load: Callable[[], Programs]


class Stages:
    """The stages of a run, of which one at a time is compiled."""

    def __init__(self, stages: Sequence[Stage]):
        self._stages = stages
        self._loaded: dict[int, Programs] = {}

    def of(self, step: int) -> int:
        """The number of the stage whose state is that of a step."""
        return next(number for number, stage in enumerate(self._stages) if step <= stage.last)

    def last(self, number: int) -> int:
        return self._stages[number].last

    def programs(self, number: int) -> Programs:
        if number not in self._loaded:
            self._loaded.clear()  # and with it the memory of the stage before
            self._loaded[number] = self._stages[number].load()
        return self._loaded[number]


class Log:
    """What a run writes of its way: rows, manifest and checkpoints. `step` is the last that has a row.

    Args:
      directory: claimed and begun.
      manifest: see `execute`.
      steps: of the whole run.
    """

    def __init__(self, directory: pathlib.Path, manifest: Mapping[str, Any], steps: int):
        self.step, self.rows = 0, np.full((steps + 1, len(COLUMNS)), np.nan)
        self._directory, self._manifest = directory, manifest
        self._facts: dict[str, Any] = {}
        self._checkpoints = Checkpoints(directory)
        self._pace = Pace(LIVE_SECONDS)

    def restore(
        self, structure: Callable[[int], training.TransferState]
    ) -> tuple[training.TransferState | None, float]:
        """The state of the newest checkpoint and the seconds spent until then, or None and 0."""
        before = journal.find_manifest(self._directory) or dict(self._manifest)
        # Until a state is there to go on from, what it was made with stays written.
        journal.write_manifest(self._directory, before | {"status": "running", "steps_done": 0})
        restored = self._checkpoints.restore(structure)
        if restored is None:
            self._write_manifest("running")
            return None, 0.0
        state, self.rows = restored
        self.step = int(state.step)
        if before.get("converged_at", len(self.rows)) <= self.step:
            self._facts["converged_at"] = before["converged_at"]
        if resumed := journal.resumed(before, self._manifest, self.step):
            self._facts["resumed"] = resumed
        self._write_manifest("running")
        return state, float(self.rows[self.step, COLUMNS.index("seconds")])

    @property
    def evaluations(self) -> float:
        """Those that were spent up to the last step that has a row."""
        return self.rows[self.step, COLUMNS.index("evaluations")]

    def add(self, state: training.TransferState, seconds: float) -> np.ndarray:
        """The row of a state, recorded."""
        step, evaluations, *losses, _, _ = jax.device_get(training.metrics(state))
        self.step = int(step)
        self.rows[step] = step, evaluations, seconds, *losses
        self._pace.keep(self._write_metrics)
        return self.rows[step]

    def repeat(self, last: int) -> None:
        """Has the rows up to `last` be that of the step where the run converged."""
        if self.step < last or "converged_at" not in self._facts:  # it is there if this is done once more
            self._facts["converged_at"] = self.step
        self.rows[self.step + 1 : last + 1] = self.rows[self.step]
        self.rows[self.step + 1 : last + 1, 0] = np.arange(self.step + 1, last + 1)
        self.step = last

    def keep(self, status: str, state: training.TransferState) -> None:
        """Writes what resuming from a state needs."""
        self._checkpoints.save(self.step, state, self.rows)
        self._write(status)

    def end(self, status: str, seconds: float) -> None:
        """Writes how the run ended, and forgets what resuming needed."""
        self._facts |= {"seconds": seconds, "evaluations": int(self.rows[self.step, 1])}
        self._write(status)
        self._checkpoints.clear()

    def _write(self, status: str) -> None:
        self._write_metrics()
        self._write_manifest(status)

    def _write_metrics(self) -> None:
        journal.write_metrics(self._directory / "metrics.csv", self.rows[: self.step + 1])

    def _write_manifest(self, status: str) -> None:
        facts = {"status": status, "steps_done": self.step} | self._facts
        journal.write_manifest(self._directory, dict(self._manifest) | facts)


#: Is told each step after its row, with its state and a function that gives the image made so far.
Watch = Callable[[int, training.TransferState, Callable[[], np.ndarray]], None]


class Walk(NamedTuple):
    """A run on its way: what it goes through, and who hears of each step."""

    stages: Stages
    log: Log
    stopwatch: Stopwatch
    pace: Pace
    evaluations: float
    signals: Sequence[int]
    report: Callable[[np.ndarray], None]
    watch: Watch

    def begin(self, number: int, state: training.TransferState | None) -> training.TransferState:
        """The state that a stage begins with, from the last of the stage before."""
        if state is not None:
            self._stop_if_asked(number - 1, state)
        programs = self.stages.programs(number)
        state = self.stopwatch.call(programs.begin, state)
        if number == 0:
            self._tell(programs, state)
        return state

    def finish(self, number: int, state: training.TransferState) -> training.TransferState:
        """The last state of a stage, from any state of it: at its last step or evaluation, or diverged."""
        programs, last = self.stages.programs(number), self.stages.last(number)
        while self.log.step < last and self.log.evaluations < self.evaluations:
            if state.diverged or state.converged:
                break
            # The state that a later stage begins with has the step of the stage before, and is not kept as that.
            if self.stages.of(self.log.step) == number:
                self._stop_if_asked(number, state)
            state, _ = self.stopwatch.call(programs.advance, state)
            if not state.diverged:
                self._tell(programs, state)
                self.pace.keep(functools.partial(self._keep, "running", number, state))
        if state.converged and not state.diverged:
            # The iterate will not change any more at this size: neither will its losses.
            self.log.repeat(last)
            state = state._replace(step=state.step + (last - int(state.step)))
        return state

    def _tell(self, programs: Programs, state: training.TransferState) -> None:
        self.report(self.log.add(state, self.stopwatch.seconds))
        self.watch(self.log.step, state, lambda: np.asarray(programs.result(state)))

    def _keep(self, status: str, number: int, state: training.TransferState) -> None:
        self.log.keep(status, self.stages.programs(number).fetch(state))

    def _stop_if_asked(self, number: int, state: training.TransferState) -> None:
        if signal := asked(self.signals):
            self._keep("interrupted", number, state)
            raise Interrupted(signal)


def execute(
    directory: pathlib.Path,
    manifest: Mapping[str, Any],
    stages: Sequence[Stage],
    *,
    save: Callable[[np.ndarray], None],
    report: Callable[[np.ndarray], None],
    watch: Watch = lambda step, state, image: None,
    checkpoint_seconds: float,
    evaluations: float = math.inf,
) -> Result:
    """Runs all stages to their last step, from the newest checkpoint if there is one.

    Args:
      directory: claimed and begun.
      manifest: written with `status` and the results added; what `load` changes in it is written too.
      stages: one or more, in order. A step that a stage begins at has the metrics of the stage before.
      save: writes an image [height, width, 3] as the result.
      report: is told each row of `COLUMNS` as it comes.
      watch: see `Watch`.
      checkpoint_seconds: see `Pace`.
      evaluations: of loss and gradient, with which a run of one stage ends though it has steps left.

    Raises:
      Interrupted: a signal asked for it; the same call goes on from there.
      OSError: the disk is full or fails; the last checkpoint stays.
    """
    log, compiled = Log(directory, manifest, stages[-1].last), Stages(stages)
    state, seconds = log.restore(lambda step: compiled.programs(compiled.of(step)).structure)
    first = compiled.of(log.step)
    programs = compiled.programs(first)  # a signal meanwhile ends the process: nothing is lost
    if state is not None:
        state = programs.put(state)
    with interruptible() as signals:
        walk = Walk(
            compiled, log, Stopwatch(seconds), Pace(checkpoint_seconds), evaluations, signals, report, watch
        )
        for number in range(first, len(stages)):
            if state is None or number > first:
                state = walk.begin(number, state)
            state = walk.finish(number, state)
            if state.diverged:
                break
        image = np.asarray(compiled.programs(number).result(state))
        save(image)
        status = "diverged" if state.diverged else "finished"
        log.end(status, walk.stopwatch.seconds)
        if signal := asked(signals):
            raise Interrupted(signal)
    return Result(image, log.rows[: log.step + 1], status)
