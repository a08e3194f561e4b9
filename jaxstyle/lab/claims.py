"""What the article of 2017 claims of its six experiments, as numbers that recorded curves have or do not have.

A claim is judged in every run of an experiment, a run being all curves of one pair and one seed. It holds where it
does so in two thirds of them, fails where it does so in at most a third, and is mixed between; a pair counts once,
however many seeds it has. It is not testable before the curves it speaks of have ended, nor on fewer than 20 steps,
nor where two arms of a run fit one name. It is not applicable where there is nothing to compare: a curve that does
not move is not steadier than another.

Where several bear a name of the article, Adadelta or L-BFGS, the claim is judged for each. What the words of the
claims mean is in `curves`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstyle.lab.curves import (
    STATED,
    Curve,
    Curves,
    Reading,
    about,
    by_evaluation,
    by_step,
    converges,
    converges_fast,
    cost,
    early,
    late,
    oscillates,
    overtakes,
    tenth,
    wobble,
)

ENOUGH = 2 / 3

#: Times a loss that the eye can tell from it on the article's plots.
NOTICEABLE = 1.05

#: Steps that a curve needs for the words to mean something.
LEAST_STEPS = 20

#: Optimizers that bear a name of the article.
VARIANTS = {"adadelta": ("adadelta", "adadelta-tf1gpu"), "lbfgs": ("lbfgs", "scipy-lbfgs")}

#: By what a curve is read: the loss after so many evaluations, or after so many steps.
CLOCKS: Mapping[str, Callable[[Curves], Curves]] = {"evaluation": by_evaluation, "step": by_step}


class Finding(NamedTuple):
    """Whether it is so, None where there is nothing to judge; the number or two that it turns on; and all numbers."""

    holds: bool | None
    effect: dict[str, float]
    numbers: dict[str, Any]


#: Curves of a run under the names of the claim, how its words are read, the runs of the other experiment.
Test = Callable[[Curves, Reading, Sequence[Curves]], Finding]


class Claim(NamedTuple):
    """`test` is given the curves under the names of `arms`, in that order: `NAME`, or `NAME RATE` where rates differ.

    A claim `against` another experiment is given in its last argument the curves of that one's runs, else none.
    """

    id: str
    text: str
    arms: tuple[str, ...]
    test: Test
    against: bool = False


class Verdict(NamedTuple):
    """`verdict`: holds, mixed, fails, not applicable or not testable; `runs` has what was found in each run."""

    id: str
    claim: str
    verdict: str
    held: int
    judged: int
    runs: dict[str, dict[str, Any]]


# --- tests: curves -> whether it is so, and the numbers -----------------------------------------------------------


def _late_losses(curves: Curves) -> dict[str, float]:
    return {name: late(curve) for name, curve in curves.items()}


def _early_and_late(curves: Curves) -> dict[str, dict[str, float]]:
    return {name: {"early": early(curve), "late": late(curve)} for name, curve in curves.items()}


def _each(word: Callable[[Curve, Reading], bool]) -> Test:
    """A word that is true of every curve; it turns on the curve that is farthest from it."""

    def test(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
        numbers = {
            name: {
                "start": float(curve.total[0]),
                "late": late(curve),
                "wobble": wobble(curve),
                word.__name__: word(curve, by),
            }
            for name, curve in curves.items()
        }
        wobbles = [found["wobble"] for found in numbers.values()]
        above = [late(curve) / curve.best for curve in curves.values()]
        effect = (
            {"least wobble": min(wobbles)}
            if word is oscillates
            else {"largest wobble": max(wobbles), "late over best known, at most": max(above)}
        )
        return Finding(all(found[word.__name__] for found in numbers.values()), effect, numbers)

    return test


def _about_the_same(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
    numbers = _late_losses(curves)
    a, b = numbers.values()
    return Finding(about(a, b, by), {"late, one over the other": max(a, b) / min(a, b)}, {"late": numbers})


def _overtakes(name: str, other: str) -> Test:
    def test(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
        numbers = _early_and_late({key: curves[key] for key in (name, other)})
        ratios = {
            f"{when} {name}/{other}": numbers[name][when] / numbers[other][when] for when in ("early", "late")
        }
        return Finding(overtakes(curves[name], curves[other]), ratios, numbers)

    return test


def _oscillates_throughout(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
    """In each quarter of the run but the first."""
    numbers = {
        name: [wobble(curve, quarter / 4, (quarter + 1) / 4) for quarter in (1, 2, 3)]
        for name, curve in curves.items()
    }
    least = min(map(min, numbers.values()))
    return Finding(least > by.wobble, {"least wobble of a quarter": least}, {"wobble by quarter": numbers})


def _comes_to_oscillate(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
    """In the last quarter of the run."""
    numbers = {name: wobble(curve, 0.75) for name, curve in curves.items()}
    least = min(numbers.values())
    return Finding(least > by.wobble, {"least wobble": least}, {"wobble of the last quarter": numbers})


def _and_before(
    word: str, number: Callable[[Curve], float], curves: Curves, before: Sequence[Curves]
) -> dict[str, dict[str, float]]:
    """A number of each curve, and its median over the runs of the other experiment."""
    return {
        name: {word: number(curve), f"{word} before": float(np.median([number(run[name]) for run in before]))}
        for name, curve in curves.items()
    }


def _steadier_than_before(curves: Curves, _: Reading, before: Sequence[Curves]) -> Finding:
    """Less wobble than the median over the runs of the other experiment; a curve with none in either says nothing."""
    numbers = _and_before("wobble", wobble, curves, before)
    moving = [found for found in numbers.values() if any(found.values())]
    if not moving:
        return Finding(None, {}, numbers)
    nearest = max(moving, key=lambda found: found["wobble"] - found["wobble before"])
    return Finding(all(found["wobble"] < found["wobble before"] for found in moving), nearest, numbers)


def _helped_by_size(curves: Curves, _: Reading, before: Sequence[Curves]) -> Finding:
    """A smaller part of the start loss is left than in the median run of the other experiment."""
    numbers = _and_before("late/start", lambda curve: late(curve) / float(curve.total[0]), curves, before)
    most = max(found["late/start"] / found["late/start before"] for found in numbers.values())
    return Finding(most < 1, {"part of the start left, over that before, at most": most}, numbers)


def _between(name: str, other: str, low: float, high: float) -> Test:
    """The late loss of one curve is between two parts of the other's."""

    def test(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
        ratio = {f"late {name}/{other}": late(curves[name]) / late(curves[other])}
        return Finding(low <= next(iter(ratio.values())) <= high, ratio, ratio)

    return test


def _gains_with_size(curves: Curves, _: Reading, before: Sequence[Curves]) -> Finding:
    """L-BFGS's late loss is a smaller part of Adam's than in the median run of the other experiment."""

    def ratio(run: Curves) -> float:
        return late(run["lbfgs"]) / late(run["adam"])

    numbers = {"late lbfgs/adam": ratio(curves), "before": float(np.median([*map(ratio, before)]))}
    return Finding(numbers["late lbfgs/adam"] < numbers["before"], numbers, numbers)


def _none_converges(curves: Curves, by: Reading, before: Sequence[Curves]) -> Finding:
    numbers = _each(converges)(curves, by, before).numbers
    above = min(late(curve) / curve.best for curve in curves.values())
    effect = {
        "least wobble": min(found["wobble"] for found in numbers.values()),
        "late over best known, at least": above,
    }
    return Finding(not any(found["converges"] for found in numbers.values()), effect, numbers)


def _ranked_early(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
    """No two curves that are not about the same after a tenth of the evaluations end so in the other order.

    Of one that diverged before the second row after its start the last row counts.
    """
    first = {name: float(curve.total[: 2 + tenth(curve)][-1]) for name, curve in curves.items()}
    end = _late_losses(curves)
    swapped = [
        f"{one}, {other}"
        for one, other in itertools.permutations(curves, 2)
        if by.same * first[one] < first[other] and by.same * end[other] < end[one]
    ]
    effect = {"pairs of arms in the other order": float(len(swapped))}
    return Finding(not swapped, effect, {"after a tenth": first, "late": end, "swapped": swapped})


def _sooner_than_adam(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
    """L-BFGS needs fewer evaluations for Adam's late loss than Adam does, which has it at its end at the latest."""
    loss = late(curves["adam"])
    numbers = {name: cost(curve, loss) for name, curve in curves.items()}
    last = {name: float(getattr(curves["adam"], name)[-1]) for name in numbers["adam"]}
    numbers["adam"] = {name: min(spent, last[name]) for name, spent in numbers["adam"].items()}
    ratio = numbers["lbfgs"]["evaluations"] / numbers["adam"]["evaluations"]
    return Finding(ratio < 1, {"evaluations lbfgs/adam": ratio}, {"loss": loss, **numbers})


_BETTER = ("adam", "adagrad", "lbfgs")


def _lower_than_the_others(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
    """Of pictures the curves know nothing but the loss: each of the three ends below each of the others."""
    numbers = _late_losses(curves)
    others = min(loss for name, loss in numbers.items() if name not in _BETTER)
    ratio = max(numbers[name] for name in _BETTER) / others
    return Finding(ratio < 1, {"late, the worst of the three over the best other": ratio}, {"late": numbers})


def _late_ratio(holds: Callable[[float, Reading], bool]) -> Test:
    """What `holds` says of the late loss of the first of two curves over that of the second."""

    def test(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
        numbers = _late_losses(curves)
        first, second = numbers.values()
        ratio = first / second
        return Finding(holds(ratio, by), {f"late {'/'.join(curves)}": ratio}, {"late": numbers})

    return test


_below = _late_ratio(lambda ratio, _: ratio < 1)
_about_or_below = _late_ratio(lambda ratio, by: ratio <= by.same)
_above = _late_ratio(lambda ratio, by: ratio > by.same)
_noticeably_above = _late_ratio(lambda ratio, _: ratio > NOTICEABLE)


def _leads_but_ends_no_better(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
    """Adam 10 has the lowest early loss of all, and another arm has a late loss as low."""
    numbers = _early_and_late(curves)
    own, others = numbers["adam 10"], [found for name, found in numbers.items() if name != "adam 10"]
    effect = {
        f"{when} adam 10/best other": own[when] / min(found[when] for found in others)
        for when in ("early", "late")
    }
    first, last = effect.values()
    return Finding(first < 1 <= last, effect, numbers)


def _slow_and_steady(curves: Curves, by: Reading, _: Sequence[Curves]) -> Finding:
    """Adam 1 wobbles by at most 0.01 after its first tenth, and its early loss is far from Adam 10's."""
    shake = wobble(curves["adam 1"], 0.1)
    numbers = {name: early(curve) for name, curve in curves.items()}
    ratio = numbers["adam 1"] / numbers["adam 10"]
    effect = {"early adam 1/adam 10": ratio, "wobble of adam 1": shake}
    return Finding(ratio >= by.same and shake <= 0.01, effect, {"early": numbers, "wobble of adam 1": shake})


def _catches_up(curves: Curves, by: Reading, before: Sequence[Curves]) -> Finding:
    """Adam 1 overtakes Adam 10, and its late loss comes about to that of L-BFGS, or below."""
    numbers = _early_and_late(curves)
    near = _about_or_below({name: curves[name] for name in ("adam 1", "lbfgs")}, by, before)
    ahead = _overtakes("adam 1", "adam 10")(curves, by, before)
    return Finding(bool(ahead.holds and near.holds), ahead.effect | near.effect, numbers)


def _never_passes(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
    """After the first tenth, Adam 1 is below L-BFGS in at most a twentieth of the evaluations, and not at the end."""
    adam, lbfgs = curves["adam 1"], curves["lbfgs"]
    rows = slice(1 + tenth(adam), min(len(adam.total), len(lbfgs.total)))
    below = adam.total[rows] < lbfgs.total[rows]
    share = float(np.mean(below)) if len(below) else 0.0
    numbers = _late_losses(curves)
    ratio = numbers["adam 1"] / numbers["lbfgs"]
    effect = {"late adam 1/lbfgs": ratio, "share of evaluations below": share}
    return Finding(
        share <= 0.05 and ratio >= 1, effect, {"late": numbers, "share of evaluations below": share}
    )


def _best_and_fastest(curves: Curves, _: Reading, __: Sequence[Curves]) -> Finding:
    """L-BFGS has the lowest late loss, and reaches the lowest of the others with the fewest evaluations."""
    numbers: dict[str, Any] = {name: {"late": late(curve)} for name, curve in curves.items()}
    others = [name for name in curves if name != "lbfgs"]
    goal = min(numbers[name]["late"] for name in others)
    for name, curve in curves.items():
        numbers[name] |= cost(curve, goal)
    first = min(others, key=lambda name: numbers[name]["late"])  # has it at its end at the latest
    fewest = min(float(curves[first].evaluations[-1]), *(numbers[name]["evaluations"] for name in others))
    own = numbers["lbfgs"]["evaluations"]
    effect = {
        "late lbfgs/best other": numbers["lbfgs"]["late"] / goal,
        "evaluations lbfgs/fewest other": own / fewest,
    }
    return Finding(
        numbers["lbfgs"]["late"] < goal and own < fewest, effect, {"loss to reach": goal, **numbers}
    )


# --- the claims ---------------------------------------------------------------------------------------------------

_WILD = ("gd", "adadelta", "rmsprop")
_ALL = ("gd", "adadelta", "adagrad", "adam", "rmsprop", "lbfgs")
_ALL_SMALLER = ("gd", "adadelta", "adagrad", "adam 10", "adam 1", "rmsprop", "lbfgs")


def _overall(number: int, arms: tuple[str, ...]) -> Claim:
    return Claim(f"{number}-best", "L-BFGS is the best and the fastest", arms, _best_and_fastest)


EXPERIMENTS: dict[str, tuple[Claim, ...]] = {
    "experiment1": (
        Claim(
            "1a",
            "at so large a rate GD, Adadelta and RMSProp oscillate and show no clear convergence",
            _WILD,
            _each(oscillates),
        ),
        Claim("1a-1", "GD, Adadelta and RMSProp show no clear convergence", _WILD, _none_converges),
        Claim("1b", "Adam and L-BFGS converge fast", ("adam", "lbfgs"), _each(converges_fast)),
        Claim("1c", "Adam and L-BFGS come to about the same loss", ("adam", "lbfgs"), _about_the_same),
        _overall(1, _ALL),
    ),
    "experiment2": (
        Claim(
            "2a",
            "GD and Adadelta are steadier than in experiment 1",
            ("gd", "adadelta"),
            _steadier_than_before,
            against=True,
        ),
        Claim("2b", "RMSProp still oscillates", ("rmsprop",), _each(oscillates)),
        Claim(
            "2c",
            "Adam leads at first and L-BFGS overtakes it",
            ("adam", "lbfgs"),
            _overtakes("lbfgs", "adam"),
        ),
        Claim(
            "2-size", "larger images help GD and Adadelta", ("gd", "adadelta"), _helped_by_size, against=True
        ),
        Claim(
            "2-gain",
            "L-BFGS gains on Adam with the number of parameters",
            ("adam", "lbfgs"),
            _gains_with_size,
            against=True,
        ),
        _overall(2, _ALL),
    ),
    "experiment3": (
        Claim("3a", "GD, Adadelta and RMSProp oscillate throughout", _WILD, _oscillates_throughout),
        Claim("3b", "Adam, Adagrad and L-BFGS converge", _BETTER, _each(converges)),
        Claim(
            "3c", "L-BFGS ends about 50 % below Adam", ("adam", "lbfgs"), _between("lbfgs", "adam", 0.4, 0.6)
        ),
        Claim(
            "3c-1",
            "Adam ends about 50 % above L-BFGS",
            ("adam", "lbfgs"),
            _between("adam", "lbfgs", 1.4, 1.6),
        ),
        Claim("3d", "L-BFGS gets to Adam's loss sooner", ("adam", "lbfgs"), _sooner_than_adam),
        Claim(
            "3e",
            "the pictures of Adam, Adagrad and L-BFGS are the better ones (as far as the loss tells)",
            _ALL,
            _lower_than_the_others,
        ),
        Claim("3-rank", "100 of 1000 steps rank the optimizers", _ALL, _ranked_early),
        _overall(3, _ALL),
    ),
    "experiment4": (
        Claim("4a", "all converge", _ALL_SMALLER, _each(converges)),
        Claim("4b", "GD ends below Adadelta", ("gd", "adadelta"), _below),
        Claim("4c", "Adam 10 leads early but ends no better", _ALL_SMALLER, _leads_but_ends_no_better),
        Claim(
            "4c-1",
            "Adam 10 leads Adam 1 early but ends no better than it",
            ("adam 10", "adam 1"),
            _leads_but_ends_no_better,
        ),
        Claim("4d", "Adam 1 is slow and steady", ("adam 10", "adam 1"), _slow_and_steady),
        _overall(4, _ALL_SMALLER),
    ),
    "experiment5": (
        Claim("5a", "even so GD, Adadelta and RMSProp come to oscillate", _WILD, _comes_to_oscillate),
        Claim(
            "5b",
            "Adam 1 overtakes Adam 10 and draws near L-BFGS",
            ("adam 10", "adam 1", "lbfgs"),
            _catches_up,
        ),
        Claim("5b-1", "Adam 1 overtakes Adam 10", ("adam 10", "adam 1"), _overtakes("adam 1", "adam 10")),
        Claim("5b-2", "Adam 1 draws near L-BFGS", ("adam 1", "lbfgs"), _about_or_below),
        Claim("5-rate", "a smaller rate helps Adam much", ("adam 10", "adam 1"), _above),
        Claim("5-rate-1", "a smaller rate helps Adam noticeably", ("adam 10", "adam 1"), _noticeably_above),
        _overall(5, _ALL_SMALLER),
    ),
    "experiment6": (
        Claim("6a", "Adam 1 does not pass L-BFGS", ("adam 1", "lbfgs"), _never_passes),
        Claim("6b", "Adam 1 becomes almost L-BFGS", ("adam 1", "lbfgs"), _about_or_below),
        _overall(6, ("adam 1", "lbfgs")),
    ),
}


# --- judging ------------------------------------------------------------------------------------------------------


def _fitting(
    curves: Sequence[Curve], arms: Sequence[str], variant: Mapping[str, str]
) -> dict[str, list[Curve]]:
    """Under the names of a claim, the curves that have ended and fit."""

    def fits(curve: Curve, name: str, rate: str) -> bool:
        ended = curve.status == "diverged" or (curve.status == "finished" and len(curve.total) > LEAST_STEPS)
        named = curve.optimizer == variant.get(name, name)
        return ended and named and (not rate or curve.learning_rate == float(rate))

    parted = {arm: arm.partition(" ")[::2] for arm in arms}
    return {arm: [curve for curve in curves if fits(curve, *parts)] for arm, parts in parted.items()}


def _pick(
    curves: Sequence[Curve], arms: Sequence[str], variant: Mapping[str, str], clock: str
) -> Curves | None:
    """The one curve under each name of a claim, by a clock; None if there is none or more than one."""
    fitting = _fitting(curves, arms, variant)
    if any(len(found) != 1 for found in fitting.values()):
        return None
    best = min(float(np.min(curve.total)) for curve in curves if len(curve.total))
    return CLOCKS[clock]({arm: curve._replace(best=best) for arm, (curve,) in fitting.items()})


def judge(
    experiment: str,
    runs: Mapping[str, Sequence[Curve]],
    against: Sequence[Sequence[Curve]] = (),
    by: Reading = STATED,
) -> list[Verdict]:
    """The verdicts on the claims of an experiment.

    Args:
      experiment: one of `EXPERIMENTS`.
      runs: what to call a run -> the curves of one pair and one seed.
      against: the runs of the experiment that claims compare this one with.
      by: how the words of the claims are read.
    """
    present = {curve.optimizer for curves in runs.values() for curve in curves}
    verdicts = []
    for claim in EXPERIMENTS[experiment]:
        families = {
            arm: [name for name in VARIANTS[arm] if name in present] or [arm]
            for arm in claim.arms
            if arm in VARIANTS
        }
        for names in itertools.product(*families.values()):
            variant = dict(zip(families, names, strict=True))
            others = [name for family, name in variant.items() if name != family]
            title = f"{claim.id} ({', '.join(others)})" if others else claim.id
            verdicts.append(_judge(claim._replace(id=title), variant, runs, against, by))
    return verdicts


def _judge(
    claim: Claim,
    variant: Mapping[str, str],
    runs: Mapping[str, Sequence[Curve]],
    against: Sequence[Sequence[Curve]],
    by: Reading,
) -> Verdict:
    before = [found for curves in against if (found := _pick(curves, claim.arms, variant, by.clock))]
    findings: dict[str, dict[str, Any]] = {}
    for name, curves in runs.items():
        twice = [arm for arm, found in _fitting(curves, claim.arms, variant).items() if len(found) > 1]
        if twice:
            findings[name] = {"not testable": f"two arms fit {', '.join(twice)}"}
        elif (found := _pick(curves, claim.arms, variant, by.clock)) and (before or not claim.against):
            holds, effect, numbers = claim.test(found, by, before)
            findings[name] = {"holds": holds if holds is None else bool(holds), "effect": effect, **numbers}
    return verdict_of(claim.id, claim.text, findings)


def verdict_of(name: str, claim: str, runs: dict[str, dict[str, Any]]) -> Verdict:
    """What findings in runs come to. A pair of pictures counts once, however many seeds it has."""
    judged: dict[str, list[bool]] = {}
    for run, found in runs.items():
        if found.get("holds") is not None:
            judged.setdefault(run.partition(", seed ")[0], []).append(found["holds"])
    applies = judged or not any("holds" in found for found in runs.values())
    verdict = _verdict([sum(each) / len(each) for each in judged.values()]) if applies else "not applicable"
    every = [holds for each in judged.values() for holds in each]
    return Verdict(name, claim, verdict, sum(every), len(every), runs)


def _verdict(shares: Sequence[float]) -> str:
    """By the mean over pairs of the share of runs that have it, less what its rounding may come to."""
    if not shares:
        return "not testable"
    share, rounding = sum(shares) / len(shares), 1e-9
    if share >= ENOUGH - rounding:
        return "holds"
    return "fails" if share <= 1 - ENOUGH + rounding else "mixed"
