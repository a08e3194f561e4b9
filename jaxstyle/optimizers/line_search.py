"""A line search that evaluates the objective in one place, so that its program is compiled once.

Bisection and interpolation for the weak Wolfe conditions: Lewis and Overton, "Nonsmooth optimization via
quasi-Newton methods", 2013, algorithm 2.6. It needs no smoothness, and total variation is not smooth. Where the
decrease drowns in float32's rounding, the approximate condition of Hager and Zhang 2005, equation 4.1, stands in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from jaxstyle.optimizers.base import Image, Iterate, Scalar, Visit, inner, is_unseen

#: Relative rounding error of a float32 total: sums of some 1e6 squares, in pairs.
ROUNDING = 1e-6


class Bracket(NamedTuple):
    """Step sizes between which one satisfies the Wolfe conditions: `low` decreases enough, `high` does not."""

    low: Scalar
    low_total: Scalar
    low_slope: Scalar
    high: Scalar


class Search(NamedTuple):
    """What a line search found.

    `accepted` tells whether the conditions hold at `iterate`. Where they do not, `iterate` is the best one that
    was tried, or the one that the search began from if none was better. `trial` is the step size to try next.
    """

    iterate: Iterate
    stepsize: Scalar
    evaluations: Int[Array, ""]
    accepted: Bool[Array, ""]
    bracket: Bracket
    trial: Scalar


class Conditions(NamedTuple):
    """The Wolfe conditions: φ(t) ≤ φ(0) + c₁ t φ'(0) and φ'(t) ≥ c₂ φ'(0); strong: φ'(t) ≤ -c₂ φ'(0) as well.

    `sufficient_decrease` is c₁, in (0, 1/2), and `curvature` c₂, in (c₁, 1).
    """

    sufficient_decrease: Scalar | float
    curvature: Scalar | float
    strong: bool = False


class Trial(NamedTuple):
    """The objective at a step size: φ(t) is its iterate's total.

    Where `visit` moved pixels, both slopes are those along the direction without them.
    """

    t: Scalar
    iterate: Iterate
    slope_0: Scalar
    slope_t: Scalar


def attempt(visit: Visit, start: Iterate, direction: Image, t: Scalar) -> Trial:
    """Evaluates the objective once, at a step size."""
    image = start.image + t * direction
    iterate = visit(image)
    free = direction if visit.free is None else visit.free(image, iterate, direction)
    slope_0 = jnp.minimum(inner(start.evaluation.gradient, free), 0)
    return Trial(t, iterate, slope_0, inner(iterate.evaluation.gradient, free))


def judge(
    trial: Trial, total: Scalar, conditions: Conditions
) -> tuple[Bool[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
    """Whether a trial is finite, whether it has decreased `total` = φ(0) enough, and whether it is accepted."""
    found, c1 = trial.iterate.evaluation.total, conditions.sufficient_decrease
    decrease = found <= total + c1 * trial.t * trial.slope_0
    flat = (found <= total + ROUNDING * jnp.abs(total)) & (trial.slope_t <= (2 * c1 - 1) * trial.slope_0)
    finite = jnp.isfinite(found) & jnp.isfinite(trial.slope_t)
    low_enough = finite & (decrease | flat)
    if conditions.strong:
        # Where φ rises steeply, what is sought lies before.
        drowned = jnp.abs(found - total) <= ROUNDING * jnp.abs(total)
        low_enough &= drowned | (trial.slope_t <= -conditions.curvature * trial.slope_0)
    return finite, low_enough, low_enough & (trial.slope_t >= conditions.curvature * trial.slope_0)


def narrow(
    bracket: Bracket, trial: Trial, finite: Bool[Array, ""], low_enough: Bool[Array, ""]
) -> tuple[Bracket, Scalar]:
    """The bracket with an end at the trial, and the step size to try next."""
    total = trial.iterate.evaluation.total
    new = (trial.t, total, trial.slope_t)
    low, low_total, low_slope = (
        jnp.where(low_enough, here, there) for here, there in zip(new, bracket[:3], strict=True)
    )
    high = jnp.where(low_enough, bracket.high, trial.t)
    bracketed = jnp.isfinite(high)
    width = jnp.where(bracketed, high - low, 0.0)
    # Minimum of the parabola through φ(low), φ'(low) and the trial that was too high.
    bend = total - low_total - low_slope * width
    parabola = -low_slope * width**2 / (2 * jnp.where(bend > 0, bend, jnp.inf))
    inside = low + jnp.clip(parabola, 0.1 * width, 0.5 * width)
    halfway = low + 0.5 * width
    interpolated = jnp.where(low_enough | ~finite, halfway, inside)
    return Bracket(low, low_total, low_slope, high), jnp.where(bracketed, interpolated, 4 * trial.t)


def wolfe(
    visit: Visit,
    start: Iterate,
    direction: Image,
    first_trial: Scalar,
    conditions: Conditions,
    max_evaluations: int,
) -> Search:
    """A step along `direction` that satisfies some conditions.

    Args:
      visit: the objective. Where it moves a pixel of a trial image, the search goes on without that pixel.
      start: where the search begins.
      direction: a direction of descent.
      first_trial: step size to try first, > 0.
      conditions: see `Conditions`.
      max_evaluations: the search gives up after so many.
    """
    total, slope = start.evaluation.total, inner(start.evaluation.gradient, direction)
    unseen = is_unseen(start)

    def unfinished(search: Search) -> Bool[Array, ""]:
        # A direction that does not descend has nothing to be searched, a start that is unseen one evaluation.
        most = jnp.where(unseen, 1, max_evaluations)
        return ((slope < 0) | unseen) & ~search.accepted & (search.evaluations < most)

    def try_one(search: Search) -> Search:
        trial = attempt(visit, start, direction, search.trial)
        finite, low_enough, accepted = judge(trial, total, conditions)
        better = accepted | (finite & (trial.iterate.evaluation.total < search.iterate.evaluation.total))
        iterate, stepsize = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (trial.iterate, trial.t),
            (search.iterate, search.stepsize),
        )
        bracket, following = narrow(search.bracket, trial, finite, low_enough)
        return Search(iterate, stepsize, search.evaluations + 1, accepted, bracket, following)

    zero = jnp.zeros_like(total)
    begin = Search(
        iterate=start,
        stepsize=zero,
        evaluations=jnp.int32(0),
        accepted=jnp.bool_(False),
        bracket=Bracket(zero, total, slope, jnp.full_like(total, jnp.inf)),
        trial=jnp.where(unseen, 0, jnp.asarray(first_trial, total.dtype)),
    )
    return jax.lax.while_loop(unfinished, try_one, begin)
