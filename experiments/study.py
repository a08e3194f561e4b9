"""Which optimizer? Tuned on some pairs of pictures, judged on others -> curves, tables, figures and one page.

python -m experiments.study --flagfile=configs/study.flags
python -m experiments.study --curves=docs/optimizers/curves.npz --workdir=runs/remade

Every optimizer that is given without its learning rate is tuned, with as many evaluations as any other: all
--learning_rates, vmapped, on the first tuning pair up to the smallest budget, then the five around the best on every
tuning pair; for each of --budgets the rate of the lowest geometric mean is taken. Then each runs on the test pairs,
at every rate that was taken, a whole run of `experiments.stylize` in `arms/`. Nothing is chosen on a test pair. The
same command goes on from where it stopped; optimizers and problems may be added.

Pairs are those of pairs.json in the folder that the variable JAXSTYLE_PICTURES names, whose pictures may also lie in
that of JAXSTYLE_IVANOV2017; without it, of the samples.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.lab import records, study, study_report
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, workdir
from jaxstyle.runs.signals import Interrupted

from . import arm, cluster, lanes, launch, settings, task, yardstick
from .cache import Cache
from .pairs import PICTURES, read_pairs
from .settings import Settings

#: What is optimised, and from where: what differs from the flags.
PROBLEMS: Mapping[str, Mapping[str, Any]] = {
    "photo": {"init": "content"},
    "noise": {"init": "noise"},
    "article": {"loss": "ivanov2017", "init": "ivanov2017"},
    "wasserstein": {"style_loss": "wasserstein", "style_weight": 1.0},
}

#: Rates around the best that are tried on every tuning pair.
NEAR = 5

_OPTIMIZER = flags.DEFINE_multi_string(
    "optimizer",
    ["adam", "lbfgs", "lbfgs:scaling=spectral@fourier:exponent=0.5"],
    "NAME or NAME:key=value,key=value, with @PARAMETRIZATION or without; without a learning rate it is tuned.",
)
_PROBLEM = flags.DEFINE_multi_enum(
    "problem",
    ["photo"],
    list(PROBLEMS),
    "Gatys' loss with Gram matrices from the photo or from noise, the article's loss, or Wasserstein; repeatable.",
)
_BUDGETS = flags.DEFINE_list(
    "budgets",
    ["25", "50", "100"],
    "Numbers of evaluations at which arms are judged; runs are of the largest.",
)
_LEARNING_RATES = flags.DEFINE_list(
    "learning_rates",
    [
        *("0.01", "0.03", "0.1", "0.3", "1", "3", "10", "30", "100"),
        *("300", "1000", "3000", "10000", "30000", "100000"),
    ],
    f"The rates that are tried, from 1e-30 to 1e30; {NEAR} of them, around the best, on every tuning pair.",
)
_TUNING_PAIRS = flags.DEFINE_integer(
    "tuning_pairs", None, "Only the first so many tuning pairs.", lower_bound=1
)
_TEST_PAIRS = flags.DEFINE_integer("test_pairs", None, "Only the first so many test pairs.", lower_bound=1)
_CURVES = flags.DEFINE_multi_string(
    "curves", None, "curves.npz of studies that ran; their page is made anew and nothing is run; repeatable."
)
_WORKDIR = launch.define_workdir("study")
_LAUNCHER, _JOBS, _SBATCH = cluster.define_flags()

flags.adopt_module_key_flags(launch)
flags.adopt_module_key_flags(cluster)

#: Flags of a run that a study decides, and by what.
OWN = {
    "content": PICTURES,
    "style": PICTURES,
    "steps": "--budgets",
    "evaluations": "--budgets",
    "init": "--problem",
    "loss": "--problem",
}

#: Flags that may differ when a study goes on.
CHANGEABLE = ("optimizer", "problem", "test_pairs")


class Contestant(NamedTuple):
    """An optimizer of the study as the flag has it. `spec` is at rate 1 where the rate is to be tuned."""

    text: str
    spec: catalogue.Spec
    tuned: bool


class Plan(NamedTuple):
    """What the flags ask for. Pairs are names with the settings that have their pictures."""

    directory: pathlib.Path
    contestants: Mapping[str, tuple[Contestant, ...]]  # by problem
    budgets: tuple[int, ...]
    rates: list[float]
    tuning: dict[str, Settings]
    test: dict[str, Settings]
    size: str
    record: str


def parse_budgets(texts: Sequence[str]) -> tuple[int, ...]:
    """The budgets, sorted.

    Raises:
      UserError: one is no number of evaluations.
    """
    for text in texts:
        if not re.fullmatch(r"\s*\d{1,6}\s*", text) or int(text) < 2:
            raise UserError(f"--budgets: each must be a whole number from 2 to 999999, not {text.strip()!r}")
    if not texts:
        raise UserError("--budgets: there must be one or more, as in 25,50,100")
    return tuple(sorted({int(text) for text in texts}))


def parse_contestant(text: str, given: Settings) -> Contestant:
    """An optimizer of the flags; one that wants a learning rate and is given none is tuned.

    Raises:
      UserError: see `arm.parse_optimizer`.
    """
    name, _, rest = text.partition("@")[0].partition(":")
    names = [item.partition("=")[0].strip() for item in rest.split(",")]
    if "learning_rate" in names or not catalogue.has_learning_rate(name):
        return Contestant(text, arm.parse_optimizer(dataclasses.replace(given, optimizer=text)), False)
    spec = arm.parse_optimizer(dataclasses.replace(given, optimizer=lanes.at_rate(text, 1)))
    return Contestant(text, spec, True)


# --- running ------------------------------------------------------------------------------------------------------


def pose(name: str, given: Settings, cache: Cache) -> task.Task:
    """A pair's problem, posed once."""
    changed = dataclasses.replace(given, **PROBLEMS[name])
    return cache.get(("study", name, given), lambda: task.pose(changed, cache))


def check(plan: Plan, cache: Cache) -> dict[str, Any]:
    """Poses all that will be run, so that what cannot be is told before anything is written.

    Returns:
      All pictures, as in a manifest.

    Raises:
      UserError: a flag or a picture is of no use.
    """
    pictures: dict[str, Any] = {}
    for problem, given in itertools.product(plan.contestants, (*plan.tuning.values(), *plan.test.values())):
        for path, each in pose(problem, given, cache).facts["pictures"].items():
            known = pictures.setdefault(path, {"sha256": each["sha256"], "shapes": {}})
            known["shapes"] |= each["shapes"]
    return pictures


class Trial(NamedTuple):
    """Rates of one optimizer that are tried on a tuning pair for so many steps, in a folder of this beginning."""

    problem: str
    contestant: Contestant
    rates: Sequence[float]
    steps: int
    pair: str
    given: Settings
    stem: pathlib.Path


def _trial(
    plan: Plan, problem: str, contestant: Contestant, rates: Sequence[float], steps: int, pair: str
) -> Trial:
    stem = plan.directory / "parts" / safe(f"{problem}-{records.label(contestant.text)}-{pair}-{steps}")
    return Trial(problem, contestant, rates, steps, pair, plan.tuning[pair], stem)


def widely(plan: Plan, problem: str, contestant: Contestant) -> Trial:
    """All rates on the first pair up to the smallest budget."""
    return _trial(plan, problem, contestant, plan.rates, min(plan.budgets), next(iter(plan.tuning)))


def nearly(plan: Plan, problem: str, contestant: Contestant, rows: lanes.Rows) -> list[Trial]:
    """`NEAR` rates, those around the best of the rows of all, on every pair up to the largest budget."""
    ends = [_best(lane, min(plan.budgets)) for lane in rows.swapaxes(0, 1)]
    begin = min(max(int(np.argmin(ends)) - NEAR // 2, 0), max(len(ends) - NEAR, 0))
    rates = plan.rates[begin : begin + NEAR]
    return [_trial(plan, problem, contestant, rates, max(plan.budgets), pair) for pair in plan.tuning]


def tune(
    plan: Plan, problem: str, contestant: Contestant, run: Callable[[Trial], lanes.Rows]
) -> list[study.Tuning]:
    """What the rates around the best come to on all tuning pairs, the same for every optimizer."""
    found = []
    for trial in nearly(plan, problem, contestant, run(widely(plan, problem, contestant))):
        for rate, lane in zip(trial.rates, run(trial).swapaxes(0, 1), strict=True):
            best = {budget: _best(lane, budget) for budget in plan.budgets}
            found.append(study.Tuning(problem, contestant.text, trial.pair, rate, best))
    return found


def read_trial(trial: Trial) -> lanes.Rows | None:
    """The rows of a trial, if it has ended."""
    return lanes.read(trial.stem, trial.rates)


def run_trial(trial: Trial, cache: Cache, every: float) -> lanes.Rows:
    """The rows of a trial, all rates in one program, from where it stopped."""
    posed = pose(trial.problem, trial.given, cache)
    posed = posed._replace(settings=dataclasses.replace(posed.settings, steps=trial.steps))
    return lanes.sweep(posed, trial.contestant.spec, cache, trial.rates, len(trial.rates), trial.stem, every)


def _best(lane: np.ndarray, budget: int) -> float:
    """The lowest total within a budget; infinite where the lane diverged in it."""
    within = (
        lane[: budget + 1][lane[: budget + 1, 1] <= budget]
        if np.isfinite(lane[:budget, 1]).all()
        else lane[:0]
    )
    return float(np.min(within[:, 2], initial=math.inf))


def safe(name: str) -> str:
    """A name of a folder, of no other name: where more is replaced than spaces, a digest tells them apart."""
    plain = re.sub(r"[^\w.,=+-]+", "_", name, flags=re.ASCII)
    if plain == name.replace(" ", "_"):
        return plain
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class Entry(NamedTuple):
    """A run that the study asks for, in its folder."""

    problem: str
    contestant: Contestant
    rate: float
    pair: str
    given: Settings
    optimizer: str
    folder: pathlib.Path


def entries(plan: Plan, problem: str, contestant: Contestant, tunings: Sequence[study.Tuning]) -> list[Entry]:
    """The runs of one contestant on the test pairs: at the rate of each budget, or as it is."""
    texts = {math.nan: contestant.text}
    if contestant.tuned:
        scores = [study.rate_scores(tunings, problem, contestant.text, budget) for budget in plan.budgets]
        chosen = {study.chosen_rate(each) for each in scores} - {None}
        texts = {rate: lanes.at_rate(contestant.text, rate) for rate in sorted(chosen)}
    return [
        Entry(
            *(problem, contestant, rate, pair, given, text),
            plan.directory / "arms" / safe(f"{problem}-{records.label(text)}-{pair}"),
        )
        for rate, text in texts.items()
        for pair, given in plan.test.items()
    ]


def read_run(entry: Entry, measured: Mapping[str, Any]) -> study.Run | None:
    """The curve of a run that has ended."""
    found = records.read_arm(entry.folder, entry.contestant.text)
    if found is None or found.status not in journal.ENDED:
        return None
    rows, row = found.rows, measured.get(entry.folder.name, {})
    cost = np.diff(rows[:, 2]) / np.maximum(np.diff(rows[:, 1]), 1)
    return study.Run(
        *(entry.problem, entry.contestant.text, entry.pair, entry.rate, found.status),
        *(rows[:, 1].astype(int), rows[:, 3], float(np.median(cost)) if len(cost) else math.nan),
        *(row.get(name, math.nan) for name in ("lpips", "style", "palette")),
    )


class Bench:
    """What is kept while a study runs: what was tuned, what is to run and how it measured."""

    def __init__(self, plan: Plan):
        self.plan, self.tunings, self.entries = plan, [], []
        path = plan.directory / "measured.json"
        self.measured: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def study(self) -> study.Study:
        runs = (read_run(entry, self.measured) for entry in self.entries)
        return study.Study(
            self.plan.budgets, tuple(self.tunings), tuple(run for run in runs if run), self.plan.size
        )

    def measure(self, entry: Entry, by: yardstick.Yardstick, cache: Cache) -> None:
        if entry.folder.name not in self.measured:
            given = dataclasses.replace(entry.given, **PROBLEMS[entry.problem])
            self.measured[entry.folder.name] = yardstick.measure(entry.folder / "image.png", given, by, cache)
            text = json.dumps(self.measured, indent=1)
            files.write_atomically(self.plan.directory / "measured.json", text.encode())


def run(plan: Plan, cache: Cache, conduct: launch.Conduct, launcher: cluster.Launcher | None) -> study.Study:
    """Tunes and runs all that has not ended, in a directory that is claimed and begun."""
    bench, by = Bench(plan), cache.get("yardstick", yardstick.load)
    failure = None
    try:
        if launcher:
            failure = run_as_jobs(bench, by, cache, conduct, launcher)
        else:
            run_here(bench, by, cache, conduct)
    except Interrupted:
        study_report.write(plan.directory, bench.study(), plan.record)
        raise
    if failure:
        study_report.write(plan.directory, bench.study(), plan.record)
        raise UserError(failure)
    return bench.study()


def run_here(bench: Bench, by: yardstick.Yardstick, cache: Cache, conduct: launch.Conduct) -> None:
    """Tunes and runs one contestant after the other."""
    plan = bench.plan
    for problem, contestants in plan.contestants.items():
        for contestant in contestants:
            if contestant.tuned:
                trial = functools.partial(run_trial, cache=cache, every=conduct.checkpoint_seconds)
                bench.tunings += tune(plan, problem, contestant, trial)
            mine = entries(plan, problem, contestant, bench.tunings)
            bench.entries += mine
            for entry in mine:
                posed = pose(problem, entry.given, cache)
                arm.complete(posed, entry.optimizer, entry.folder, cache, conduct)
                bench.measure(entry, by, cache)


def _job(trial: Trial, conduct: launch.Conduct) -> Callable[[], None]:
    given = dataclasses.replace(trial.given, steps=trial.steps, **PROBLEMS[trial.problem])
    at_once, every = (trial.rates, len(trial.rates)), conduct.checkpoint_seconds
    return functools.partial(lanes.work, given, trial.contestant.spec, *at_once, trial.stem, every)


def run_as_jobs(
    bench: Bench, by: yardstick.Yardstick, cache: Cache, conduct: launch.Conduct, launcher: cluster.Launcher
) -> str | None:
    """Tunes all contestants and then runs all; what to tell if something failed, which holds up its contestant."""
    plan, failures = bench.plan, []

    def attempt(trials: Sequence[Trial]) -> None:
        jobs = {trial.stem.name: _job(trial, conduct) for trial in trials if read_trial(trial) is None}
        failures.append(cluster.run(launcher, plan.directory, jobs, lambda name: print(f"{name}: ended")))

    each = [(problem, one) for problem, contestants in plan.contestants.items() for one in contestants]
    wide = [widely(plan, *one) for one in each if one[1].tuned]
    attempt(wide)
    near = {
        (trial.problem, trial.contestant.text): nearly(plan, trial.problem, trial.contestant, rows)
        for trial in wide
        if (rows := read_trial(trial)) is not None
    }
    attempt([trial for trials in near.values() for trial in trials])
    for problem, contestant in each:
        trials = near.get((problem, contestant.text), [])
        if contestant.tuned and not (trials and all(read_trial(trial) is not None for trial in trials)):
            continue
        if contestant.tuned:
            bench.tunings += tune(plan, problem, contestant, read_trial)
        bench.entries += entries(plan, problem, contestant, bench.tunings)
    by_name = {entry.folder.name: entry for entry in bench.entries}
    jobs = {}
    for name, entry in by_name.items():
        posed = pose(entry.problem, entry.given, cache)
        begin = functools.partial(arm.job, posed, entry.optimizer, entry.folder, conduct)
        jobs[name] = cluster.patiently(begin)

    def ended(name: str) -> None:
        found = records.read_arm(by_name[name].folder, name)
        print(arm.told(name, found.status, found.rows), flush=True)
        bench.measure(by_name[name], by, cache)

    for name in [name for name, job in jobs.items() if job is None]:
        del jobs[name]
        bench.measure(by_name[name], by, cache)  # of before
    failures.append(cluster.run(launcher, plan.directory, jobs, ended))
    return "; ".join(filter(None, failures)) or None


def make_plan(base: Settings, where: str | None, above: Mapping[str, Any]) -> Plan:
    """What the flags ask for."""
    if base.scales not in (None, 1):
        raise UserError(f"--scales={base.scales}: a study is of one size; take 1")
    variables = base.parametrization or "pixels"
    budgets = parse_budgets(above["budgets"])
    # What a contestant is judged by is not what happens to be the default for pictures.
    loss = base.style_loss or "gram"
    largest = {"steps": max(budgets), "evaluations": max(budgets)}
    base = dataclasses.replace(base, scales=1, parametrization=variables, style_loss=loss, **largest)
    shown = {name: ",".join(above[name]) for name in ("budgets", "learning_rates")}
    record = settings.record(base, **above | shown | dict.fromkeys(("content", "style", *largest)))
    directory = (
        workdir.find(launch.RUNS, "study", record, CHANGEABLE) if where is None else pathlib.Path(where)
    )
    contestants = {
        problem: tuple(
            parse_contestant(text, dataclasses.replace(base, **PROBLEMS[problem]))
            for text in dict.fromkeys("".join(each.split()) for each in above["optimizer"])
        )
        for problem in dict.fromkeys(above["problem"])
    }
    return Plan(
        directory,
        contestants,
        budgets,
        lanes.parse_rates(above["learning_rates"]),
        read_pairs("tuning", above["tuning_pairs"], base),
        read_pairs("test", above["test_pairs"], base),
        base.size,
        record,
    )


def read_curves(paths: Sequence[str]) -> study.Study:
    """What earlier studies found.

    Raises:
      UserError: a file is none of theirs, or their budgets differ.
    """
    found = [records.read_curves(path, study.unpack) for path in paths]
    try:
        return study.merge(found)
    except ValueError as error:
        raise UserError(f"--curves: {error}") from error


def main() -> None:
    base, where, paths = settings.read(), _WORKDIR.value, _CURVES.value
    launcher = cluster.read(_LAUNCHER.value, _JOBS.value, _SBATCH.value)
    above = {
        "optimizer": tuple(_OPTIMIZER.value),
        "problem": tuple(_PROBLEM.value),
        "budgets": _BUDGETS.value,
        "learning_rates": _LEARNING_RATES.value,
        "tuning_pairs": _TUNING_PAIRS.value,
        "test_pairs": _TEST_PAIRS.value,
    }
    for name, instead in OWN.items():
        if settings.given(name):
            raise UserError(f"--{name}: a study has its own, by {instead}")
    conduct, cache = launch.conduct(), Cache(launch.devices())
    if paths and launcher:
        raise UserError("--launcher: with --curves nothing is run; leave it out")
    if paths:
        found, directory = read_curves(paths), pathlib.Path(where or launch.RUNS / "study-remade")
        record = "# experiments.study\n" + "".join(f"--curves={path}\n" for path in paths)
        with workdir.claimed(directory):
            workdir.begin(directory, record, conduct.overwrite, changeable=("curves",))
            study_report.write(directory, found, record)
    else:
        plan = make_plan(base, where, above)
        directory = plan.directory
        made_of = {"pictures": check(plan, cache)}
        with workdir.claimed(directory):
            workdir.begin(directory, plan.record, conduct.overwrite, changeable=CHANGEABLE, inputs=made_of)
            with journal.told(directory, journal.environment(len(cache.devices)) | made_of):
                study_report.write(directory, run(plan, cache, conduct, launcher), plan.record)
    print(f"report: {directory / 'report.html'}")


if __name__ == "__main__":
    launch.run(main)
