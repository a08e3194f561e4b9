"""The training step: what it records, that learning rates vmap, and that divergence is a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle import objective, optimizers, training


def arrays(spec):
    return jax.tree.map(jnp.float32, dict(spec.traced))


@pytest.mark.parametrize("name", ["adam", "lbfgs", "scipy-lbfgs"])
def test_each_row_is_the_loss_at_its_iterate(name, make_problem, content):
    form, problem = objective.GATYS, make_problem(objective.GATYS)
    spec = optimizers.parse(name)
    program = training.program(form, spec.name, spec.static)
    state = program.init(problem, jnp.asarray(content), arrays(spec))
    metrics = training.metrics(state)
    assert (metrics.step, metrics.evaluations) == (0, 1)
    for k in range(1, 4):
        state, metrics = program.step(problem, state)
        expected = objective.evaluate(form, problem, state.iterate.image)
        assert metrics.step == k
        np.testing.assert_allclose(metrics.total, expected.total, rtol=1e-5)
        np.testing.assert_allclose(metrics[3:6], expected.terms, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_vmapped_hyperparameters_give_what_single_ones_give(name, make_problem, content):
    form, problem = objective.GATYS, make_problem(objective.GATYS)
    spec = optimizers.parse(name)
    swept = {"adam": "learning_rate", "lbfgs": "curvature"}[name]
    values = jnp.float32([0.5, 0.9]) if name == "lbfgs" else jnp.float32([1.0, 10.0])
    program = training.program(form, spec.name, spec.static)
    many = {key: jnp.full(2, value) for key, value in arrays(spec).items()} | {swept: values}
    lanes = jax.vmap(program.init, (None, None, 0))(problem, jnp.asarray(content), many)
    step = jax.jit(jax.vmap(program.step, (None, 0)))
    for _ in range(5):
        lanes, metrics = step(problem, lanes)
    for lane, value in enumerate(values):
        state = program.init(problem, jnp.asarray(content), arrays(spec) | {swept: value})
        for _ in range(5):
            state, single = jax.jit(program.step)(problem, state)
        np.testing.assert_allclose(metrics.total[lane], single.total, rtol=1e-3)


def test_a_learning_rate_is_traced_so_that_its_program_is_compiled_once(make_problem, content):
    problem = make_problem(objective.GATYS)
    program = training.program(objective.GATYS, "adam", ())
    traces = []

    @jax.jit
    def step(problem, state):
        traces.append(1)
        return program.step(problem, state)

    for rate in (0.1, 1.0, 10.0):
        state = program.init(problem, jnp.asarray(content), {"learning_rate": jnp.float32(rate)})
        step(problem, state)
    assert len(traces) == 1


def test_divergence_keeps_the_last_finite_iterate_and_leaves_other_lanes_alone(make_problem, content):
    form, problem = objective.GATYS, make_problem(objective.GATYS)
    program = training.program(form, "gd", ())
    rates = {"learning_rate": jnp.float32([1e-2, 1e30])}
    lanes = jax.vmap(program.init, (None, None, 0))(problem, jnp.asarray(content), rates)
    step = jax.jit(jax.vmap(program.step, (None, 0)))
    totals = [lanes.iterate.evaluation.total]
    for _ in range(4):
        lanes, metrics = step(problem, lanes)
        totals.append(metrics.total)
    np.testing.assert_array_equal(metrics.diverged, [False, True])
    assert np.isfinite(totals).all()
    assert jnp.isfinite(lanes.iterate.image).all()
    assert totals[-1][0] < totals[0][0]


def test_the_same_arguments_share_one_program():
    assert training.program(objective.GATYS, "adam", ()) is training.program(objective.GATYS, "adam", ())
