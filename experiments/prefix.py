"""An arm that is the first steps of a longer one which has ended: taken over instead of run again."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from jaxstyle.images import pictures
from jaxstyle.runs import journal, processes, workdir

from .settings import Settings, record
from .task import Task

#: Flags in which a longer arm may differ: it went further, and kept a picture of the step.
_FREE = ("steps", "save_every")


def _longer(given: Settings, folders: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
    """Arms of other comparisons whose first steps are a run of these settings, and which have the picture there."""
    wanted = record(given)
    for folder in folders:
        for arm in sorted(folder.glob("arms/*/")):
            path, manifest = arm / "run.flags", journal.find_manifest(arm) or {}
            if (
                path.is_file()
                and workdir.differing(path.read_text("utf-8", "replace"), wanted) <= {*_FREE}
                and manifest.get("status") == "finished"
                and manifest["steps"] > given.steps
                and (arm / f"snapshots/{given.steps:06}.png").is_file()
            ):
                yield arm


@processes.alone
def take(posed: Task, optimizer: str, directory: pathlib.Path, folders: Sequence[pathlib.Path]) -> bool:
    """Makes a finished run of an arm's first steps out of a longer one, where there is one and nothing has begun.

    The longer one must have the same flags but `--steps`, the same pictures and weights, and must have kept the
    picture of that step (`--save_every`). Sizes that change with the number of steps have no common first steps, and
    a snapshot has 8 bits.

    Returns:
      Whether it was so.
    """
    given = dataclasses.replace(posed.settings, optimizer=optimizer)
    if given.scales > 1 or given.bits > 8 or given.save_every or (directory / "run.flags").exists():
        return False
    for arm in _longer(given, folders):
        manifest = journal.read_manifest(arm)
        if any(manifest[name] != posed.facts[name] for name in ("pictures", "weights")):
            continue
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
            "prefix_of": str(arm),
        }
        with workdir.claimed(directory):
            workdir.begin(directory, record(given), overwrite=False)
            pictures.write(directory / "image.png", image, record(given))
            journal.write_metrics(directory / "metrics.csv", rows)
            journal.write_manifest(directory, manifest)
        return True
    return False
