"""A run, step by step: stages, the clock, checkpoints and signals. Effects only."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.runs.checkpoints import Checkpoints
from jaxstyle.runs.journal import COLUMNS, write_manifest, write_metrics


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was told to stop by `signal` and has written what resuming needs."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


class Result(NamedTuple):
    """How a run ended: the last finite image, its rows (see `COLUMNS`) and the status in its manifest."""

    image: np.ndarray
    rows: np.ndarray
    status: str


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of stopping; a second one stops at once."""
    received: list[int] = []

    def receive(number: int, _) -> None:
        received.append(number)
        give_back()

    def give_back() -> None:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)

    wakeup = signal.set_wakeup_fd(-1)  # by which a command hears of signals at once
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        give_back()


class Programs(NamedTuple):
    """What a stage needs, compiled.

    Attributes:
      begin: from the last state of the stage before, or None, the state to begin with.
      structure: a state of the same structure, shapes and dtypes, abstract or not.
      advance: one step.
      result: the image [height, width, 3] that a state has made.
    """

    begin: Callable[[training.TransferState | None], training.TransferState]
    structure: training.TransferState
    advance: Callable[[training.TransferState], tuple[training.TransferState, training.Metrics]]
    result: Callable[[training.TransferState], jax.Array]


class Stage(NamedTuple):
    """Steps of a run at one size, up to the step `last`. `load` compiles them, when it is their turn."""

    last: int
    load: Callable[[], Programs]


def execute(
    directory: pathlib.Path,
    manifest: Mapping[str, Any],
    stages: Sequence[Stage],
    *,
    save: Callable[[np.ndarray], None],
    report: Callable[[np.ndarray], None],
    watch: Callable[[int, Callable[[], np.ndarray]], None] = lambda step, image: None,
    checkpoint_seconds: float,
) -> Result:
    """Runs all stages to their last step, from the newest checkpoint if there is one.

    Args:
      directory: claimed and begun.
      manifest: written with `status` and the results added; what `load` changes in it is written too.
      stages: one or more, in order. A step that a stage begins at has the metrics of the stage before.
      save: writes an image [height, width, 3] as the result.
      report: is told each row of `COLUMNS` as it comes.
      watch: is told each step after its row, with a function that gives the image made so far.
      checkpoint_seconds: time between checkpoints, more where writing one takes more than 2.5 % of it;
        0 is one after every step, whatever it takes.

    Raises:
      Interrupted: a signal asked for it; the same call goes on from there.
      UserError: the disk is full or fails; the last checkpoint stays.
    """
    steps = stages[-1].last
    rows = np.full((steps + 1, len(COLUMNS)), np.nan)
    kept = None  # step of the newest checkpoint
    loaded: dict[int, Programs] = {}

    def load(number: int) -> Programs:
        if number not in loaded:
            loaded.clear()  # and with it the memory of the stage before
            loaded[number] = stages[number].load()
        return loaded[number]

    def stage_of(step: int) -> int:
        return next(number for number, stage in enumerate(stages) if step <= stage.last)

    def record(state: training.TransferState, seconds: float) -> int:
        step, evaluations, *losses, _, _ = jax.device_get(training.metrics(state))
        rows[step] = step, evaluations, seconds, *losses
        report(rows[step])
        watch(int(step), lambda: np.asarray(loaded[current].result(state)))
        return int(step)

    def keep(status: str, state: training.TransferState, step: int, **facts: Any) -> None:
        nonlocal kept
        if status in ("running", "interrupted") and step != kept:
            checkpoints.save(step, state, rows)
            kept = step
        write_metrics(directory / "metrics.csv", rows[: step + 1])
        write_manifest(directory, dict(manifest) | {"status": status, "steps_done": step} | facts)

    try:
        checkpoints = Checkpoints(directory)
        write_manifest(directory, dict(manifest) | {"status": "running", "steps_done": 0})
        restored = checkpoints.restore(lambda step: load(stage_of(step)).structure)
        if restored is None:
            state, step, seconds, current = None, 0, 0.0, -1
        else:
            state, rows = restored
            step = kept = int(state.step)
            seconds, current = rows[step, COLUMNS.index("seconds")], stage_of(step)
        load(max(current, 0))  # a signal that comes while XLA compiles ends the process: nothing is lost
        with interruptible() as signals:
            written, cost = time.perf_counter(), 0.0
            facts: dict[str, Any] = {}
            for number in range(max(current, 0), len(stages)):
                programs = load(number)
                if number > current:
                    begun = time.perf_counter()
                    state = jax.block_until_ready(programs.begin(state))
                    seconds += time.perf_counter() - begun
                    current = number
                    if number == 0:
                        step = record(state, seconds)
                last = stages[number].last
                while step < last and not state.diverged and not state.converged:
                    if signals:
                        keep("interrupted", state, step)
                        raise Interrupted(signals[0])
                    begun = time.perf_counter()
                    state, _ = jax.block_until_ready(programs.advance(state))
                    ended = time.perf_counter()
                    seconds += ended - begun
                    if state.diverged:
                        break
                    step = record(state, seconds)
                    if ended - written > max(checkpoint_seconds, 40 * cost) or not checkpoint_seconds:
                        keep("running", state, step)
                        written = time.perf_counter()
                        cost = written - ended
                if state.diverged:
                    break
                if state.converged:
                    # The iterate will not change any more at this size: neither will its losses.
                    facts["converged_at"] = step
                    rows[step + 1 : last + 1] = rows[step]
                    rows[step + 1 : last + 1, 0] = np.arange(step + 1, last + 1)
                    state, step = state._replace(step=jnp.int32(last)), last
            image = np.asarray(programs.result(state))
            status = "diverged" if state.diverged else "finished"
            save(image)
            keep(status, state, step, seconds=seconds, evaluations=int(rows[step, 1]), **facts)
            checkpoints.clear()
            if signals:
                raise Interrupted(signals[0])
            return Result(image, rows[: step + 1], status)
    except OSError as error:
        raise UserError(
            f"--workdir={directory}: cannot write there: {error.strerror or error}; "
            "what is there is kept, and the same command goes on from it"
        ) from error
