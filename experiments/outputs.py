"""What a run leaves besides its record: the picture, snapshots and TensorBoard's files; and who looks on."""

import pathlib
from collections.abc import Callable

import numpy as np

from jaxstyle import training
from jaxstyle.images import pictures
from jaxstyle.lab.tensorboard import Events
from jaxstyle.runs import processes
from jaxstyle.runs.clocks import Pace

from .settings import record
from .task import Task

#: Seconds between two looks at a picture that is being made.
LOOK_SECONDS = 2.0


class Outputs:
    """The outputs of one run.

    Args:
      task: of the run.
      directory: that they are written to.
      stepsize: of a state, if its optimizer has one.
      events: TensorBoard's files, if they are written.
      show: is shown the picture every few seconds, and the result.
      checkpoint_seconds: between two pictures in TensorBoard, where there are no snapshots.
    """

    def __init__(
        self,
        task: Task,
        directory: pathlib.Path,
        *,
        stepsize: Callable[[training.TransferState], float | None],
        events: Events | None,
        show: Callable[[np.ndarray], None] | None,
        checkpoint_seconds: float,
    ):
        self._task, self._directory = task, directory
        self._stepsize, self._events, self._show = stepsize, events, show
        self._pace, self._looks = Pace(checkpoint_seconds), Pace(LOOK_SECONDS)

    def row(self, row: np.ndarray) -> None:
        """Takes a row of the metrics."""
        if self._events:
            processes.first(lambda: self._events.row(row))

    def watch(self, step: int, state: training.TransferState, image: Callable[[], np.ndarray]) -> None:
        """Takes a step: see `loop.execute`."""
        every, finish = self._task.settings.save_every, self._task.finish
        if self._events and (stepsize := self._stepsize(state)) is not None:
            length = float(stepsize)
            processes.first(lambda: self._events.stepsize(length))
        if step % (every or self._task.settings.steps) == 0:
            if every or self._events:
                self._keep(step, finish(image()))
        elif self._events and not every:
            self._pace.keep(lambda: self._keep(step, finish(image())))
        if self._show:
            self._looks.keep(lambda: self._show(finish(image())))

    @processes.alone
    def save(self, image: np.ndarray) -> None:
        """Takes the result, as the optimizer left it; the picture's file carries the flags of the run."""
        image, path, settings = self._task.finish(image), self._directory / "image.png", self._task.settings
        if self._events:
            self._events.image(image)
        if self._show:
            self._show(image)
        pictures.write(path, image, record(settings), bits=settings.bits)
        if settings.save_every:
            frames = [*sorted(self._snapshots.glob("*.png")), path]
            pictures.write_animation(self._directory / "animation.webp", frames)

    @property
    def _snapshots(self) -> pathlib.Path:
        return self._directory / "snapshots"

    @processes.alone
    def _keep(self, step: int, image: np.ndarray) -> None:
        if self._task.settings.save_every:
            self._snapshots.mkdir(exist_ok=True)
            pictures.write(self._snapshots / f"{step:06}.png", image)
        if self._events:
            self._events.image(image)
