"""What a study of optimizers comes to: pure functions of the curves of its runs.

An *arm* is an optimizer with its variables; a *problem* a form of the loss with a start; a *pair* is a photo with a
style picture. A run is one arm on one problem and pair. Losses are the *best so far*, as --keep=best returns them,
over the lowest loss that any arm of the study found for that problem and pair within the largest budget (the target
of Moré and Wild 2009, "Benchmarking Derivative-Free Optimization Algorithms", section 2).
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxstyle.lab import records
from jaxstyle.lab.curves import geometric_mean

#: Times the best known loss, to which evaluations are counted.
TARGETS = (1.5, 1.25, 1.1, 1.05)

#: Samples of a bootstrap, and the fewest pairs that it is taken of.
RESAMPLES, FEWEST = 9999, 5


class Tuning(NamedTuple):
    """What one learning rate came to on one tuning pair. `best` is by budget; infinite where it had diverged."""

    problem: str
    arm: str
    pair: str
    learning_rate: float
    best: Mapping[int, float]


class Run(NamedTuple):
    """One run on a test pair, a row for each iterate.

    `learning_rate` is NaN where none was tuned. `seconds` are those of an evaluation, the median step's; `lpips`,
    `style` and `palette` are of the picture at the end, as `experiments.measure` prints them.
    """

    problem: str
    arm: str
    pair: str
    learning_rate: float
    status: str
    evaluations: Int[np.ndarray, " rows"]
    total: Float[np.ndarray, " rows"]
    seconds: float
    lpips: float
    style: float
    palette: float


class Study(NamedTuple):
    """All that was run. `budgets` are numbers of evaluations; `size` is that of the pictures, as --size has it."""

    budgets: tuple[int, ...]
    tunings: tuple[Tuning, ...]
    runs: tuple[Run, ...]
    size: str = ""


def best_within(run: Run, budget: float) -> float:
    """The lowest loss among the iterates that a budget pays for; infinite if it pays for none."""
    return float(np.min(run.total[run.evaluations <= budget], initial=math.inf))


def last_within(run: Run, budget: float) -> float:
    """The loss of the last iterate that a budget pays for; infinite where the run had diverged."""
    if run.status == "diverged" and budget > run.evaluations[-1]:
        return math.inf
    within = run.total[run.evaluations <= budget]
    return float(within[-1]) if len(within) else math.inf


def evaluations_to(run: Run, loss: float) -> float:
    """Evaluations after which the best so far is at most a loss; infinite if it never is."""
    reached = np.flatnonzero(run.total <= loss)
    return float(run.evaluations[reached[0]]) if len(reached) else math.inf


# --- tuning -------------------------------------------------------------------------------------------------------


def rate_scores(tunings: Sequence[Tuning], problem: str, arm: str, budget: int) -> dict[float, float]:
    """Geometric mean over the tuning pairs of the best loss at a budget, by learning rate, in order."""
    found: dict[float, list[float]] = {}
    for each in tunings:
        if (each.problem, each.arm) == (problem, arm):
            found.setdefault(each.learning_rate, []).append(each.best[budget])
    return {rate: geometric_mean(found[rate]) for rate in sorted(found)}


def chosen_rate(scores: Mapping[float, float]) -> float | None:
    """The rate of the lowest score; None if every rate diverged on some pair."""
    rate = min(scores, key=scores.__getitem__)
    return rate if math.isfinite(scores[rate]) else None


def decades(scores: Mapping[float, float]) -> float:
    """How little a rate matters: decades from the lowest to the highest neighbour within 10 % of the best score."""
    near = list(scores)[records.neighbours(list(scores.values()), 1.1)]
    return math.log10(near[-1] / near[0])


# --- scores -------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """The arms of one problem at one budget, each at the learning rate that was chosen for that budget.

    `runs` has by arm a run for each pair; `known` is the lowest loss of each pair.
    """

    problem: str
    budget: int
    pairs: tuple[str, ...]
    runs: Mapping[str, tuple[Run, ...]]
    known: Float[np.ndarray, " pairs"]


#: By arm of a field a number for each pair.
Scores = dict[str, Float[np.ndarray, " pairs"]]


def problems(study: Study) -> list[str]:
    return list(dict.fromkeys(run.problem for run in study.runs))


def field(study: Study, problem: str, budget: int) -> Field:
    """The field of a problem at a budget. Arms that have not run on every pair are left out."""
    mine = [run for run in study.runs if run.problem == problem]
    pairs = tuple(dict.fromkeys(run.pair for run in mine))
    runs = {}
    for arm in dict.fromkeys(run.arm for run in mine):
        scores = rate_scores(study.tunings, problem, arm, budget)
        rate = chosen_rate(scores) if scores else None
        found = {
            run.pair: run for run in mine if run.arm == arm and (not scores or run.learning_rate == rate)
        }
        if len(found) == len(pairs):
            runs[arm] = tuple(found[pair] for pair in pairs)
    last = max(study.budgets)
    known = [min(best_within(run, last) for run in mine if run.pair == pair) for pair in pairs]
    return Field(problem, budget, pairs, runs, np.array(known))


def ratios(field: Field, within: Callable[[Run, float], float] = best_within) -> Scores:
    """The loss within the budget, `best_within` or `last_within`, over the best known."""
    return {
        arm: np.array([within(run, field.budget) for run in runs]) / field.known
        for arm, runs in field.runs.items()
    }


def costs(field: Field, target: float) -> Scores:
    """Evaluations to `target` times the best known loss; infinite where the budget does not pay for them."""
    goals = target * field.known
    found = {
        arm: np.array([evaluations_to(run, goal) for run, goal in zip(runs, goals, strict=True)])
        for arm, runs in field.runs.items()
    }
    return {arm: np.where(spent <= field.budget, spent, np.inf) for arm, spent in found.items()}


class Interval(NamedTuple):
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(ratios: Float[np.ndarray, " pairs"]) -> Interval:
    """The geometric mean over pairs, by the bootstrap over pairs, bias-corrected and accelerated (Efron 1987).

    Of ten log-normal ratios 90 % of such intervals hold the mean. Of fewer than five a bootstrap tells nothing: then
    it goes from the least to the most. Of equal ratios, or of a single one, the interval is the value; one that is
    infinite makes all infinite.
    """
    from scipy import stats  # here, as it takes half a second that no figure of a run should wait for

    value = geometric_mean(ratios)
    if not math.isfinite(value):
        return Interval(math.inf, math.inf, math.inf)
    logs = np.log(ratios)
    if len(logs) < FEWEST or np.ptp(logs) == 0:
        return Interval(value, float(np.min(ratios)), float(np.max(ratios)))
    found = stats.bootstrap(
        (logs,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(value, float(np.exp(found.low)), float(np.exp(found.high)))


def performance_profile(
    costs: Float[np.ndarray, "arms pairs"], factors: Float[np.ndarray, " factors"]
) -> Float[np.ndarray, "arms factors"]:
    """Part of the pairs on which an arm costs at most a factor of the cheapest arm's.

    Dolan and Moré 2002, "Benchmarking Optimization Software with Performance Profiles", equation 2.1. A pair that no
    arm solves counts as unsolved by all.
    """
    cheapest = costs.min(0)
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isfinite(costs), costs / cheapest, np.inf)
    return np.mean(relative[:, :, None] <= factors, axis=1)


def profile_band(
    costs: Float[np.ndarray, "arms pairs"], factors: Float[np.ndarray, " factors"]
) -> Float[np.ndarray, "2 arms factors"]:
    """The 95 % band of `performance_profile`: pairs are drawn anew, the same for all arms."""
    rng, count = np.random.default_rng(0), costs.shape[1]
    drawn = [
        performance_profile(costs[:, rng.integers(count, size=count)], factors) for _ in range(RESAMPLES // 5)
    ]
    return np.percentile(drawn, (2.5, 97.5), axis=0)


class Ranks(NamedTuple):
    """Mean ranks of arms over pairs, 1 the best, ties shared.

    Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets": arms whose mean ranks
    differ by less than `critical` (Nemenyi's, at 5 %) cannot be told apart.
    """

    mean: Float[np.ndarray, " arms"]
    critical: float


def ranks(losses: Float[np.ndarray, "arms pairs"]) -> Ranks:
    """Ranks by loss, of three arms or more on two pairs or more."""
    from scipy import stats  # here, see `mean_interval`

    arms, pairs = losses.shape
    mean = stats.rankdata(losses, axis=0).mean(1)
    q = stats.studentized_range.ppf(0.95, arms, np.inf) / math.sqrt(2)
    critical = q * math.sqrt(arms * (arms + 1) / (6 * pairs))
    return Ranks(mean, float(critical))


def front(points: Float[np.ndarray, "points 2"]) -> list[int]:
    """Indices of the points that no other is at most in both coordinates, by the first; of equal ones the first."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    found: list[int] = []
    for i in order:
        if not found or points[i, 1] < points[found[-1], 1]:
            found.append(int(i))
    return found


# --- files --------------------------------------------------------------------------------------------------------


def thinned(run: Run, budgets: Sequence[int]) -> Run:
    """The run with its rows up to the hundredth evaluation, then one in five evaluations, and those that a score may
    be read from: where a budget ends, the best within it, and where the best falls and is near the lowest. Thinned
    again, it stays."""
    spent, lowest = run.evaluations, np.minimum.accumulate(run.total)
    near = run.total <= 1.01 * max(TARGETS) * best_within(run, max(budgets))
    falls = np.diff(lowest, prepend=np.inf) < 0
    kept = (spent <= 100) | (np.diff(spent // 5, prepend=-1) > 0) | (falls & near)
    for end in np.searchsorted(spent, (*budgets, spent[-1]), side="right"):
        kept[[end - 1, np.argmin(run.total[: max(end, 1)])]] = True
    return run._replace(evaluations=spent[kept], total=run.total[kept])


def pack(study: Study) -> bytes:
    """The study as an .npz file: curves one after another, float32."""
    runs = [thinned(run, study.budgets) for run in study.runs]
    columns = {f"tuning_{name}": [getattr(t, name) for t in study.tunings] for name in Tuning._fields[:-1]}
    columns["tuning_best"] = [[t.best[budget] for budget in study.budgets] for t in study.tunings]
    columns |= {
        f"run_{name}": [getattr(r, name) for r in runs] for name in ("problem", "arm", "pair", "status")
    }
    columns |= {
        f"run_{name}": np.float32([getattr(r, name) for r in runs])
        for name in ("learning_rate", "seconds", "lpips", "style", "palette")
    }
    columns["run_rows"] = np.int32([len(r.total) for r in runs])
    columns["evaluations"] = np.concatenate([np.int32(r.evaluations) for r in runs] or [np.int32([])])
    columns["total"] = np.concatenate([np.float32(r.total) for r in runs] or [np.float32([])])
    columns["tuning_learning_rate"] = np.float32(columns["tuning_learning_rate"])
    columns["tuning_best"] = np.float32(columns["tuning_best"]).reshape(-1, len(study.budgets))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, budgets=np.int32(study.budgets), size=study.size, **columns)
    return buffer.getvalue()


def unpack(data: bytes) -> Study:
    """What `pack` made."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        found = dict(file)
    budgets = tuple(map(int, found["budgets"]))
    tunings = tuple(
        Tuning(*map(str, words), _number(rate), dict(zip(budgets, map(float, best), strict=True)))
        for *words, rate, best in zip(*(found[f"tuning_{name}"] for name in Tuning._fields), strict=True)
    )
    ends = np.cumsum(found["run_rows"])
    runs = []
    for i, end in enumerate(ends):
        rows = slice(end - found["run_rows"][i], end)
        words = (str(found[f"run_{name}"][i]) for name in ("problem", "arm", "pair"))
        measures = (float(found[f"run_{name}"][i]) for name in ("seconds", "lpips", "style", "palette"))
        rate = _number(found["run_learning_rate"][i])
        curve = found["evaluations"][rows], np.float64(found["total"][rows])
        runs.append(Run(*words, rate, str(found["run_status"][i]), *curve, *measures))
    return Study(budgets, tunings, tuple(runs), str(found.get("size", "")))


def _number(value: np.float32) -> float:
    """The float of fewest digits that is this float32."""
    return float(str(value))


def merge(studies: Sequence[Study]) -> Study:
    """Several studies, of other problems or arms, as one; their budgets and sizes must be the same.

    Raises:
      ValueError: they are not, or a run or a tuning would count twice.
    """
    if len({(study.budgets, study.size) for study in studies}) != 1:
        raise ValueError("studies of other budgets or sizes cannot be merged")
    seen: dict[tuple, int] = {}
    for number, study in enumerate(studies):
        for each in (*study.runs, *study.tunings):
            if seen.setdefault((type(each), each.problem, each.arm, each.pair), number) != number:
                raise ValueError(
                    f"{each.arm} on {each.pair} ({each.problem}) is in two of them and would count twice"
                )
    return Study(
        studies[0].budgets,
        tuple(each for study in studies for each in study.tunings),
        tuple(each for study in studies for each in study.runs),
        studies[0].size,
    )
