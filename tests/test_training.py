"""The training step: what it records, that learning rates vmap, and that divergence is a result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstyle
from jaxstyle import training
from jaxstyle.losses import objective, recipes, rot
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.network import vgg
from jaxstyle.optimizers import catalogue


def arrays(spec):
    return jax.tree.map(jnp.float32, dict(spec.traced))


@pytest.mark.parametrize("name", ["adam", "lbfgs", "scipy-lbfgs"])
def test_each_row_is_the_loss_at_its_iterate(name, make_problem, content):
    form, problem = objective.GATYS, make_problem(objective.GATYS)
    spec = catalogue.parse(name)
    program = training.program(form, spec.name, spec.static)
    jit = jax.jit if name not in catalogue.ON_HOST else lambda function: function
    state, step = jit(program.init)(problem, jnp.asarray(content), arrays(spec)), jit(program.step)
    metrics = training.metrics(state)
    assert (metrics.step, metrics.evaluations) == (0, 1)
    for k in range(1, 4):
        state, metrics = step(problem, state)
        expected = jax.jit(objective.evaluate, static_argnums=0)(form, problem, state.iterate.image)
        assert metrics.step == k
        np.testing.assert_allclose(metrics.total, expected.total, rtol=1e-5)
        np.testing.assert_allclose(metrics[3:6], expected.terms, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_vmapped_hyperparameters_give_what_single_ones_give(name, make_problem, content):
    form, problem = objective.GATYS, make_problem(objective.GATYS)
    spec = catalogue.parse(name)
    swept = {"adam": "learning_rate", "lbfgs": "curvature"}[name]
    values = jnp.float32([0.5, 0.9]) if name == "lbfgs" else jnp.float32([1.0, 10.0])
    program = training.program(form, spec.name, spec.static)
    many = {key: jnp.full(2, value) for key, value in arrays(spec).items()} | {swept: values}
    lanes = jax.jit(jax.vmap(program.init, (None, None, 0)))(problem, jnp.asarray(content), many)
    step = jax.jit(jax.vmap(program.step, (None, 0)))
    for _ in range(5):
        lanes, metrics = step(problem, lanes)
    for lane, value in enumerate(values):
        state = jax.jit(program.init)(problem, jnp.asarray(content), arrays(spec) | {swept: value})
        for _ in range(5):
            state, single = jax.jit(program.step)(problem, state)
        np.testing.assert_allclose(metrics.total[lane], single.total, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["lbfgs:scaling=spectral", "optax-lbfgs@fourier", "nonlinear-cg@pyramid", "adam"]
)
def test_a_gpu_is_given_products_of_all_bits_but_in_convolutions_and_nothing_that_it_does_in_any_order(
    name, make_problem, content, monkeypatch
):
    form = objective.GATYS._replace(style=STYLE_LOSSES["wasserstein"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # whose way is taken while tracing
    problem, spec = make_problem(form), catalogue.parse(name)
    program = training.program.__wrapped__(form, spec.name, spec.static)
    state = jax.eval_shape(program.unseen, content, arrays(spec))
    text = jax.jit(program.step).trace(problem, state).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all(line.count("HIGHEST") == 2 for line in products)
    # XLA compiles no `select_and_scatter` to the same bits, and scatters to places that may be one slowly.
    assert "select_and_scatter" not in text
    assert text.count("unique_indices = true") == text.count('"stablehlo.scatter"')


def grow(program, shape, problem, state, choices=()):
    return program.init(problem, program.enlarged(shape, state), state.hyperparameters, state, choices)


def test_a_state_keeps_what_its_image_chose_of_the_style(make_problem, content):
    form = objective.GATYS._replace(style=STYLE_LOSSES["nearest"])
    problem, spec = make_problem(form), catalogue.parse("adam")
    program = training.program(form, spec.name, spec.static)
    ((own,),) = (region.choices.values() for region in problem.regions)
    choices = [{"block3_conv1": own[::-1]}]
    state = jax.jit(program.init)(problem, jnp.asarray(content), arrays(spec))
    step, evaluate = jax.jit(program.step), jax.jit(functools.partial(objective.evaluate, form))
    grown = jax.jit(grow, static_argnums=(0, 1))(program, content.shape, problem, state, choices)
    seen, _ = step(problem, jax.jit(program.unseen)(jnp.asarray(content), arrays(spec), choices))
    for begun in (grown, jax.jit(program.settle)(seen, state)):
        found, _ = step(problem, begun)
        for each in (begun, found):
            expected = evaluate(objective.taking(problem, choices), each.iterate.image)
            np.testing.assert_allclose(each.iterate.evaluation.total, expected.total, rtol=1e-5)
            assert evaluate(problem, each.iterate.image).terms.style < 0.99 * expected.terms.style


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_first_order_methods_draw_other_positions_at_each_step(name, make_problem, content, monkeypatch):
    monkeypatch.setattr(rot, "MAX_POSITIONS", 20)
    form = objective.GATYS._replace(style=STYLE_LOSSES["rot"])
    problem, spec = make_problem(form), catalogue.parse(name)
    program = training.program(form, spec.name, spec.static)
    state = jax.jit(program.init)(problem, jnp.asarray(content), arrays(spec))
    step = jax.jit(program.step)

    @jax.jit
    def style(j, image):
        return objective.evaluate(form, objective.redrawn(form, problem, j), image).terms.style

    for k in range(3):
        state, metrics = step(problem, state)
        here = {j: style(jnp.int32(j), state.iterate.image) for j in range(3)}
        np.testing.assert_allclose(metrics.style, here[k if name == "adam" else 0], rtol=1e-5)
        assert min(abs(here[0] - here[1]), abs(here[0] - here[2])) > 1e-3 * here[0]
    # Lanes of a sweep, and a run that goes on, are at the step of their state.
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    lanes, both = jax.jit(jax.vmap(program.step, (None, 0)))(problem, lanes)
    np.testing.assert_allclose(both.total, step(problem, state)[1].total, rtol=1e-5)


def test_a_learning_rate_is_traced_so_that_its_program_is_compiled_once(make_problem, content):
    problem = make_problem(objective.GATYS)
    program = training.program(objective.GATYS, "adam", ())
    traces = []

    @jax.jit
    def step(problem, state):
        traces.append(1)
        return program.step(problem, state)

    for rate in (0.1, 1.0, 10.0):
        state = jax.jit(program.init)(problem, jnp.asarray(content), {"learning_rate": jnp.float32(rate)})
        step(problem, state)
    assert len(traces) == 1


def test_divergence_keeps_the_last_finite_iterate_and_leaves_other_lanes_alone(make_problem, content):
    form, problem = objective.GATYS, make_problem(objective.GATYS)
    program = training.program(form, "gd", ())
    rates = {"learning_rate": jnp.float32([1e-2, 1e30])}
    lanes = jax.jit(jax.vmap(program.init, (None, None, 0)))(problem, jnp.asarray(content), rates)
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


def run(make_problem, content, name, steps, **options):
    """The states of a run, that of the start first, and its program."""
    problem, spec = make_problem(objective.GATYS), catalogue.parse(name)
    program = training.program(objective.GATYS, spec.name, spec.static, **options)
    states = [jax.jit(program.init)(problem, jnp.asarray(content), arrays(spec))]
    step = jax.jit(program.step)
    for _ in range(steps):
        states.append(step(problem, states[-1])[0])
    return states, program


def test_clipped_iterates_stay_in_range(make_problem, content):
    free, _ = run(make_problem, content, "adam:learning_rate=300", 4)
    assert free[-1].iterate.image.min() < 0
    assert free[-1].iterate.image.max() > 255
    clipped, _ = run(make_problem, content, "adam:learning_rate=300", 4, clip=True)
    for state in clipped:
        assert 0 <= state.iterate.image.min() <= state.iterate.image.max() <= 255


def test_what_runs_on_the_host_cannot_clip():
    with pytest.raises(ValueError, match="scipy-lbfgs"):
        training.program(objective.GATYS, "scipy-lbfgs", (("history_size", 10),), clip=True)


def test_the_last_the_best_and_the_average_iterate_can_be_kept(make_problem, content):
    rough = "rmsprop:learning_rate=60"
    found = {}
    for keep in training.KEEPERS:
        states, program = run(make_problem, content, rough, 12, keep=keep)
        images = np.stack([state.iterate.image for state in states])
        totals = [float(state.iterate.evaluation.total) for state in states]
        found[keep] = np.asarray(program.result(states[-1])), images, totals
    result, images, _ = found["last"]
    np.testing.assert_array_equal(result, images[-1])
    result, images, totals = found["best"]
    assert np.argmin(totals) < 12, "a run whose best iterate is not its last is needed"
    np.testing.assert_array_equal(result, images[np.argmin(totals)])
    result, images, _ = found["average"]
    weights = training.DECAY ** np.arange(12, -1, -1)
    np.testing.assert_allclose(result, np.tensordot(weights / weights.sum(), images, 1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "name", ["adam", "lbfgs@fourier:exponent=0.5", "nonlinear-cg@pyramid", "optax-lbfgs"]
)
def test_the_step_of_an_unseen_state_evaluates_it_and_no_more(name, make_problem, content):
    """And a run goes on from there as from `init`, with one program of the objective where there were two."""
    problem, spec = make_problem(objective.GATYS), catalogue.parse(name)
    program = training.program(objective.GATYS, spec.name, spec.static)
    step = jax.jit(program.step)
    seen, metrics = step(problem, program.unseen(jnp.asarray(content), arrays(spec)))
    assert metrics.evaluations == 1
    state, wanted = program.settle(seen), jax.jit(program.init)(problem, jnp.asarray(content), arrays(spec))
    np.testing.assert_array_equal(state.iterate.image, content)
    for _ in range(2):
        for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
        state, wanted = step(problem, state)[0], step(problem, wanted)[0]


def test_a_start_that_cannot_be_evaluated_has_diverged(make_problem, content):
    spec = catalogue.parse("lbfgs")
    program = training.program(objective.GATYS, spec.name, spec.static)
    start = jnp.asarray(content).at[0, 0, 0].set(jnp.nan)
    unseen = program.unseen(start, arrays(spec))
    seen, metrics = jax.jit(program.step)(make_problem(objective.GATYS), unseen)
    assert program.settle(seen).diverged
    assert metrics.evaluations == 1


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_a_state_grows_to_another_size(name, make_problem, content, random_network, style):
    states, program = run(make_problem, content, name, 3)
    large = np.asarray(jax.image.resize(content, (56, 50, 3), "cubic"))
    weighting = recipes.Weighting({"block2_conv2": 1.0}, {"block1_conv1": 10.0, "block3_conv1": 5.0}, 1e-3)
    network = vgg.prepare(random_network, "block3_conv1")
    problem = jaxstyle.pose(objective.GATYS, network, large, [objective.Style(style)], weighting)
    grown = jax.jit(grow, static_argnums=(0, 1))(program, (56, 50, 3), problem, states[-1])
    assert (grown.step, grown.evaluations) == (3, states[-1].evaluations + 1)
    np.testing.assert_allclose(
        grown.iterate.image, jax.image.resize(states[-1].iterate.image, (56, 50, 3), "cubic"), atol=1e-3
    )
    leaves = jax.tree.leaves(grown.optimizer)
    if name == "adam":  # its moments are carried up
        assert [jnp.abs(leaf).max() > 0 for leaf in leaves if leaf.shape == (56, 50, 3)] == [True, True]
    else:  # its curvature is not
        assert [jnp.abs(leaf).max() > 0 for leaf in leaves if leaf.ndim == 4] == [False, False]
    _, metrics = jax.jit(program.step)(problem, grown)
    assert metrics.total < grown.iterate.evaluation.total
