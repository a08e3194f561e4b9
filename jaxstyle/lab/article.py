"""The six experiments of 2017 as one body of curves: the file that holds them, the verdicts on them, and tables."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstyle.lab import claims
from jaxstyle.lab.curves import STATED, Curve, Reading
from jaxstyle.lab.records import Arm, Table, markdown, median_losses, title

#: The experiment whose runs the claims of another compare it with.
AGAINST: Mapping[str, str] = {"experiment2": "experiment1"}

#: Other readings of the words, under what a table calls them.
READINGS: Mapping[str, Reading] = {
    "as stated": STATED,
    "wobble 5 %": STATED._replace(wobble=0.05),
    "20 %": STATED._replace(wobble=0.2),
    "factor 1.1": STATED._replace(same=1.1),
    "1.5": STATED._replace(same=1.5),
    "by step": STATED._replace(clock="step"),
}

#: Evaluations at which losses are shown.
BUDGETS = (50, 100, 250, 500, 1000)


class Run(NamedTuple):
    """One arm of an experiment on one pair with one seed."""

    experiment: str
    label: str
    pair: str
    seed: int
    curve: Curve


def run_of(experiment: str, arm: Arm) -> Run:
    """What a comparison recorded of an arm."""
    spec = arm.manifest["optimizer"]
    curve = Curve(spec["name"], spec.get("learning_rate"), arm.status, *arm.rows.T[1:4])
    return Run(experiment, arm.label, arm.pair, arm.seed, curve)


def joined(runs: Sequence[Run], more: Sequence[Run]) -> list[Run]:
    """Runs of a page, and more of other seeds.

    Raises:
      ValueError: a run is there twice.
    """
    there = set()
    for run in (*runs, *more):
        if run[:4] in there:
            raise ValueError(f"{run.label} of {run.experiment}, pair {run.pair}, seed {run.seed}")
        there.add(run[:4])
    return [*runs, *more]


# --- verdicts -----------------------------------------------------------------------------------------------------


def _by_pair_and_seed(runs: Iterable[Run]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for run in runs:
        found.setdefault(f"{run.pair}, seed {run.seed}", []).append(run.curve)
    return found


def judge(
    experiment: str, runs: Iterable[Run], against: Iterable[Run] = (), by: Reading = STATED
) -> list[claims.Verdict]:
    """The verdicts on an experiment's claims, on its runs and those of the one that it is compared with."""
    return claims.judge(experiment, _by_pair_and_seed(runs), list(_by_pair_and_seed(against).values()), by)


def judge_all(runs: Sequence[Run], by: Reading = STATED) -> list[claims.Verdict]:
    """The verdicts on all experiments that have runs, and on what several of them tell together."""
    of = {name: [run for run in runs if run.experiment == name] for name in claims.EXPERIMENTS}
    found = [
        verdict
        for name, own in of.items()
        if own
        for verdict in judge(name, own, of.get(AGAINST.get(name, ""), ()), by)
    ]
    return found + _at_the_same_pair(of["experiment2"], of["experiment3"], by) + _best_of_all(found)


def _at_the_same_pair(large: Sequence[Run], small: Sequence[Run], by: Reading) -> list[claims.Verdict]:
    """What experiment 2 says of size, beside as many steps of 3 on the same pair; experiment 1 has another pair."""
    findings: dict[str, dict[str, Any]] = {}
    for pair in dict.fromkeys(run.pair for run in large):
        own = [run for run in large if run.pair == pair]
        rows = max(len(run.curve.total) for run in own)
        first = [run._replace(curve=run.curve.first(rows)) for run in small if run.pair == pair]
        for verdict in judge("experiment2", own, first, by) if first else ():
            findings.setdefault(verdict.id, {}).update(verdict.runs)
    return [
        claims.verdict_of(
            name.replace(claim.id, f"{claim.id}-1", 1),
            f"at the same pair, {claim.text.replace('experiment 1', 'experiment 3')}",
            runs,
        )
        for name, runs in findings.items()
        for claim in claims.EXPERIMENTS["experiment2"]
        if claim.against and name.partition(" (")[0] == claim.id
    ]


def _best_of_all(verdicts: Iterable[claims.Verdict]) -> list[claims.Verdict]:
    """One verdict over all experiments, for each L-BFGS; with the article's own Adadelta, where that has run."""
    findings: dict[str, dict[str, dict[str, Any]]] = {}
    for verdict in verdicts:
        number, best, names = verdict.id.partition("-best")
        if best:
            title = "best (scipy-lbfgs)" if "scipy-lbfgs" in names else "best"
            runs = {f"{name} of experiment {number}": run for name, run in verdict.runs.items()}
            findings.setdefault(title, {}).update(runs)
    text = "L-BFGS is the best and the fastest, over all experiments"
    return [claims.verdict_of(title, text, runs) for title, runs in findings.items()]


def row(verdict: claims.Verdict) -> dict[str, Any]:
    """A row of `claims.json`."""
    return _json(verdict._asdict())


def _json(value: Any) -> Any:
    """JSON has no infinities, and none of NumPy's numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- the file -----------------------------------------------------------------------------------------------------


def pack(runs: Sequence[Run]) -> bytes:
    """The curves as an .npz file, one after another: evaluations, and totals as float32.

    Of seconds it keeps what an evaluation took in the median step.
    """

    def pace(curve: Curve) -> float:
        steps, seconds = np.diff(curve.evaluations), np.diff(curve.seconds)
        moved = steps > 0  # what has converged stands, and spends nothing
        return float(np.median(seconds[moved] / steps[moved])) if moved.any() else math.nan

    curves = [run.curve for run in runs]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **{name: np.array([getattr(run, name) for run in runs]) for name in Run._fields[:-1]},
        optimizer=np.array([curve.optimizer for curve in curves]),
        learning_rate=np.array([curve.learning_rate or math.nan for curve in curves]),
        status=np.array([curve.status for curve in curves]),
        seconds=np.float32([pace(curve) for curve in curves]),
        rows=np.int32([len(curve.total) for curve in curves]),
        spent=np.concatenate([np.diff(np.int32(curve.evaluations), prepend=0) for curve in curves]),
        total=np.concatenate([np.float32(curve.total) for curve in curves]),
    )
    return buffer.getvalue()


def unpack(data: bytes) -> list[Run]:
    """What `pack` made.

    Raises:
      ValueError, KeyError, OSError: it is no such file.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        found = dict(file)
    runs, begin = [], 0
    for i, count in enumerate(found["rows"]):
        rows = slice(begin, begin := begin + int(count))
        spent, rate = np.cumsum(found["spent"][rows], dtype=float), float(found["learning_rate"][i])
        curve = Curve(
            *(str(found["optimizer"][i]), None if math.isnan(rate) else rate, str(found["status"][i])),
            *(spent, spent * float(found["seconds"][i]), np.float64(found["total"][rows])),
        )
        words = (str(found[name][i]) for name in ("experiment", "label", "pair"))
        runs.append(Run(*words, int(found["seed"][i]), curve))
    return runs


def arm_of(run: Run) -> Arm:
    """The run as figures want it: rows whose terms are not known, and no picture."""
    curve = run.curve
    rows = np.full((len(curve.total), 7), np.nan)
    rows[:, 0] = np.arange(len(rows))
    rows[:, 1:4] = np.stack([curve.evaluations, curve.seconds, curve.total], 1)
    return Arm(run.label, run.label, run.pair, run.seed, curve.status, {}, rows, None)


# --- tables -------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}" if value < 100 else f"{value:.3g}"


def _range(values: Sequence[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _of_pair(found: Mapping[str, Mapping[str, Any]], pair: str) -> str:
    """What came of a claim on a pair: in how many of its runs it holds, and what that turns on, over seeds."""
    mine = [each for name, each in found.items() if name.rpartition(",")[0] == pair]
    judged = [each for each in mine if each.get("holds") is not None]
    if not judged:
        return ""
    held, first = sum(each["holds"] for each in judged), judged[0]["effect"]
    effects = (f"{name} {_range([each['effect'][name] for each in judged])}" for name in first)
    return f"{pair}: {held} of {len(judged)}; {', '.join(effects)}"


def _as_the_article(verdicts: Sequence[claims.Verdict]) -> dict[str, list[claims.Verdict]]:
    """By claim the verdicts with each of the optimizers that bear a name, last the one with those that it ran."""
    found: dict[str, list[claims.Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.id.partition(" (")[0], []).append(verdict)
    return found


def verdicts_table(verdicts: Sequence[claims.Verdict]) -> Table:
    """Each claim with its verdict, by pair in how many runs it holds and by how much, and who else fares otherwise.

    It is judged with the article's own Adadelta and L-BFGS, where they have run.
    """
    rows = []
    for claim, (*others, own) in _as_the_article(verdicts).items():
        pairs = dict.fromkeys(name.rpartition(",")[0] for name in own.runs)
        cells = [text for pair in pairs if (text := _of_pair(own.runs, pair))]
        differing = [f"{each.id} **{each.verdict}**" for each in others if each.verdict != own.verdict]
        rows.append([claim, own.claim, f"**{own.verdict}**", "<br>".join(cells), "<br>".join(differing)])
    return ["", "claim", "verdict", "by pair", "otherwise"], rows


def outcomes_table(verdicts: Sequence[claims.Verdict]) -> Table:
    """The claims by what came of them, with the optimizers that the article ran."""
    found: dict[str, list[str]] = {}
    for claim, (*_, own) in _as_the_article(verdicts).items():
        found.setdefault(own.verdict, []).append(f"{claim} {own.claim}")
    words = [word for word in ("holds", "mixed", "fails", "not applicable", "not testable") if word in found]
    rows = [[f"**{word}**", str(len(found[word])), "<br>".join(found[word])] for word in words]
    return ["", "claims", ""], rows


def readings_table(runs: Sequence[Run]) -> Table:
    """How verdicts move with the thresholds; those that no reading moves are left out."""
    found = {
        name: {claim: each[-1].verdict for claim, each in _as_the_article(judge_all(runs, by)).items()}
        for name, by in READINGS.items()
    }
    rows = []
    for claim, stated in found["as stated"].items():
        others = [found[name][claim] for name in READINGS]
        if len(set(others)) > 1:
            rows.append([claim, *(each if each == stated else f"**{each}**" for each in others)])
    return ["", *READINGS], rows


def _longest(runs: Iterable[Run]) -> list[Run]:
    """Of each label, pair and seed the run that went farthest: experiments share arms."""
    found: dict[tuple, Run] = {}
    for run in sorted(runs, key=lambda run: len(run.curve.total), reverse=True):
        found.setdefault((run.label, run.pair, run.seed), run)
    return list(found.values())


def losses_table(runs: Sequence[Run]) -> Table:
    """Loss in thousands by evaluations and pair, medians over seeds; bold within 5 % of the lowest of its column."""
    arms = [arm_of(run) for run in _longest(runs)]
    pairs = sorted({arm.pair for arm in arms})
    losses = {
        (budget, pair): found
        for budget in BUDGETS
        for pair in pairs
        if (found := median_losses([arm for arm in arms if arm.pair == pair], "evaluations", budget))
    }
    rows = []
    for label in sorted({arm.label for arm in arms}):
        cells = []
        for column in losses.values():
            loss = column.get(label)
            text = "" if loss is None else f"{loss / 1e3:.0f}"
            cells.append(f"**{text}**" if loss is not None and loss <= 1.05 * min(column.values()) else text)
        rows.append([f"`{title(label)}`", *cells])
    return ["evaluations, pair", *(f"{budget}, {pair}" for budget, pair in losses)], rows


def tables(runs: Sequence[Run]) -> dict[str, str]:
    """The tables of the page, in Markdown, by name; losses are those at 300 pixels, not those of experiment 2."""
    at_300 = [run for run in runs if run.experiment != "experiment2"]
    verdicts = judge_all(runs)
    return {
        "outcomes": markdown(outcomes_table(verdicts), "---"),
        "verdicts": markdown(verdicts_table(verdicts), "---"),
        "readings": markdown(readings_table(runs), "---"),
        "losses": markdown(losses_table(at_300)),
    }
