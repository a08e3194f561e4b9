"""An arm that another comparison has, whole or as the first steps of a longer one: taken instead of run again."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxstyle.images import pictures
from jaxstyle.runs import journal, processes, workdir

from .settings import Settings, record
from .task import Task

#: Flags in which a longer arm may differ: it went further, and kept a picture of the step.
_FREE = ("steps", "save_every")


def _ended(given: Settings, folders: Sequence[pathlib.Path]) -> Iterator[tuple[pathlib.Path, bool]]:
    """Arms of other comparisons that are a run of these settings, or whose first steps are; and whether it is whole.

    Sizes that change with the number of steps have no common first steps, a snapshot has 8 bits, and what is to keep
    pictures of its own steps is not in a longer run.
    """
    wanted = record(given)
    parts = given.scales == 1 and given.bits == 8 and not given.save_every
    for folder in folders:
        for arm in sorted(folder.glob("arms/*/")):
            manifest = journal.find_manifest(arm) or {}
            if manifest.get("status") != "finished":
                continue
            differing = workdir.differing(workdir.flags_of(arm), wanted)
            if not differing:
                yield arm, True
            elif (
                parts
                and differing <= {*_FREE}
                and manifest.get("steps", 0) >= given.steps
                and (arm / f"snapshots/{given.steps:06}.png").is_file()
            ):
                yield arm, False


@processes.alone
def take(posed: Task, optimizer: str, directory: pathlib.Path, folders: Sequence[pathlib.Path]) -> bool:
    """Makes a finished run of an arm out of one of the same flags, or of a longer one, where nothing has begun.

    It must have the same pictures and weights. A longer one may differ in `_FREE` alone, and must have kept the
    picture of that step (`--save_every`).

    Returns:
      Whether it was so.
    """
    given = dataclasses.replace(posed.settings, optimizer=optimizer)
    if (directory / "run.flags").exists():
        return False
    for arm, whole in _ended(given, folders):
        manifest = journal.read_manifest(arm) | {"prefix_of": str(arm)}
        if any(manifest.get(name) != posed.facts[name] for name in ("pictures", "weights")):
            continue
        with workdir.claimed(directory):
            # The record before all: what a kill leaves is then a run that begins anew.
            workdir.begin(directory, record(given), overwrite=False)
            if whole:
                _copy(arm, directory)
            else:
                manifest = _cut(arm, directory, given, manifest)
            journal.write_manifest(directory, manifest)
        return True
    return False


def _copy(arm: pathlib.Path, directory: pathlib.Path) -> None:
    """Copies what an arm left, but for its record and manifest, which are written here, and what none keeps."""
    own = shutil.ignore_patterns("run.flags", "manifest.json", "checkpoints", workdir.LOCK)
    shutil.copytree(arm, directory, ignore=own, dirs_exist_ok=True)


def _cut(
    arm: pathlib.Path, directory: pathlib.Path, given: Settings, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the picture and the rows of the first steps of an arm; its manifest, as one of so many steps."""
    rows = journal.read_metrics(arm / "metrics.csv")[: given.steps + 1]
    image = pictures.read_result(arm / f"snapshots/{given.steps:06}.png", given.bits)
    pictures.write(directory / "image.png", image, record(given))
    journal.write_metrics(directory / "metrics.csv", rows)
    found = {
        **manifest,
        "steps": given.steps,
        "steps_done": given.steps,
        "evaluations": int(rows[-1, 1]),
        "seconds": float(rows[-1, 2]),
    }
    if found.get("converged_at", given.steps) >= given.steps:
        found.pop("converged_at", None)
    if "resumed" in found:
        found["resumed"] = [one for one in found["resumed"] if one["step"] < given.steps]
    return found
