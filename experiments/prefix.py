"""An arm that another comparison has, whole or as the first steps of a longer one: taken instead of run again."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Sequence

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
        if whole:
            with workdir.claimed(directory):
                rest = shutil.ignore_patterns("checkpoints", "manifest.json")
                shutil.copytree(arm, directory, ignore=rest, dirs_exist_ok=True)
                journal.write_manifest(directory, manifest)
            return True
        rows = journal.read_metrics(arm / "metrics.csv")[: given.steps + 1]
        image = pictures.read_result(arm / f"snapshots/{given.steps:06}.png", given.bits)
        if manifest.get("converged_at", given.steps) >= given.steps:
            manifest.pop("converged_at", None)
        if "resumed" in manifest:
            manifest["resumed"] = [one for one in manifest["resumed"] if one["step"] < given.steps]
        manifest |= {
            "steps": given.steps,
            "steps_done": given.steps,
            "evaluations": int(rows[-1, 1]),
            "seconds": float(rows[-1, 2]),
        }
        with workdir.claimed(directory):
            workdir.begin(directory, record(given), overwrite=False)
            pictures.write(directory / "image.png", image, record(given))
            journal.write_metrics(directory / "metrics.csv", rows)
            journal.write_manifest(directory, manifest)
        return True
    return False
