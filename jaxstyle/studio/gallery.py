"""What a page shows of runs: read from their directories, whoever made them. Effects only."""

import functools
import pathlib
from typing import Any

import numpy as np

from jaxstyle.errors import UserError
from jaxstyle.lab import records
from jaxstyle.runs import journal, workdir

#: Columns and points of a curve.
COLUMNS, POINTS = ("step", "evaluations", "seconds", "total"), 300


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The directory of a run, or of an arm as `RUN/arms/LABEL`.

    Raises:
      UserError: there is none of this name.
    """
    directory, parts = folder, name.split("/")
    known = len(parts) == 1 or (len(parts) == 3 and parts[1] == "arms")
    for part in parts:
        known = known and part in [path.name for path in directory.glob("*/")]
        directory = directory / part
    if not (known and _is_run(directory)):
        raise UserError(f"{name!r}: there is no such run")
    return directory


def _is_run(directory: pathlib.Path) -> bool:
    return (directory / "run.flags").is_file()


def is_comparison(flags: str) -> bool:
    return "seeds" in workdir.values(flags)


def names(folder: pathlib.Path) -> list[str]:
    """The runs of pictures and comparisons in a folder, the newest first."""
    found = []
    for directory in folder.glob("*/"):
        given = workdir.values(workdir.flags_of(directory))
        if "size" in given and not given.keys() & {"learning_rates", "arm"}:
            found.append(((directory / "run.flags").stat().st_mtime, directory.name))
    return [name for _, name in sorted(found, reverse=True)]


def arms(directory: pathlib.Path) -> list[pathlib.Path]:
    """The directories of single runs in it: its arms in the order of their optimizers, or itself."""
    labels = list(records.labels(workdir.values(workdir.flags_of(directory)).get("optimizer", ())))

    def place(arm: pathlib.Path) -> tuple[int, str]:
        return labels.index(arm.name) if arm.name in labels else len(labels), arm.name

    return sorted((each for each in directory.glob("arms/*/") if _is_run(each)), key=place) or [directory]


def _status(directory: pathlib.Path) -> str:
    return (journal.find_manifest(directory) or {}).get("status", "unfinished")


def status(directory: pathlib.Path) -> str:
    """As its manifests say: "finished" once all that has begun has ended, else that of what has not.

    What says "running" and is held by no process, which ended as it compiled or was killed, is "unfinished".
    """
    found = [_status(each) for each in arms(directory)]
    order = ("unfinished", "running", "interrupted", "diverged", "finished")
    least = min(found, key=order.index) if set(found) <= set(order) else "unfinished"
    return "unfinished" if least == "running" and not workdir.held(directory) else least


def picture(directory: pathlib.Path) -> pathlib.Path | None:
    """The newest picture of a run: its result, else the last on the way, or of a comparison that of its last arm."""
    for each in reversed(arms(directory)):
        if (each / "image.png").is_file():
            return each / "image.png"
        if snapshots := sorted(each.glob("snapshots/[0-9]*.png")):
            return snapshots[-1]
    return None


def version(path: pathlib.Path | None) -> str | None:
    """A text that changes with the file; None for none."""
    try:
        return f"{path.stat().st_mtime_ns:x}" if path else None
    except FileNotFoundError:  # a snapshot that an --overwrite has just deleted
        return None


@functools.lru_cache(maxsize=32)
def _curve(path: pathlib.Path, _: int) -> dict[str, list[float]]:
    rows = journal.read_metrics(path)
    rows = rows[np.isfinite(rows[:, 3])]
    kept = rows[np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int))] if len(rows) else rows
    columns = dict(zip(journal.COLUMNS, kept.T.tolist(), strict=True))
    return {name: columns[name] for name in COLUMNS}


def curve(directory: pathlib.Path) -> dict[str, list[float]]:
    """The `COLUMNS` of a run so far, thinned out to `POINTS`."""
    path = directory / "metrics.csv"
    if not path.is_file():
        return {name: [] for name in COLUMNS}
    return _curve(path, path.stat().st_mtime_ns)


def describe(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Its single runs: label, status, version of the newest picture, curve."""
    return [
        {
            "label": each.name,
            "path": each.relative_to(directory.parent).as_posix(),
            "status": _status(each),
            "picture": version(picture(each)),
            "film": (each / "animation.webp").is_file(),
            "curve": curve(each),
        }
        for each in arms(directory)
    ]
