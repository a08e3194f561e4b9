"""What the article of 2017 claims of its six experiments, as numbers that recorded curves have or do not have.

A claim is judged in every run of an experiment, a run being all curves of one pair and one seed. It holds where it
does so in two thirds of them, fails where it does so in at most a third, and is mixed between. It is not testable
before the curves it speaks of have ended, nor on fewer than 20 steps, nor where two arms of a run fit one name. It is
not applicable where there is nothing to compare: a curve that does not move is not steadier than another.

Where several bear a name of the article, Adadelta or L-BFGS, the claim is judged for each. What the words of the
claims mean is in `curves`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstyle.lab.curves import (
    SAME,
    WOBBLE,
    Curve,
    Curves,
    about,
    by_evaluation,
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


#: Whether it is so, None where there is nothing to judge, and the numbers.
Finding = tuple[bool | None, dict[str, Any]]


class Claim(NamedTuple):
    """`test` is given the curves under the names of `arms`: `NAME`, or `NAME RATE` where rates differ.

    A claim `against` another experiment is given in its second argument the curves of that one's runs.
    """

    id: str
    text: str
    arms: tuple[str, ...]
    test: Callable[..., Finding]
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


def _each(word: Callable[[Curve], bool], *names: str) -> Callable[[Curves], Finding]:
    """A word that is true of every curve."""

    def test(curves: Curves) -> Finding:
        numbers = {
            name: {
                "start": float(curves[name].total[0]),
                "late": late(curves[name]),
                "wobble": wobble(curves[name]),
                word.__name__: word(curves[name]),
            }
            for name in names
        }
        return all(found[word.__name__] for found in numbers.values()), numbers

    return test


def _about_the_same(curves: Curves) -> Finding:
    numbers = {name: late(curve) for name, curve in curves.items()}
    return about(*numbers.values()), {"late": numbers}


def _overtakes(name: str, other: str) -> Callable[[Curves], Finding]:
    def test(curves: Curves) -> Finding:
        numbers = {key: {"early": early(curves[key]), "late": late(curves[key])} for key in (name, other)}
        return overtakes(curves[name], curves[other]), numbers

    return test


def _oscillates_throughout(curves: Curves) -> Finding:
    """In each quarter of the run but the first."""
    numbers = {
        name: [wobble(curve, quarter / 4, (quarter + 1) / 4) for quarter in (1, 2, 3)]
        for name, curve in curves.items()
    }
    return all(min(quarters) > WOBBLE for quarters in numbers.values()), {"wobble by quarter": numbers}


def _comes_to_oscillate(curves: Curves) -> Finding:
    """In the last quarter of the run."""
    numbers = {name: wobble(curve, 0.75) for name, curve in curves.items()}
    return min(numbers.values()) > WOBBLE, {"wobble of the last quarter": numbers}


def _steadier_than_before(curves: Curves, before: Sequence[Curves]) -> Finding:
    """Less wobble than the median over the runs of the other experiment; a curve with none in either says nothing."""
    numbers = {
        name: {
            "wobble": wobble(curve),
            "wobble before": float(np.median([wobble(run[name]) for run in before])),
        }
        for name, curve in curves.items()
    }
    moving = [found for found in numbers.values() if any(found.values())]
    return all(found["wobble"] < found["wobble before"] for found in moving) if moving else None, numbers


def _helped_by_size(curves: Curves, before: Sequence[Curves]) -> Finding:
    """A smaller part of the start loss is left than in the median run of the other experiment."""

    def left(curve: Curve) -> float:
        return late(curve) / float(curve.total[0])

    numbers = {
        name: {
            "late/start": left(curve),
            "late/start before": float(np.median([left(run[name]) for run in before])),
        }
        for name, curve in curves.items()
    }
    return all(found["late/start"] < found["late/start before"] for found in numbers.values()), numbers


def _half_of_adam(curves: Curves) -> Finding:
    ratio = late(curves["lbfgs"]) / late(curves["adam"])
    return 0.4 <= ratio <= 0.6, {"late lbfgs / late adam": ratio}


def _half_above_lbfgs(curves: Curves) -> Finding:
    """The other reading of "about 50 %": what Adam is above L-BFGS, not what L-BFGS is below Adam."""
    ratio = late(curves["adam"]) / late(curves["lbfgs"])
    return 1.4 <= ratio <= 1.6, {"late adam / late lbfgs": ratio}


def _gains_with_size(curves: Curves, before: Sequence[Curves]) -> Finding:
    """L-BFGS's late loss is a smaller part of Adam's than in the median run of the other experiment."""

    def ratio(run: Curves) -> float:
        return late(run["lbfgs"]) / late(run["adam"])

    numbers = {"late lbfgs / late adam": ratio(curves), "before": float(np.median([*map(ratio, before)]))}
    return numbers["late lbfgs / late adam"] < numbers["before"], numbers


def _none_converges(curves: Curves) -> Finding:
    _, numbers = _each(converges, *curves)(curves)
    return not any(found["converges"] for found in numbers.values()), numbers


def _ranked_early(curves: Curves) -> Finding:
    """No two curves that differ by a factor of 1.25 after a tenth of the evaluations end so in the other order."""
    at = {name: float(curve.total[1 + tenth(curve)]) for name, curve in curves.items()}
    end = {name: late(curve) for name, curve in curves.items()}
    swapped = [
        f"{one}, {other}"
        for one, other in itertools.permutations(curves, 2)
        if SAME * at[one] < at[other] and SAME * end[other] < end[one]
    ]
    return not swapped, {"after a tenth": at, "late": end, "swapped": swapped}


def _sooner_than_adam(curves: Curves) -> Finding:
    """L-BFGS needs fewer evaluations for Adam's late loss than Adam does, which has it at its end at the latest."""
    loss = late(curves["adam"])
    numbers = {name: cost(curve, loss) for name, curve in curves.items()}
    last = {name: float(getattr(curves["adam"], name)[-1]) for name in numbers["adam"]}
    numbers["adam"] = {name: min(spent, last[name]) for name, spent in numbers["adam"].items()}
    sooner = numbers["lbfgs"]["evaluations"] < numbers["adam"]["evaluations"]
    return sooner, {"loss": loss, **numbers}


_BETTER = ("adam", "adagrad", "lbfgs")


def _lower_than_the_others(curves: Curves) -> Finding:
    """Of pictures the curves know nothing but the loss: each of the three ends below each of the others."""
    numbers = {name: late(curve) for name, curve in curves.items()}
    others = min(loss for name, loss in numbers.items() if name not in _BETTER)
    return max(numbers[name] for name in _BETTER) < others, {"late": numbers}


def _below(name: str, other: str) -> Callable[[Curves], Finding]:
    def test(curves: Curves) -> Finding:
        numbers = {key: late(curves[key]) for key in (name, other)}
        return numbers[name] < numbers[other], {"late": numbers}

    return test


def _leads_but_ends_no_better(curves: Curves) -> Finding:
    """Adam 10 has the lowest early loss of all, and another arm has a late loss as low."""
    numbers = {name: {"early": early(curve), "late": late(curve)} for name, curve in curves.items()}
    adam = numbers["adam 10"]
    others = [found for name, found in numbers.items() if name != "adam 10"]
    leads = adam["early"] < min(found["early"] for found in others)
    return leads and adam["late"] >= min(found["late"] for found in others), numbers


def _leads_its_smaller_rate(curves: Curves) -> Finding:
    """Adam 10 has the lower early loss of the two Adams, and not the lower late loss."""
    numbers = {name: {"early": early(curve), "late": late(curve)} for name, curve in curves.items()}
    large, small = numbers["adam 10"], numbers["adam 1"]
    return large["early"] < small["early"] and large["late"] >= small["late"], numbers


def _slow_and_steady(curves: Curves) -> Finding:
    """Adam 1 wobbles by at most 0.01 after its first tenth, and its early loss is 1.25 times Adam 10's or more."""
    shake = wobble(curves["adam 1"], 0.1)
    numbers = {name: early(curve) for name, curve in curves.items()}
    slow = numbers["adam 1"] >= SAME * numbers["adam 10"]
    return slow and shake <= 0.01, {"early": numbers, "wobble of adam 1": shake}


def _catches_up(curves: Curves) -> Finding:
    """Adam 1 overtakes Adam 10, and its late loss comes about to that of L-BFGS, or below."""
    numbers = {name: {"early": early(curve), "late": late(curve)} for name, curve in curves.items()}
    near = late(curves["adam 1"]) <= SAME * late(curves["lbfgs"])
    return overtakes(curves["adam 1"], curves["adam 10"]) and near, numbers


def _about_lbfgs(curves: Curves) -> Finding:
    """The late loss of Adam 1 comes about to that of L-BFGS, or below."""
    numbers = {name: late(curve) for name, curve in curves.items()}
    return numbers["adam 1"] <= SAME * numbers["lbfgs"], {"late": numbers}


def _never_passes(curves: Curves) -> Finding:
    """After the first tenth, Adam 1 is below L-BFGS in at most a twentieth of the evaluations, and not at the end."""
    adam, lbfgs = curves["adam 1"], curves["lbfgs"]
    rows = slice(1 + tenth(adam), min(len(adam.total), len(lbfgs.total)))
    below = adam.total[rows] < lbfgs.total[rows]
    share = float(np.mean(below)) if len(below) else 0.0
    numbers = {
        "late": {name: late(curve) for name, curve in curves.items()},
        "share of evaluations below": share,
    }
    return share <= 0.05 and late(adam) >= late(lbfgs), numbers


def _better_by(factor: float) -> Callable[[Curves], Finding]:
    """The late loss of Adam 1 is below that of Adam 10 by more than a factor."""

    def test(curves: Curves) -> Finding:
        numbers = {name: late(curve) for name, curve in curves.items()}
        return factor * numbers["adam 1"] < numbers["adam 10"], {"late": numbers}

    return test


def _best_and_fastest(curves: Curves) -> Finding:
    """L-BFGS has the lowest late loss, and reaches the lowest of the others with the fewest evaluations."""
    numbers: dict[str, Any] = {name: {"late": late(curve)} for name, curve in curves.items()}
    others = [name for name in curves if name != "lbfgs"]
    goal = min(numbers[name]["late"] for name in others)
    for name, curve in curves.items():
        numbers[name] |= cost(curve, goal)
    best = numbers["lbfgs"]["late"] < goal
    fastest = numbers["lbfgs"]["evaluations"] < min(numbers[name]["evaluations"] for name in others)
    return best and fastest, {"loss to reach": goal, **numbers}


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
            _each(oscillates, *_WILD),
        ),
        Claim("1a-1", "GD, Adadelta and RMSProp show no clear convergence", _WILD, _none_converges),
        Claim(
            "1b",
            "Adam and L-BFGS converge fast",
            ("adam", "lbfgs"),
            _each(converges_fast, "adam", "lbfgs"),
        ),
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
        Claim("2b", "RMSProp still oscillates", ("rmsprop",), _each(oscillates, "rmsprop")),
        Claim(
            "2c",
            "Adam leads at first and L-BFGS overtakes it",
            ("adam", "lbfgs"),
            _overtakes("lbfgs", "adam"),
        ),
        Claim(
            "2-size",
            "larger images help GD and Adadelta",
            ("gd", "adadelta"),
            _helped_by_size,
            against=True,
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
        Claim("3b", "Adam, Adagrad and L-BFGS converge", _BETTER, _each(converges, *_BETTER)),
        Claim("3c", "L-BFGS ends about 50 % below Adam", ("adam", "lbfgs"), _half_of_adam),
        Claim("3c-1", "Adam ends about 50 % above L-BFGS", ("adam", "lbfgs"), _half_above_lbfgs),
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
        Claim("4a", "all converge", _ALL_SMALLER, _each(converges, *_ALL_SMALLER)),
        Claim("4b", "GD ends below Adadelta", ("gd", "adadelta"), _below("gd", "adadelta")),
        Claim("4c", "Adam 10 leads early but ends no better", _ALL_SMALLER, _leads_but_ends_no_better),
        Claim(
            "4c-1",
            "Adam 10 leads Adam 1 early but ends no better than it",
            ("adam 10", "adam 1"),
            _leads_its_smaller_rate,
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
        Claim("5b-2", "Adam 1 draws near L-BFGS", ("adam 1", "lbfgs"), _about_lbfgs),
        Claim("5-rate", "a smaller rate helps Adam much", ("adam 10", "adam 1"), _better_by(SAME)),
        Claim(
            "5-rate-1",
            "a smaller rate helps Adam noticeably",
            ("adam 10", "adam 1"),
            _better_by(NOTICEABLE),
        ),
        _overall(5, _ALL_SMALLER),
    ),
    "experiment6": (
        Claim("6a", "Adam 1 does not pass L-BFGS", ("adam 1", "lbfgs"), _never_passes),
        Claim("6b", "Adam 1 becomes almost L-BFGS", ("adam 1", "lbfgs"), _about_lbfgs),
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


def _pick(curves: Sequence[Curve], arms: Sequence[str], variant: Mapping[str, str]) -> Curves | None:
    """The one curve under each name of a claim, by evaluation; None if there is none or more than one."""
    fitting = _fitting(curves, arms, variant)
    if any(len(found) != 1 for found in fitting.values()):
        return None
    best = min(float(np.min(curve.total)) for curve in curves if len(curve.total))
    return by_evaluation({arm: curve._replace(best=best) for arm, (curve,) in fitting.items()})


def judge(
    experiment: str,
    runs: Mapping[str, Sequence[Curve]],
    against: Sequence[Sequence[Curve]] = (),
) -> list[Verdict]:
    """The verdicts on the claims of an experiment.

    Args:
      experiment: one of `EXPERIMENTS`.
      runs: what to call a run -> the curves of one pair and one seed.
      against: the runs of the experiment that claims compare this one with.
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
            verdicts.append(_judge(claim._replace(id=title), variant, runs, against))
    return verdicts


def _judge(
    claim: Claim,
    variant: Mapping[str, str],
    runs: Mapping[str, Sequence[Curve]],
    against: Sequence[Sequence[Curve]],
) -> Verdict:
    before = [found for curves in against if (found := _pick(curves, claim.arms, variant))]
    findings: dict[str, dict[str, Any]] = {}
    for name, curves in runs.items():
        twice = [arm for arm, found in _fitting(curves, claim.arms, variant).items() if len(found) > 1]
        if twice:
            findings[name] = {"not testable": f"two arms fit {', '.join(twice)}"}
        elif (found := _pick(curves, claim.arms, variant)) and (before or not claim.against):
            holds, numbers = claim.test(found, before) if claim.against else claim.test(found)
            findings[name] = {"holds": holds if holds is None else bool(holds), **numbers}
    judged = [finding["holds"] for finding in findings.values() if finding.get("holds") is not None]
    applies = not any("holds" in finding for finding in findings.values()) or bool(judged)
    return Verdict(
        claim.id,
        claim.text,
        _verdict(judged) if applies else "not applicable",
        sum(judged),
        len(judged),
        findings,
    )


def _verdict(judged: Sequence[bool]) -> str:
    if not judged:
        return "not testable"
    if sum(judged) >= ENOUGH * len(judged):
        return "holds"
    return "fails" if sum(judged) <= (1 - ENOUGH) * len(judged) else "mixed"
