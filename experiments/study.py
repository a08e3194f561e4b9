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
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from jaxstyle.errors import UserError
from jaxstyle.lab import records, study, study_report
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, workdir
from jaxstyle.runs.signals import Interrupted

from . import arm, cluster, lanes, launch, programs, room, settings, task, yardstick
from .cache import Cache
from .pairs import PICTURES, read_pairs
from .settings import Settings

#: What is optimised, and from where: what differs from the flags.
PROBLEMS: Mapping[str, Mapping[str, Any]] = {
    "photo": {"init": "content"},
    "noise": {"init": "noise"},
    # Its weights of the terms belong to this network, whose features are 100 times as large as torchvision's.
    "article": {"loss": "ivanov2017", "init": "ivanov2017", "weights": "vgg16-keras"},
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
    "Gatys' loss with Gram matrices from the photo or from noise, the article's loss and network (extra "
    "keras-weights), or Wasserstein; repeatable.",
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
    """An optimizer on a problem, as the flags have them. `spec` is at rate 1 where the rate is to be tuned."""

    problem: str
    text: str
    spec: catalogue.Spec
    tuned: bool


class Plan(NamedTuple):
    """What the flags ask for. Pairs are names with the settings that have their pictures."""

    directory: pathlib.Path
    contestants: tuple[Contestant, ...]  # a problem at a time
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


def parse_contestant(problem: str, text: str, base: Settings) -> Contestant:
    """An optimizer of the flags; one that wants a learning rate and is given none is tuned.

    Raises:
      UserError: see `arm.parse_optimizer`.
    """
    name, _, rest = text.partition("@")[0].partition(":")
    names = [item.partition("=")[0].strip() for item in rest.split(",")]
    tuned = "learning_rate" not in names and catalogue.has_learning_rate(name)
    optimizer = lanes.at_rate(text, 1) if tuned else text
    spec = arm.parse_optimizer(dataclasses.replace(on(problem, base), optimizer=optimizer))
    return Contestant(problem, text, spec, tuned)


def on(problem: str, given: Settings) -> Settings:
    """The settings of a pair, or of all, for a problem."""
    return dataclasses.replace(given, **PROBLEMS[problem])


# --- running ------------------------------------------------------------------------------------------------------


def pose(given: Settings, cache: Cache) -> task.Task:
    """A pair's problem, posed once."""
    return cache.get(("study", given), lambda: task.pose(given, cache))


def check(plan: Plan, cache: Cache) -> dict[str, Any]:
    """Poses all that will be run, so that what cannot be is told before anything is written.

    Returns:
      All pictures, as in a manifest.

    Raises:
      UserError: a flag or a picture is of no use.
    """
    pictures: dict[str, Any] = {}
    for (problem, _, spec, _), given in itertools.product(
        plan.contestants, (*plan.tuning.values(), *plan.test.values())
    ):
        posed = pose(on(problem, given), cache)
        programs.check_strips(posed, len(programs.spread(spec, cache)))
        for path, each in posed.facts["pictures"].items():
            known = pictures.setdefault(path, {"sha256": each["sha256"], "shapes": {}})
            known["shapes"] |= each["shapes"]
    return pictures


class Trial(NamedTuple):
    """Rates of one optimizer that are tried on a tuning pair for so many steps, in a folder of this beginning."""

    spec: catalogue.Spec
    rates: Sequence[float]
    steps: int
    pair: str
    given: Settings
    stem: pathlib.Path


def _trial(plan: Plan, contestant: Contestant, rates: Sequence[float], steps: int, pair: str) -> Trial:
    problem, text, spec, _ = contestant
    stem = plan.directory / "parts" / safe(f"{problem}-{records.label(text)}-{pair}-{steps}")
    return Trial(spec, rates, steps, pair, on(problem, plan.tuning[pair]), stem)


def widely(plan: Plan, contestant: Contestant) -> Trial:
    """All rates on the first pair up to the smallest budget."""
    return _trial(plan, contestant, plan.rates, min(plan.budgets), next(iter(plan.tuning)))


def nearly(plan: Plan, contestant: Contestant) -> list[Trial]:
    """`NEAR` rates around the best of all, on every pair up to the largest budget; none before all have run."""
    if (rows := read_trial(widely(plan, contestant))) is None:
        return []
    ends = [_best(lane, min(plan.budgets)) for lane in rows.swapaxes(0, 1)]
    begin = min(max(int(np.argmin(ends)) - NEAR // 2, 0), max(len(ends) - NEAR, 0))
    rates = plan.rates[begin : begin + NEAR]
    return [_trial(plan, contestant, rates, max(plan.budgets), pair) for pair in plan.tuning]


def read_trial(trial: Trial) -> lanes.Rows | None:
    """The rows of a trial, if it has ended."""
    return lanes.read(trial.stem, trial.rates)


def run_trial(trial: Trial, cache: Cache, conduct: launch.Conduct) -> None:
    """Runs a trial, all rates in one program, from where it stopped."""
    posed, every = pose(trial.given, cache), conduct.checkpoint_seconds
    posed = posed._replace(settings=dataclasses.replace(posed.settings, steps=trial.steps))
    lanes.sweep(posed, trial.spec, cache, trial.rates, len(trial.rates), trial.stem, every)


def read_tunings(plan: Plan, contestant: Contestant) -> list[study.Tuning]:
    """What the rates around the best came to, the same for every optimizer; none before all pairs have run."""
    found = []
    for trial in nearly(plan, contestant):
        if (rows := read_trial(trial)) is None:
            return []
        for rate, lane in zip(trial.rates, rows.swapaxes(0, 1), strict=True):
            best = {budget: _best(lane, budget) for budget in plan.budgets}
            found.append(study.Tuning(contestant.problem, contestant.text, trial.pair, rate, best))
    return found


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
    """A run that the study asks for, in its folder. `optimizer` is that of the `arm`, at the rate."""

    problem: str
    arm: str
    rate: float
    pair: str
    given: Settings
    optimizer: str
    folder: pathlib.Path


def entries(plan: Plan, contestant: Contestant) -> list[Entry]:
    """The runs of one contestant on the test pairs: at the rate of each budget, once it is tuned, or as it is."""
    problem, own, _, tuned = contestant
    texts = {math.nan: own}
    if tuned:
        tunings = read_tunings(plan, contestant)
        scores = [study.rate_scores(tunings, problem, own, budget) for budget in plan.budgets if tunings]
        chosen = {study.chosen_rate(each) for each in scores} - {None}
        texts = {rate: lanes.at_rate(own, rate) for rate in sorted(chosen)}
    return [
        Entry(
            *(problem, own, rate, pair, on(problem, given), text),
            plan.directory / "arms" / safe(f"{problem}-{records.label(text)}-{pair}"),
        )
        for rate, text in texts.items()
        for pair, given in plan.test.items()
    ]


def read_run(entry: Entry, measured: Mapping[str, Any]) -> study.Run | None:
    """The curve of a run that has ended."""
    found = records.read_arm(entry.folder, entry.arm)
    if found is None or found.status not in journal.ENDED:
        return None
    rows, row = found.rows, measured.get(entry.folder.name, {})
    cost = np.diff(rows[:, 2]) / np.maximum(np.diff(rows[:, 1]), 1)
    return study.Run(
        *(entry.problem, entry.arm, entry.pair, entry.rate, found.status),
        *(rows[:, 1].astype(int), rows[:, 3], float(np.median(cost)) if len(cost) else math.nan),
        *(row.get(name, math.nan) for name in ("lpips", "style", "palette")),
    )


def write(plan: Plan, measured: yardstick.Measured) -> None:
    """Writes what all that has ended comes to."""
    tunings = [each for contestant in plan.contestants for each in read_tunings(plan, contestant)]
    asked = (entry for contestant in plan.contestants for entry in entries(plan, contestant))
    runs = [run for entry in asked if (run := read_run(entry, measured.rows))]
    study_report.write(
        plan.directory, study.Study(plan.budgets, tuple(tunings), tuple(runs), plan.size), plan.record
    )


def run(plan: Plan, cache: Cache, conduct: launch.Conduct, launcher: cluster.Launcher | None) -> None:
    """Tunes and runs all that has not ended, in a directory that is claimed and begun, and writes its page.

    Raises:
      UserError: jobs failed; what the others come to is written.
    """
    measured, failure = yardstick.Measured(plan.directory, cache), None
    try:
        if launcher:
            failure = run_as_jobs(plan, measured, cache, conduct, launcher)
        else:
            run_here(plan, measured, cache, conduct)
    except Interrupted:
        write(plan, measured)
        raise
    write(plan, measured)
    if failure:
        raise UserError(failure)


def run_here(plan: Plan, measured: yardstick.Measured, cache: Cache, conduct: launch.Conduct) -> None:
    """Tunes and runs one contestant after the other."""
    for contestant in plan.contestants:
        if contestant.tuned:
            run_trial(widely(plan, contestant), cache, conduct)
            for trial in nearly(plan, contestant):
                run_trial(trial, cache, conduct)
        for entry in entries(plan, contestant):
            posed = pose(room.as_begun(entry.given, entry.folder), cache)
            arm.complete(posed, entry.optimizer, entry.folder, cache, conduct)
            measured.add(entry.folder, entry.given)


def _job(trial: Trial, conduct: launch.Conduct) -> Callable[[], None]:
    given = dataclasses.replace(trial.given, steps=trial.steps)
    at_once, every = (trial.rates, len(trial.rates)), conduct.checkpoint_seconds
    return functools.partial(lanes.work, given, trial.spec, *at_once, trial.stem, every)


def run_as_jobs(
    plan: Plan,
    measured: yardstick.Measured,
    cache: Cache,
    conduct: launch.Conduct,
    launcher: cluster.Launcher,
) -> str | None:
    """Tunes all contestants and then runs all; what to tell if something failed, which holds up its contestant."""
    failures = []

    def attempt(trials: Sequence[Trial]) -> None:
        jobs = {trial.stem.name: _job(trial, conduct) for trial in trials if read_trial(trial) is None}
        failures.append(cluster.run(launcher, plan.directory, jobs, lambda name: print(f"{name}: ended")))

    tuned = [contestant for contestant in plan.contestants if contestant.tuned]
    attempt([widely(plan, contestant) for contestant in tuned])
    attempt([trial for contestant in tuned for trial in nearly(plan, contestant)])
    asked = {entry.folder.name: entry for each in plan.contestants for entry in entries(plan, each)}
    jobs = {}
    for name, entry in asked.items():
        posed = pose(room.as_begun(entry.given, entry.folder), cache)
        begin = functools.partial(arm.job, posed, entry.optimizer, entry.folder, conduct)
        if job := cluster.patiently(begin):
            jobs[name] = job
        else:
            measured.add(entry.folder, entry.given)  # of before

    def ended(name: str) -> None:
        found = records.read_arm(asked[name].folder, name)
        print(arm.told(name, found.status, found.rows), flush=True)
        measured.add(asked[name].folder, asked[name].given)

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
    texts = dict.fromkeys("".join(each.split()) for each in above["optimizer"])
    each = itertools.product(dict.fromkeys(above["problem"]), texts)
    return Plan(
        launch.find_workdir(where, "study", record, CHANGEABLE),
        tuple(parse_contestant(problem, text, base) for problem, text in each),
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
    launcher = cluster.read(_LAUNCHER.value, _JOBS.value, _SBATCH.value, where)
    above = {
        "optimizer": tuple(_OPTIMIZER.value),
        "problem": tuple(_PROBLEM.value),
        "budgets": _BUDGETS.value,
        "learning_rates": _LEARNING_RATES.value,
        "tuning_pairs": _TUNING_PAIRS.value,
        "test_pairs": _TEST_PAIRS.value,
    }
    for name, instead in OWN.items():
        # The record of a study has some, by their defaults, and makes it again as a flagfile.
        if settings.given(name) and getattr(base, name) != getattr(Settings(), name):
            raise UserError(f"--{name}: a study has its own, by {instead}")
    known = Settings().weights, PROBLEMS["article"]["weights"]
    if "article" in above["problem"] and base.weights not in known:
        raise UserError(
            f"--weights={base.weights}: --problem=article has its own network; leave one of the two out"
        )
    conduct, cache = launch.conduct(), Cache(launch.devices())
    if paths and launcher:
        raise UserError("--launcher: with --curves nothing is run; leave it out")
    if paths:
        found, directory = read_curves(paths), pathlib.Path(where or launch.RUNS / "study-remade")
        record = "# experiments.study\n" + "".join(f"--curves={path}\n" for path in paths)
        with workdir.claimed(directory):
            workdir.begin(directory, record, conduct.overwrite, changeable=("curves",), reads=paths)
            study_report.write(directory, found, record)
    else:
        plan = make_plan(base, where, above)
        directory = plan.directory
        made_of = {"pictures": check(plan, cache)}
        with workdir.claimed(directory):
            workdir.begin(directory, plan.record, conduct.overwrite, changeable=CHANGEABLE, inputs=made_of)
            with journal.told(directory, journal.environment(len(cache.devices)) | made_of):
                run(plan, cache, conduct, launcher)
    print(f"report: {directory / 'report.html'}")


if __name__ == "__main__":
    launch.run(main)
