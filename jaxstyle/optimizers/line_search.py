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

from jaxstyle.optimizers.base import Image, Iterate, Scalar, Visit

#: Relative rounding error of a float32 total: sums of some 1e6 squares, in pairs.
ROUNDING = 1e-6


class Search(NamedTuple):
    """What a line search found.

    `accepted` tells whether the conditions hold at `iterate`. Where they do not, `iterate` is the best one that
    was tried, or the one that the search began from if none was better.
    """

    iterate: Iterate
    stepsize: Scalar
    evaluations: Int[Array, ""]
    accepted: Bool[Array, ""]
    low: Scalar
    low_total: Scalar
    low_slope: Scalar
    high: Scalar
    trial: Scalar


def wolfe(
    visit: Visit,
    start: Iterate,
    direction: Image,
    first_trial: Scalar,
    *,
    sufficient_decrease: Scalar | float,
    curvature: Scalar | float,
    max_evaluations: int,
) -> Search:
    """A step along `direction` that satisfies the weak Wolfe conditions.

    Args:
      visit: the objective. Where it moves a pixel of a trial image, the search goes on without that pixel.
      start: where the search begins.
      direction: a direction of descent.
      first_trial: step size to try first, > 0.
      sufficient_decrease: c₁ in φ(t) ≤ φ(0) + c₁ t φ'(0), in (0, 1/2).
      curvature: c₂ in φ'(t) ≥ c₂ φ'(0), in (c₁, 1).
      max_evaluations: the search gives up after so many.
    """
    total, slope = start.evaluation.total, jnp.vdot(start.evaluation.gradient, direction)

    def unfinished(search: Search) -> Bool[Array, ""]:
        # A direction that does not descend has nothing to be searched.
        return (slope < 0) & ~search.accepted & (search.evaluations < max_evaluations)

    def try_one(search: Search) -> Search:
        t = search.trial
        image = start.image + t * direction
        iterate = visit(image)
        evaluation = iterate.evaluation
        free = jnp.where(iterate.image == image, direction, 0)
        slope_0 = jnp.minimum(jnp.vdot(start.evaluation.gradient, free), 0)
        slope_t = jnp.vdot(evaluation.gradient, free)
        decrease = evaluation.total <= total + sufficient_decrease * t * slope_0
        flat = (evaluation.total <= total + ROUNDING * jnp.abs(total)) & (
            slope_t <= (2 * sufficient_decrease - 1) * slope_0
        )
        finite = jnp.isfinite(evaluation.total) & jnp.isfinite(slope_t)
        low_enough = finite & (decrease | flat)
        accepted = low_enough & (slope_t >= curvature * slope_0)
        better = accepted | (finite & (evaluation.total < search.iterate.evaluation.total))
        low, low_total, low_slope = (
            jnp.where(low_enough, new, old)
            for new, old in (
                (t, search.low),
                (evaluation.total, search.low_total),
                (slope_t, search.low_slope),
            )
        )
        high = jnp.where(low_enough, search.high, t)
        bracketed = jnp.isfinite(high)
        width = jnp.where(bracketed, high - low, 0.0)
        # Minimum of the parabola through φ(low), φ'(low) and the trial that was too high.
        bend = evaluation.total - low_total - low_slope * width
        parabola = -low_slope * width**2 / (2 * jnp.where(bend > 0, bend, jnp.inf))
        inside = low + jnp.clip(parabola, 0.1 * width, 0.5 * width)
        halfway = low + 0.5 * width
        interpolated = jnp.where(low_enough | ~finite, halfway, inside)
        return Search(
            iterate=jax.tree.map(
                lambda new, old: jnp.where(better, new, old),
                iterate,
                search.iterate,
            ),
            stepsize=jnp.where(better, t, search.stepsize),
            evaluations=search.evaluations + 1,
            accepted=accepted,
            low=low,
            low_total=low_total,
            low_slope=low_slope,
            high=high,
            trial=jnp.where(bracketed, interpolated, 4 * t),
        )

    zero = jnp.zeros_like(total)
    begin = Search(
        iterate=start,
        stepsize=zero,
        evaluations=jnp.int32(0),
        accepted=jnp.bool_(False),
        low=zero,
        low_total=total,
        low_slope=slope,
        high=jnp.full_like(total, jnp.inf),
        trial=jnp.asarray(first_trial, total.dtype),
    )
    return jax.lax.while_loop(unfinished, try_one, begin)
