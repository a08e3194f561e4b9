"""Optimizers over many learning rates, all rates at once in one compiled program -> a table and a curve.

python -m experiments.sweep --optimizer=adam --optimizer=rmsprop --learning_rates=0.1,0.3,1,3,10 --steps=100

Writes `sweep.csv`, a row for each optimizer and rate, `curves.csv`, a row for each of their steps, and
`sensitivity.png`. A sweep that was interrupted goes on from its last checkpoint; its state is in `parts/`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.lab import figures, records, tensorboard
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, mesh, workdir

from . import arm, cluster, inputs, lanes, launch, programs, regions, room, settings, task
from .cache import Cache
from .settings import Settings

_OPTIMIZER = flags.DEFINE_multi_string(
    "optimizer", ["adam"], "NAME or NAME:key=value,key=value without learning_rate; repeat it for several."
)
_LEARNING_RATES = flags.DEFINE_list(
    "learning_rates", ["0.1", "0.3", "1", "3", "10", "30"], "The rates, from 1e-30 to 1e30."
)
_CHUNK = flags.DEFINE_integer(
    "chunk",
    None,
    "Learning rates in one program; by default all, or as many as half of the memory holds.",
    lower_bound=1,
)
_WORKDIR = launch.define_workdir("sweep-PHOTO-STYLE")
_LAUNCHER, _JOBS, _SBATCH = cluster.define_flags()

flags.adopt_module_key_flags(launch)
flags.adopt_module_key_flags(cluster)

#: Flags of a run that say what pictures it leaves.
OF_PICTURES = ("keep", "save_every", "bits")


def parse_optimizer(text: str, given: Settings) -> catalogue.Spec:
    """The optimizer of a text that leaves the learning rate open.

    Raises:
      UserError: the text gives a rate, or the optimizer has none or cannot be vmapped.
    """
    name, _, rest = text.strip().partition("@")[0].partition(":")
    if name in catalogue.ON_HOST:
        raise UserError(
            f"--optimizer={text}: {name} runs on the host, one at a time, and has no learning rate"
        )
    if any(item.partition("=")[0].strip() == "learning_rate" for item in rest.split(",")):
        raise UserError(
            f"--optimizer={text}: leave out learning_rate; the rates are those of --learning_rates"
        )
    return catalogue.parse(lanes.at_rate(text, 1), given.loss, given.parametrization)


def table(label: str, rates: list[float], rows: lanes.Rows) -> list[records.Rate]:
    """One optimizer's rows of `sweep.csv`."""
    found = []
    for rate, lane in zip(rates, rows.swapaxes(0, 1), strict=True):
        known = np.isfinite(lane[:, 2])
        finite = lane[known] if known.any() else lane[:1]  # the start alone, if that has no finite loss
        losses = [float(str(np.float32(loss))) for loss in finite[-1, 2:]]  # few digits, the same float32
        best = finite[np.argmin(finite[:, 2])]
        status = "finished" if known.all() else "diverged"
        steps, evaluations = map(int, finite[-1, :2])
        best_total = float(str(np.float32(best[2])))
        found.append(records.Rate(label, rate, status, steps, evaluations, *losses, int(best[0]), best_total))
    return found


def curves(label: str, rates: list[float], rows: lanes.Rows) -> list[list]:
    """One optimizer's rows of `curves.csv`."""
    return [
        [label, rate, int(step), int(evaluations), *(str(np.float32(loss)) for loss in losses)]
        for rate, lane in zip(rates, rows.swapaxes(0, 1), strict=True)
        for step, evaluations, *losses in lane[np.isfinite(lane[:, 2])]
    ]


def write(directory: pathlib.Path, found: list[records.Rate], steps: list[list]) -> None:
    """Writes what all optimizers come to so far."""
    names = ["label", "learning_rate", *lanes.COLUMNS]
    files.write_csv(directory / "sweep.csv", records.Rate._fields, found)
    files.write_csv(directory / "curves.csv", names, steps)
    files.write_atomically(directory / "sensitivity.png", figures.png(figures.sensitivity(found)))


def events(
    folder: pathlib.Path, label: str, spec: catalogue.Spec, seed: int, rates: Sequence[float]
) -> dict[float, tensorboard.Events]:
    """The event files of an optimizer, a folder for each rate."""
    known = arm.choices(spec, seed)
    return {
        rate: tensorboard.Events(folder / f"{label}-{rate}", known | {"learning_rate": rate})
        for rate in rates
    }


def follow(trails: dict[float, tensorboard.Events], rates: Sequence[float], rows: lanes.Rows) -> None:
    """Writes what is new of some rates; there may be more lanes, which are idle."""
    for rate, lane in zip(rates, rows.swapaxes(0, 1), strict=False):
        if rate in trails:
            finite = lane[np.isfinite(lane[:, 2])]
            trails[rate].follow(np.insert(finite, 2, 0, axis=1))  # at once: none has seconds of its own


def describe(directory: pathlib.Path, posed: task.Task, devices: int) -> dict[str, Any]:
    """The manifest of a sweep that begins, or goes on after so many of its parts."""
    now, before = journal.environment(devices) | posed.facts, journal.find_manifest(directory)
    if before is None:
        return now
    differs = journal.differences(journal.decisive(before), journal.decisive(now))
    done = len(list(directory.glob("parts/*/rows.npy")))
    changes = before.get("resumed", []) + [{"part": done, "differs": differs}] * bool(differs)
    return now | ({"resumed": changes} if changes else {})


def run(
    directory: pathlib.Path,
    posed: task.Task,
    specs: Mapping[str, catalogue.Spec],
    rates: list[float],
    chunk: int | None,
    cache: Cache,
    conduct: launch.Conduct,
    launcher: cluster.Launcher | None,
) -> None:
    """Runs what has not ended, in a directory that is claimed and begun, and writes what it comes to.

    Raises:
      UserError: jobs failed; what the others come to is written.
    """
    # Of each optimizer: its rates, how many in one program, where, and how often they are kept.
    every = conduct.checkpoint_seconds
    ways = {label: (rates, chunk, directory / "parts" / label, every) for label in specs}
    failure = None
    if launcher:
        jobs = {
            label: functools.partial(lanes.work, posed.settings, spec, *ways[label])
            for label, spec in specs.items()
            if lanes.read(directory / "parts" / label, rates) is None
        }
        failure = cluster.run(launcher, directory, jobs, lambda label: print(f"{label}: ended", flush=True))
    found: list[records.Rate] = []
    steps: list[list] = []
    for label, spec in specs.items():
        if failure and lanes.read(directory / "parts" / label, rates) is None:
            continue
        folder, seed = directory / "tensorboard", posed.settings.seed
        trails = events(folder, label, spec, seed, rates) if conduct.tensorboard else {}
        try:
            rows = lanes.sweep(posed, spec, cache, *ways[label], functools.partial(follow, trails))
            follow(trails, rates, rows)  # of rates that had ended before
        finally:
            for trail in trails.values():
                trail.close()
        found += table(label, rates, rows)
        steps += curves(label, rates, rows)
        write(directory, found, steps)
        print(records.describe_best([rate for rate in found if rate.label == label]))
    if failure:
        raise UserError(failure)


def main() -> None:
    given, texts, rates = settings.read(), tuple(_OPTIMIZER.value), lanes.parse_rates(_LEARNING_RATES.value)
    record_rates, where, chunk = ",".join(_LEARNING_RATES.value), _WORKDIR.value, _CHUNK.value
    launcher = cluster.read(_LAUNCHER.value, _JOBS.value, _SBATCH.value, where)
    conduct, cache = launch.conduct(), Cache(launch.devices())
    given = dataclasses.replace(given, parametrization=given.parametrization or "pixels")
    specs = {label: parse_optimizer(text, given) for label, text in records.labels(texts).items()}
    if given.scales not in (None, 1):
        raise UserError(f"--scales={given.scales}: a sweep is of one size; take 1")
    if given.evaluations is not None:
        raise UserError(f"--evaluations={given.evaluations}: all rates of a sweep take --steps; leave it out")
    for name in OF_PICTURES:
        if getattr(given, name) != getattr(Settings(), name):
            raise UserError(f"--{name}={getattr(given, name)}: a sweep leaves no pictures; leave it out")
    given = dataclasses.replace(given, scales=1, steps=given.steps or inputs.STEPS)
    given = room.heaviest(given, [lanes.at_rate(text, 1) for text in texts])

    def pose(given: Settings) -> tuple[task.Task, str]:
        posed = task.pose(given, cache)
        above = {"optimizer": texts, "learning_rates": record_rates, "chunk": chunk}
        return posed, settings.record(posed.settings, **above)

    posed, record = pose(given)
    rows = mesh.grid(cache.devices, lanes.at_once(rates, chunk)).shape["rows"]
    programs.check_strips(posed, rows)
    name = f"sweep-{inputs.run_name(given)}"

    def work(directory: pathlib.Path) -> None:
        begun = given if conduct.overwrite else room.as_begun(given, directory)
        own, text = (posed, record) if begun == given else pose(begun)
        with workdir.claimed(directory):
            workdir.begin(directory, text, conduct.overwrite, inputs=own.facts)
            regions.write(own.masks, directory)
            ended = all(lanes.read(directory / "parts" / label, rates) is not None for label in specs)
            # What runs nothing says nothing new of what it was run on.
            before = journal.find_manifest(directory) if ended else None
            with journal.told(directory, before or describe(directory, own, len(cache.devices))):
                run(directory, own, specs, rates, chunk, cache, conduct, launcher)
        print(f"figure: {directory / 'sensitivity.png'}")

    launch.in_workdir(where, name, record, room.chosen(given), work)


if __name__ == "__main__":
    launch.run(main)
