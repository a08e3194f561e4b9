"""Event files that TensorBoard shows: losses by step and by evaluation, the image, hyperparameters. Effects only.

Needs tensorboardX (extra `tensorboard`), which is imported when it is first used.
"""

import importlib.util
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxstyle.errors import UserError
from jaxstyle.files import write_atomically
from jaxstyle.runs.journal import COLUMNS

LOSSES = COLUMNS[3:]


def check() -> None:
    """Refuses to begin what cannot be written.

    Raises:
      UserError: tensorboardX is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard: needs tensorboardX; pip install 'jaxstyle[tensorboard]' brings it")


class Events:
    """The event files of one run, which may be the continuation of another: no step is there twice.

    Args:
      directory: of the event files; the first row decides which of those that are there stay.
      hyperparameters: what the page of hyperparameters compares.
    """

    def __init__(self, directory: pathlib.Path, hyperparameters: Mapping[str, Any]):
        self._directory, self._hyperparameters = directory, hyperparameters
        self._writer, self._step, self._evaluations, self._image, self._count = None, 0, 0, -1, 0

    def row(self, row: np.ndarray) -> None:
        """Writes a row of `COLUMNS`, the first of them after what there is from before it."""
        step, evaluations, _, *losses = row[: len(COLUMNS)]
        if self._writer is None:
            self._begin(int(step), int(evaluations))
        for name, loss in zip(LOSSES, losses, strict=True):
            self._writer.add_scalar(f"loss/{name}", loss, int(step))
            self._writer.add_scalar(f"{_BY_EVALUATION}{name}", loss, int(evaluations))
        if self._evaluations:
            self._writer.add_scalar("evaluations_a_step", evaluations - self._evaluations, int(step))
        self._step, self._evaluations = int(step), evaluations
        self._writer.flush()  # so that a killed run has what it showed

    def follow(self, rows: np.ndarray) -> None:
        """Writes the rows of a run from its start that were not there at the last call."""
        for row in rows[self._count :]:
            self.row(row)
        self._count = max(self._count, len(rows))

    def stepsize(self, value: float) -> None:
        """Writes what a line search multiplied its direction with to reach the last row, once begun."""
        if self._writer is not None and self._step > 0:
            self._writer.add_scalar("stepsize", value, self._step)

    def image(self, image: np.ndarray) -> None:
        """Writes an image [height, width, 3], in [0, 255] or beyond, of the step of the last row, once."""
        if self._writer is None or self._image == self._step:
            return
        self._image = self._step
        pixels = np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)
        self._writer.add_image("image", pixels, self._step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin(self, step: int, evaluations: int) -> None:
        from tensorboardX import SummaryWriter, summary

        kept = [_keep_before(path, step, evaluations) for path in self._directory.glob("events.*")]
        if kept and max(last for last, _ in kept) == step - 1:  # else what came before was not written
            self._evaluations = max(made for _, made in kept)
        # Two within a second differ by the step.
        self._writer = SummaryWriter(str(self._directory), filename_suffix=f".{step:07}")
        if step == 0:
            known = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in self._hyperparameters.items()
            }
            for each in summary.hparams(known, {"loss/total": 0})[:2]:  # the third says that the run ended
                self._writer.file_writer.add_summary(each, 0)


_BY_EVALUATION = "loss_by_evaluation/"


def _keep_before(path: pathlib.Path, step: int, evaluations: int) -> tuple[int, int]:
    """Takes out of an event file what a run makes anew that goes on from before a step; all of it at step 0.

    Returns:
      the last step that it still has, and the evaluations until then.
    """
    from tensorboardX.proto.event_pb2 import Event

    if step == 0:
        path.unlink()
        return 0, 0
    kept, last, made = [], 0, 0
    for record in records(path):
        event = Event.FromString(record[12:-4])
        by_evaluation = any(value.tag.startswith(_BY_EVALUATION) for value in event.summary.value)
        if event.step >= (evaluations if by_evaluation else step):
            continue
        kept.append(record)
        if by_evaluation:
            made = max(made, event.step)
        else:
            last = max(last, event.step)
    write_atomically(path, b"".join(kept))
    return last, made


def records(path: pathlib.Path) -> list[bytes]:
    """The whole records of an event file: length, checksum, an `Event`, checksum (TFRecord)."""
    data, place, found = path.read_bytes(), 0, []
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + 12 + length + 4
        if end > len(data):  # the process was killed as it wrote
            break
        found.append(data[place:end])
        place = end
    return found
