"""Says whether this machine would give the result of a run again, and if not, what differs.

python -m experiments.verify --workdir=runs/portrait-night

It reads `run.flags` and `manifest.json` of the run, or of each arm of a comparison, and compares what decides a
result to the bit: the program and its packages, the device and its settings, the pictures and the weights. Exit
status 0 if nothing differs, 1 if something does.
"""

import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.network import weights
from jaxstyle.runs import journal, workdir

from . import launch, spoken

_WORKDIR = flags.DEFINE_string("workdir", "runs/portrait-night", "Where the run to verify was written.")
flags.declare_key_flag("devices")


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each fact that differs."""
    for name, (then, here) in journal.differences(before, now).items():
        yield f"{name}: {_said(then)} then, {_said(here)} here"


def changes(manifest: Mapping[str, Any]) -> Iterator[str]:
    """A line for each fact that changed while the run was interrupted."""
    for change in manifest.get("resumed", []):
        (unit, number), *_ = change.items()  # a run's step, or a sweep's part
        for name, (then, after) in change["differs"].items():
            yield f"{name}: {_said(then)} up to {unit} {number}, {_said(after)} after it"


def _said(value: Any) -> str:
    return "not given" if value is None else str(value).strip()


def _sha256_or_reason(read: Callable[[], str]) -> str:
    try:
        return read()
    except UserError as error:
        return f"no file to use ({error})"


def inputs(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The SHA-256 that the pictures and the weights of a manifest have here."""
    name = recorded["weights"]["name"]
    return {
        "pictures": {
            path: {"sha256": _sha256_or_reason(lambda path=path: pictures.sha256(path))}
            for path in recorded["pictures"]
        },
        "weights": {"sha256": _sha256_or_reason(lambda: weights.load(name).sha256)},
    }


def differences(directory: pathlib.Path, environment: Mapping[str, Any]) -> list[str]:
    """A line for each thing that this machine, of an environment, has otherwise than the run had, or that changed
    under way.

    Raises:
      UserError: the directory has no record of a run, or a damaged one.
    """
    manifest, here = journal.read_manifest(directory), journal.decisive(environment)
    try:
        there = {name: (journal.BEFORE | manifest)[name] for name in here}
        given = {
            "pictures": {path: {"sha256": fact["sha256"]} for path, fact in manifest["pictures"].items()},
            "weights": {"sha256": manifest["weights"]["sha256"]},
        }
        found, changed = inputs(manifest), list(changes(manifest))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{str(directory / 'manifest.json')!r}: has no {error}; the manifest of this version is needed"
        ) from error
    return [*changed, *compare(there, here), *compare(given, found)]


def main() -> None:
    directory = pathlib.Path(_WORKDIR.value)
    runs = sorted(path.parent for path in directory.glob("arms/*/manifest.json")) or [directory]
    for record in (each / "run.flags" for each in runs):
        if not record.is_file():
            raise UserError(f"{str(record)!r}: no such file; a folder that a run has written is needed")
    found: dict[str, list[pathlib.Path]] = {}
    environment = journal.environment(len(launch.devices()))
    for each in runs:
        for line in differences(each, environment):
            found.setdefault(line, []).append(each)
    for line, places in found.items():
        where = "" if len(places) == len(runs) else f" ({', '.join(map(str, places))})"
        print(f"{line}{where}")
    if found:
        print("This machine may give another result.", flush=True)  # a full disk is told before it exits
        sys.exit(1)
    print("Nothing differs: this machine gives the same result. To make it again:")
    for each in runs:
        command = "sweep" if "learning_rates" in workdir.values(workdir.flags_of(each)) else "stylize"
        flagfile = shlex.quote(f"--flagfile={each / 'run.flags'}")
        devices = (journal.BEFORE | journal.read_manifest(each))["devices"]
        print(f"{spoken(command)} {flagfile}{f' --devices={devices}' if devices > 1 else ''} --workdir=OTHER")


if __name__ == "__main__":
    launch.run(main)
