"""Curves of loss, and the words that claims about them are made of, each a number or a yes.

The article plots losses against time, and an evaluation of loss and gradient is what takes time. So the words are
about L, the total loss by evaluation: at n it is that of the last iterate that n evaluations had paid for. Curves
that are compared have as many evaluations as the shortest of them; one that converged early stands where it is.

- the *early* loss is the geometric mean of L over the first tenth of the evaluations, the start left out; the
  *late* loss that over the last tenth. A single lucky or unlucky step moves neither much.
- the *wobble* of some evaluations is the mean of min(1, L/B − 1), where B is the lowest of the last 50 losses up to
  each: how far above its own best a curve usually is. A falling curve has 0; a sawtooth of relative height h has
  about h/2; noise has the same, however long the run.
- a curve *oscillates* where its wobble is above 0.1, looked at from the middle of the run to the end.
- it *converges* if it does not oscillate, its late loss is at most half of the loss of the start image, and at most
  three times the lowest loss that any arm of the same run has.
- it *converges fast* if moreover a third of the evaluations takes it below a quarter of the loss of the start image.
- the *cost* of a loss is what was spent when the median of 11 losses, 5 before and 5 after, came to it for good.
- *about the same* is within a factor of 1.25.
- one curve *overtakes* another if its early loss is the higher one and its late loss the lower one.

A curve that diverged oscillates, does not converge, and has an infinite late loss.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage


class Reading(NamedTuple):
    """How the words are read: the wobble from which a curve oscillates, the factor of what is about the same, and
    whether a curve is its losses after so many evaluations or after so many steps (`clock`: evaluation or step)."""

    wobble: float = 0.1
    same: float = 1.25
    clock: str = "evaluation"


#: As they are stated above.
STATED = Reading()

#: Evaluations that the best of a wobble is the best of; so it does not grow with the length of a run.
RECENT = 50

#: Losses of a running median: a noisy curve has the cost of its middle, not of its luckiest evaluation.
MEDIAN = 11

#: Times the lowest loss known of a run, up to which a curve can have converged.
NEAR = 3.0


class Curve(NamedTuple):
    """What a run recorded of one arm: a row for each step from 0, or each evaluation from 1; fewer if it diverged.

    `best` is the lowest loss that is known of its pictures and start.
    """

    optimizer: str
    learning_rate: float | None
    status: str
    evaluations: Float[np.ndarray, " rows"]
    seconds: Float[np.ndarray, " rows"]
    total: Float[np.ndarray, " rows"]
    best: float = math.inf

    def first(self, rows: int) -> "Curve":
        """Its first rows."""
        columns = ("evaluations", "seconds", "total")
        return self._replace(**{name: getattr(self, name)[:rows] for name in columns})


Curves = Mapping[str, Curve]


def stands(curve: Curve) -> bool:
    """Whether it converged before its steps were over: the last ones repeat its row, and cost nothing."""
    spent = curve.evaluations
    return curve.status == "finished" and len(spent) > 1 and bool(spent[-1] == spent[-2])


def by_evaluation(curves: Curves) -> Curves:
    """The curves with a row for each evaluation, as many as the shortest of those that go on has.

    One that stands still has its last loss from then on; one that diverged keeps its own end.
    """
    ended = [curve for curve in curves.values() if curve.status != "diverged"]
    going = [curve.evaluations[-1] for curve in ended if not stands(curve)]
    end = min(going) if going else max((curve.evaluations[-1] for curve in ended), default=math.inf)
    found = {}
    for name, curve in curves.items():
        own = math.inf if stands(curve) else curve.evaluations[-1]
        spent = np.arange(1.0, min(end, own) + 1)
        last = np.searchsorted(curve.evaluations, spent, side="right") - 1
        found[name] = curve._replace(evaluations=spent, seconds=curve.seconds[last], total=curve.total[last])
    return found


def by_step(curves: Curves) -> Curves:
    """The curves by iteration, whatever an iteration costs."""
    return {
        name: curve._replace(evaluations=np.arange(1.0, len(curve.total) + 1))
        for name, curve in curves.items()
    }


def geometric_mean(values: Sequence[float]) -> float:
    """Infinite where one of the values is no number."""
    return float(np.exp(np.mean(np.log(values)))) if np.all(np.isfinite(values)) else math.inf


def tenth(curve: Curve) -> int:
    """Rows in a tenth of the curve, the start left out; at least one."""
    return max(1, (len(curve.total) - 1) // 10)


def early(curve: Curve) -> float:
    """Geometric mean of the loss over the first tenth of the curve, the start left out."""
    return geometric_mean(curve.total[1 : 1 + tenth(curve)]) if len(curve.total) > 1 else math.inf


def late(curve: Curve) -> float:
    """Geometric mean of the loss over the last tenth of the curve; infinite where it diverged."""
    return math.inf if curve.status == "diverged" else geometric_mean(curve.total[-tenth(curve) :])


def wobble(curve: Curve, begin: float = 0.5, end: float = 1.0) -> float:
    """How far the loss usually is above its recent best, between two fractions of the run; 1 where it diverged."""
    if curve.status == "diverged":
        return 1.0
    padded = np.concatenate([np.full(RECENT - 1, np.inf), curve.total])
    best = np.lib.stride_tricks.sliding_window_view(padded, RECENT).min(-1)
    above = np.minimum(1, curve.total / best - 1)
    steps = len(above) - 1
    return float(np.mean(above[1 + int(begin * steps) : 1 + int(end * steps)]))


def oscillates(curve: Curve, by: Reading = STATED) -> bool:
    return wobble(curve) > by.wobble


def converges(curve: Curve, by: Reading = STATED) -> bool:
    return not oscillates(curve, by) and late(curve) <= min(curve.total[0] / 2, NEAR * curve.best)


def converges_fast(curve: Curve, by: Reading = STATED) -> bool:
    third = curve.total[: 1 + len(curve.total) // 3]
    return converges(curve, by) and bool(third.min() <= curve.total[0] / 4)


def overtakes(curve: Curve, other: Curve) -> bool:
    return early(curve) > early(other) and late(curve) < late(other)


def about(a: float, b: float, by: Reading = STATED) -> bool:
    """Whether two losses are about the same."""
    return math.isfinite(a) and math.isfinite(b) and max(a, b) <= by.same * min(a, b)


def cost(curve: Curve, loss: float) -> dict[str, float]:
    """Evaluations and seconds after which the running median is at most that loss to the end; infinite if never."""
    above = np.flatnonzero(ndimage.median_filter(curve.total, MEDIAN, mode="nearest") > loss)
    first = above[-1] + 1 if len(above) else 0
    if first == len(curve.total):
        return {"evaluations": math.inf, "seconds": math.inf}
    return {name: float(getattr(curve, name)[first]) for name in ("evaluations", "seconds")}
