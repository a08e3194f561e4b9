"""The line search on one-dimensional functions whose Wolfe points are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.losses.objective import Evaluation, Terms
from jaxstyle.optimizers.base import Iterate, Visit
from jaxstyle.optimizers.line_search import Bracket, Conditions, Trial, judge, narrow, wolfe

FUNCTIONS = {
    "parabola": lambda x: jnp.sum((x - 3.0) ** 2),
    "steep": lambda x: jnp.sum(1e4 * (x - 3.0) ** 2),
    "quartic": lambda x: jnp.sum((x - 3.0) ** 4),
    "kink": lambda x: jnp.sum(jnp.abs(x - 3.0)) + 0.1 * jnp.sum(x**2),
    "overflow": lambda x: jnp.sum(jnp.exp(40 * x) - 400 * x),
}


def visitor(function):
    def visit(image):
        value, gradient = jax.value_and_grad(function)(image)
        return Iterate(image, Evaluation(value, Terms(value, value, value), gradient))

    return Visit(visit)


def search(function, first_trial, curvature=0.9, max_evaluations=30, sign=-1, strong=False):
    visit = visitor(function)
    start = visit(jnp.zeros((1, 1, 3)))
    found = jax.jit(
        lambda: wolfe(
            visit,
            start,
            sign * start.evaluation.gradient,
            first_trial,
            Conditions(1e-4, curvature, strong),
            max_evaluations,
        )
    )()
    return start, found


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("first_trial", [1e-6, 1e-2, 1.0, 1e3])
def test_an_accepted_step_satisfies_the_weak_wolfe_conditions(function, first_trial):
    start, found = search(FUNCTIONS[function], first_trial)
    assert found.accepted
    direction = -start.evaluation.gradient
    slope = np.vdot(start.evaluation.gradient, direction)
    end = found.iterate
    np.testing.assert_allclose(end.image, start.image + found.stepsize * direction, rtol=1e-6)
    assert end.evaluation.total <= start.evaluation.total + 1e-4 * found.stepsize * slope
    assert np.vdot(end.evaluation.gradient, direction) >= 0.9 * slope


@pytest.mark.parametrize("function", sorted(FUNCTIONS.keys() - {"kink"}))
@pytest.mark.parametrize("first_trial", [1e-6, 1e-2, 1.0, 1e3])
def test_with_strong_conditions_it_does_not_rise_steeply_either(function, first_trial):
    start, found = search(FUNCTIONS[function], first_trial, curvature=0.1, strong=True)
    assert found.accepted
    direction = -start.evaluation.gradient
    slope = np.vdot(start.evaluation.gradient, direction)
    assert found.iterate.evaluation.total <= start.evaluation.total + 1e-4 * found.stepsize * slope
    assert abs(np.vdot(found.iterate.evaluation.gradient, direction)) <= 0.1 * abs(slope)


def test_at_a_kink_a_search_for_strong_conditions_gives_the_best_it_has_tried():
    """At 3 each coordinate's slope jumps from -0.4 to 1.6: nowhere is it small."""
    _, found = search(FUNCTIONS["kink"], 1.0, curvature=0.1, strong=True)
    assert not found.accepted
    assert found.evaluations == 30
    np.testing.assert_allclose(found.iterate.image, 3, atol=1e-3)


def test_a_first_trial_that_satisfies_the_conditions_costs_one_evaluation():
    _, found = search(FUNCTIONS["parabola"], 0.5)
    assert found.accepted
    assert found.evaluations == 1
    np.testing.assert_allclose(found.iterate.image, 3.0, rtol=1e-6)


def test_a_search_that_runs_out_gives_the_best_it_has_tried():
    start, found = search(FUNCTIONS["steep"], 1e3, max_evaluations=2)
    assert not found.accepted
    assert found.evaluations == 2
    assert found.iterate.evaluation.total <= start.evaluation.total


def test_a_direction_that_ascends_is_not_searched():
    start, found = search(FUNCTIONS["parabola"], 1.0, sign=1)
    assert not found.accepted
    assert found.evaluations == 0
    assert found.stepsize == 0
    np.testing.assert_array_equal(found.iterate.image, start.image)


def trial(t, total, slope):
    iterate = Iterate(None, Evaluation(jnp.float32(total), None, None))
    return Trial(jnp.float32(t), iterate, jnp.float32(-2), jnp.float32(slope))


@pytest.mark.parametrize(
    ("total", "slope", "expected", "strong"),
    [
        (0.5, -0.1, (True, True, True), (True, True, True)),
        (0.5, -1.9, (True, True, False), (True, True, False)),  # it descends as steeply as at 0
        (0.5, 1.9, (True, True, True), (True, False, False)),  # it rises as steeply
        (1.5, 0.1, (True, False, False), (True, False, False)),
        (np.nan, 0.0, (False, False, False), (False, False, False)),
        (0.5, np.inf, (False, False, False), (False, False, False)),
    ],
)
def test_a_trial_is_judged_by_the_wolfe_conditions(total, slope, expected, strong):
    """From φ(0) = 1 and φ'(0) = -2, at t = 1."""
    for conditions, judged in ((Conditions(0.1, 0.9, False), expected), (Conditions(0.1, 0.9, True), strong)):
        assert tuple(map(bool, judge(trial(1, total, slope), jnp.float32(1), conditions))) == judged


def test_a_bracket_keeps_the_step_between_its_ends():
    yes, bracket = jnp.bool_(True), Bracket(*map(jnp.float32, (0, 1, -2, np.inf)))
    up, following = narrow(bracket, trial(1, 0.5, -1.9), yes, yes)
    assert tuple(map(float, up)) == pytest.approx((1, 0.5, -1.9, np.inf))
    assert following == 4
    # φ = 1 - 2t + t²: the minimum of the parabola through what is known is that of φ.
    down, following = narrow(bracket, trial(3, 4, 4), yes, ~yes)
    assert tuple(map(float, down)) == (0, 1, -2, 3)
    assert following == pytest.approx(1)
    _, following = narrow(bracket, trial(3, np.nan, 4), ~yes, ~yes)
    assert following == 1.5
