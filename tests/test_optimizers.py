"""Every optimizer on a quadratic and on a small problem of the real kind, and against textbook forms."""

import functools
import types

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.losses import objective
from jaxstyle.losses.objective import Evaluation, Terms
from jaxstyle.network import convolution
from jaxstyle.optimizers import catalogue, quasi_newton
from jaxstyle.optimizers.base import Iterate, Visit
from jaxstyle.runs.checkpoints import Checkpoints

SCALES = jnp.asarray(np.geomspace(1, 30, 24).reshape(4, 2, 3), jnp.float32)
GOAL = jnp.asarray(np.random.default_rng(0).uniform(50, 200, (4, 2, 3)), jnp.float32)

START = jnp.full_like(GOAL, 30.0)


def quadratic(image):
    away = image - GOAL
    value = 0.5 * jnp.sum(SCALES * away**2)
    return Evaluation(value, Terms(value, 0 * value, 0 * value), SCALES * away)


def half_square(image):
    return Evaluation(0.5 * jnp.sum(image**2), None, image)


def rosenbrock(image):
    def value(x):
        x = x.ravel() / 100
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    total, gradient = jax.value_and_grad(value)(image)
    return Evaluation(total, Terms(total, 0 * total, 0 * total), gradient)


def visiting(evaluate):
    return Visit(lambda image: Iterate(image, evaluate(image)))


def values_of(spec):
    """An optimizer's numbers as a run gives them, to a program that is compiled once for all."""
    values = {name: jnp.float32(value) for name, value in spec.traced.items()}
    return values | ({"key": jax.random.key(0)} if spec.needs_key else {})


@functools.cache
def compiled(name, static, evaluate):
    """An optimizer's step, given its numbers too, and a list that grows by one at each evaluation."""
    build, calls, evaluate = catalogue.build(name, static), [], jax.jit(evaluate)

    def counted(image):
        if name in catalogue.ON_HOST:
            calls.append(1)
        else:
            jax.debug.callback(lambda: calls.append(1))
        return Iterate(image, evaluate(image))

    def step(values, iterate, state):
        return build(**values).step(Visit(counted), iterate, state)

    return step if name in catalogue.ON_HOST else jax.jit(step), calls


def counting(text, evaluate):
    """An optimizer, its step, and a list that grows by one at each evaluation of that."""
    spec = catalogue.parse(text)
    values = values_of(spec)
    step, calls = compiled(spec.name, spec.static, evaluate)
    return catalogue.build(spec.name, spec.static)(**values), functools.partial(step, values), calls


def minimise(text, evaluate, image, steps):
    """The totals at each iterate, the last iterate and the evaluations, counted by their calls on the host."""
    optimizer, step, calls = counting(text, evaluate)
    evaluate = jax.jit(evaluate)
    iterate = Iterate(image, evaluate(image))
    state = optimizer.init(iterate)
    calls.clear()
    totals, evaluations = [float(iterate.evaluation.total)], 0
    for _ in range(steps):
        iterate, state, count, converged = step(iterate, state)
        evaluations += int(count)
        totals.append(float(iterate.evaluation.total))
        if converged:
            break
    jax.effects_barrier()
    assert evaluations == len(calls), "evaluations are counted truly"
    np.testing.assert_allclose(iterate.evaluation.total, evaluate(iterate.image).total, rtol=1e-5, atol=1e-9)
    return np.array(totals), iterate, evaluations


#: A learning rate that suits the quadratic, for the optimizers that have one.
RATES = {
    name: 1.0
    for name in catalogue.NAMES
    if "learning_rate" in catalogue._settable(name)  # the table must not miss a new one
} | {
    "gd": 0.02, "momentum": 0.005, "sgd": 0.02, "adafactor": 0.1, "adadelta": 300.0,
    "adadelta-tf1gpu": 0.01, "adagrad": 20.0, "adamax": 5.0, "fromage": 0.03, "lamb": 0.05,
    "lars": 10.0, "noisy_sgd": 0.02, "optimistic_gradient_descent": 0.01, "radam": 0.03, "sm3": 10.0,
    "schedule_free_sgd": 0.01,
}  # fmt: skip


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_every_optimizer_descends_on_a_quadratic(name):
    text = f"{name}:learning_rate={RATES[name]}" if name in RATES else name
    assert catalogue.parse(text).needs_key == (name == "noisy_sgd")
    totals, *_ = minimise(text, quadratic, START, 100)
    assert totals[-1] < 0.35 * totals[0]


def test_an_optimizer_that_is_given_no_rate_descends_or_asks_for_one():
    for name in catalogue.NAMES:
        if "learning_rate" in catalogue.DEFAULTS["gatys"].get(name, {}) or not catalogue.has_learning_rate(
            name
        ):
            totals, *_ = minimise(name, quadratic, START, 5)
            assert totals[1:].min() < totals[0], name
        elif name != "adafactor":  # whose steps are relative to the image without one
            with pytest.raises(UserError, match="needs a learning_rate"):
                catalogue.parse(name)


def test_schedule_free_descent_goes_where_its_average_pulls_it():
    """Defazio et al. 2024, equations 2 to 4, on x²/2: the iterate is y, the running mean of z and a tenth of z."""
    y = z = mean = 1.0
    wanted = []
    for step in range(1, 8):
        z -= 0.5 * y
        mean += (z - mean) / step
        y = 0.1 * z + 0.9 * mean
        wanted.append(0.5 * y * y)

    totals, *_ = minimise("schedule_free_sgd:learning_rate=0.5", half_square, jnp.ones((1, 1, 1)), 7)
    np.testing.assert_allclose(totals[1:], wanted, rtol=1e-5)


def test_a_cosine_rate_falls_to_nothing_over_its_steps():
    """Gradient descent on x²/2 leaves the factor 1 - rate of x at each step."""
    spec = catalogue.parse("gd:learning_rate=0.5,cosine_steps=4")
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)

    iterate = Iterate(jnp.ones((1, 1, 3)), half_square(jnp.ones((1, 1, 3))))
    state, left = optimizer.init(iterate), 1.0
    move = jax.jit(functools.partial(optimizer.step, visiting(half_square)))
    for step in range(6):
        iterate, state, *_ = move(iterate, state)
        left *= 1 - 0.5 * (1 + np.cos(np.pi * min(step / 4, 1))) / 2
        np.testing.assert_allclose(iterate.image, left, atol=1e-7)


def test_a_cosine_rate_goes_on_where_moments_begin_anew():
    """Adafactor's, which are factored from 128 pixels on."""
    spec = catalogue.parse("adafactor:learning_rate=0.01,cosine_steps=4")
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)

    def at(side):
        image = jnp.full((side, side, 3), 9.0)
        return Iterate(image, half_square(image))

    before, after = at(100), at(130)
    state = optimizer.init(before)
    step = jax.jit(functools.partial(optimizer.step, visiting(half_square)))
    for _ in range(4):
        before, state, *_ = step(before, state)
    moved, *_ = step(after, optimizer.carry(state, after))
    np.testing.assert_allclose(moved.image, after.image, atol=1e-5)  # the rate has come to nothing


@pytest.mark.parametrize(
    "name", ["lbfgs", "lbfgs:scaling=spectral", "optax-lbfgs", "scipy-lbfgs", "nonlinear-cg"]
)
def test_line_search_methods_solve_rosenbrocks_valley(name):
    totals, iterate, _ = minimise(name, rosenbrock, jnp.full((2, 2, 3), -50.0), 300)
    assert totals[-1] < 1e-5
    assert np.all(np.diff(totals) <= 1e-6 * totals[:-1] + 1e-12)
    np.testing.assert_allclose(iterate.image, 100, atol=1)


@pytest.mark.parametrize("method", quasi_newton.COEFFICIENTS)
def test_conjugate_gradients_do_not_depend_on_the_unit_of_the_loss(method):
    """jaxopt's do: they divide by 1e-6 or more."""

    def in_other_units(image):
        total, terms, gradient = quadratic(image)
        return Evaluation(2.0**-40 * total, terms, 2.0**-40 * gradient)

    text = f"nonlinear-cg:method={method}"
    totals, iterate, evaluations = minimise(text, quadratic, START, 12)
    others, other, as_many = minimise(text, in_other_units, START, 12)
    assert evaluations == as_many
    np.testing.assert_allclose(2.0**40 * others, totals, rtol=1e-5)
    np.testing.assert_allclose(other.image, iterate.image, rtol=1e-5)


def test_hager_and_zhangs_direction_descends_after_any_search():
    """By their theorem 1.1: gᵀd ≤ -7/8 |g|². The coefficient is that of their equation 1.3, in float64."""
    rng, above = np.random.default_rng(0), 0
    for _ in range(50):
        g, after, d = rng.normal(size=(3, 4, 2, 3)).astype(np.float32)
        if np.vdot(d, after - g) <= 0:
            continue
        y = np.float64(after) - g
        exact = np.vdot(y - 2 * d * (np.vdot(y, y) / np.vdot(d, y)), after) / np.vdot(d, y)
        found = quasi_newton.COEFFICIENTS["hager-zhang"](*map(jnp.asarray, (g, after, d)))
        least = 0.4 * np.vdot(d, g) / np.vdot(d, d)
        np.testing.assert_allclose(found, max(exact, least), rtol=1e-3)
        if exact > least:
            above += 1
            assert np.vdot(found * d - after, after) <= -7 / 8 * np.vdot(after, after) * (1 - 1e-4)
    assert above > 5


@pytest.mark.parametrize(
    "name", ["lbfgs", "lbfgs:scaling=spectral", "lbfgs:history=bfloat16", "optax-lbfgs", "scipy-lbfgs"]
)
def test_quasi_newton_methods_say_that_they_converged_and_stay_there(name):
    totals, iterate, _ = minimise(name, quadratic, jnp.zeros_like(GOAL), 200)
    assert len(totals) < 200, "stopped because it had converged"
    np.testing.assert_allclose(iterate.image, GOAL, rtol=1e-3)


def test_lbfgs_directions_are_the_textbooks():
    """The first steps against BFGS's dense inverse update started from γI (Nocedal and Wright, 6.17)."""
    optimizer, step, _ = counting("lbfgs", quadratic)
    iterate = Iterate(jnp.zeros_like(GOAL), quadratic(jnp.zeros_like(GOAL)))
    state, pairs = optimizer.init(iterate), []
    for _ in range(6):
        new, state, *_ = step(iterate, state)
        if pairs:
            s, y = pairs[-1]
            inverse = np.eye(24) * (s @ y) / (y @ y)
            for s, y in pairs:
                rho = 1 / (s @ y)
                left = np.eye(24) - rho * np.outer(s, y)
                inverse = left @ inverse @ left.T + rho * np.outer(s, s)
            direction = -inverse @ np.float64(iterate.evaluation.gradient.ravel())
            moved = np.float64((new.image - iterate.image).ravel())
            cosine = direction @ moved / np.linalg.norm(direction) / np.linalg.norm(moved)
            assert cosine > 1 - 1e-5
        pairs.append(
            (
                np.float64((new.image - iterate.image).ravel()),
                np.float64((new.evaluation.gradient - iterate.evaluation.gradient).ravel()),
            )
        )
        iterate = new


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("lbfgs:history_size=40", 83),
        ("lbfgs:history_size=40,history=bfloat16", 43),
        ("lbfgs:history_size=40,scaling=spectral@fourier:exponent=0.5", 85),
    ],
)
def test_the_history_of_lbfgs_is_written_in_place(text, images):
    spec = catalogue.parse(text)
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)

    def step(iterate, state):
        return optimizer.step(Visit(lambda image: Iterate(image, norm(image)), None), iterate, state)[:2]

    def norm(image):
        total = 0.5 * jnp.sum(image**2)
        return Evaluation(total, Terms(total, 0.0, 0.0), image)

    image = jnp.ones((48, 48, 3))
    iterate = Iterate(image, norm(image))
    step = convolution.jit(step, donate_argnums=1).lower(iterate, optimizer.init(iterate)).compile()
    memory = step.memory_analysis()
    assert memory.argument_size_in_bytes < (images + 1) * image.nbytes
    assert memory.temp_size_in_bytes < 40 * image.nbytes, "not eighty more"


def test_a_history_in_half_the_memory_is_rounded_to_bfloat16():
    values = jnp.asarray(np.random.default_rng(3).normal(size=(9, 7, 3)) * 1e5, jnp.float32)
    history = jnp.zeros((2, *values.shape), jnp.uint16)
    assert history.nbytes == values.nbytes
    kept = quasi_newton._seen(quasi_newton._kept(values, history))
    np.testing.assert_array_equal(kept, values.astype(jnp.bfloat16).astype(jnp.float32))


def test_lbfgs_with_a_bfloat16_history_lbfgs_takes_the_same_way_for_some_steps():
    (exact, one, _), (rounded, other, _) = (
        minimise(text, quadratic, START, 4) for text in ("lbfgs", "lbfgs:history=bfloat16")
    )
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert np.any(np.asarray(one.image) != np.asarray(other.image))


@pytest.mark.parametrize("scaling", ["scalar", "spectral"])
def test_after_a_failed_search_lbfgs_is_as_if_it_began(scaling):
    """The objective is not a number beyond where five steps have come, nor is the gradient there."""
    text = f"lbfgs:history_size=8,scaling={scaling}"
    spec = catalogue.parse(text)
    optimizer = catalogue.build(spec.name, spec.static)()
    wall = jnp.float32(-jnp.inf)

    def walled(wall, image):
        found = quadratic(image)
        return jax.tree.map(lambda value: jnp.where(found.total < wall, jnp.nan, value), found)

    def step(wall, iterate, state):
        return optimizer.step(visiting(functools.partial(walled, wall)), iterate, state)

    step, iterate = jax.jit(step), Iterate(START, quadratic(START))
    state = optimizer.init(iterate)
    for _ in range(5):
        iterate, state, *_ = step(wall, iterate, state)
    stopped, state, *_ = step(iterate.evaluation.total, iterate, state)
    np.testing.assert_array_equal(stopped.image, iterate.image)
    again, after, *_ = step(wall, stopped, state)
    anew, begun, *_ = step(wall, stopped, optimizer.init(stopped))
    np.testing.assert_array_equal(again.image, anew.image)
    for _ in range(3):
        again, after, *_ = step(wall, again, after)
        anew, begun, *_ = step(wall, anew, begun)
    np.testing.assert_allclose(again.image, anew.image, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        *("lbfgs:history_size=3", "adam", "scipy-lbfgs", "noisy_sgd:learning_rate=1"),
        "lbfgs:history_size=3@pyramid:levels=2",
    ],
)
def test_what_an_optimizer_keeps_is_known_beforehand(text):
    spec = catalogue.parse(text)
    image = jnp.ones((70, 90, 3))
    zero = jnp.float32(0)
    traced = dict(spec.traced) | ({"key": jax.random.key(0)} if spec.needs_key else {})
    iterate = Iterate(image, Evaluation(zero, Terms(zero, zero, zero), image))
    state = catalogue.build(spec.name, spec.static)(**traced).init(iterate)
    images = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / image.nbytes
    assert catalogue.bytes_kept(spec, (70, 90)) == pytest.approx(images * image.nbytes, rel=0.01, abs=2**8)


def test_lbfgs_walks_where_jaxopt_does():
    """By the step sizes that ours found, over more steps than are kept."""
    optimizer = catalogue.build("lbfgs", (("history_size", 4),))()
    step = jax.jit(functools.partial(optimizer.step, visiting(rosenbrock)))
    iterate = Iterate(START, rosenbrock(START))
    state, sizes, walked = optimizer.init(iterate), [], []
    for _ in range(12):
        iterate, state, *_ = step(iterate, state)
        sizes.append(optimizer.stepsize(state))
        walked.append(iterate.image)
    assert min(sizes) > 0
    sizes = jnp.stack(sizes)
    theirs = jaxopt.LBFGS(
        lambda image: rosenbrock(image)[::2], value_and_grad=True, stepsize=lambda i: sizes[i], history_size=4
    )
    image, memory = START, theirs.init_state(START)
    update = jax.jit(theirs.update)
    for expected in walked:
        image, memory = update(image, memory)
        np.testing.assert_allclose(image, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["polak-ribiere", "fletcher-reeves", "hestenes-stiefel"])
def test_conjugate_gradients_walk_where_those_of_jaxopt_do(method):
    """By the step sizes that ours found."""
    optimizer, step, _ = counting(f"nonlinear-cg:method={method}", quadratic)
    iterate = Iterate(START, quadratic(START))
    theirs = jaxopt.NonlinearCG(
        lambda image: quadratic(image)[::2],
        value_and_grad=True,
        method=method,
        linesearch_init="current",
        max_stepsize=0.0,
    )

    def move(size, image, value, gradient, direction, *_):
        image = image + size * direction
        value, _, gradient = quadratic(image)
        counts = dict.fromkeys(("iter_num", "num_fun_eval", "num_grad_eval"), jnp.int32(0))
        found = types.SimpleNamespace(params=image, value=value, grad=gradient, aux=None, **counts)
        return size, found

    theirs.run_ls = move
    state, memory, image = optimizer.init(iterate), theirs.init_state(START), START
    for _ in range(6):
        iterate, state, *_ = step(iterate, state)
        assert optimizer.stepsize(state) > 0
        image, memory = theirs.update(image, memory._replace(stepsize=optimizer.stepsize(state)))
        np.testing.assert_allclose(image, iterate.image, rtol=1e-3)


def test_scipy_lbfgs_walks_where_scipy_does():
    image = jnp.full((2, 2, 3), -50.0)
    evaluate = jax.jit(rosenbrock)
    walked = []

    def function(x):
        evaluation = evaluate(jnp.asarray(x.reshape(image.shape), jnp.float32))
        return float(evaluation.total), np.float64(evaluation.gradient.ravel())

    scipy.optimize.minimize(
        function, np.float64(image.ravel()), jac=True, method="L-BFGS-B",
        callback=lambda x: walked.append(np.float32(x)),
        options={"maxiter": 15, "maxcor": 10, "ftol": 0, "gtol": 0},
    )  # fmt: skip
    spec = catalogue.parse("scipy-lbfgs")
    optimizer = catalogue.build(spec.name, spec.static)()
    iterate = Iterate(image, evaluate(image))
    state = optimizer.init(iterate)
    for expected in walked:
        iterate, state, *_ = optimizer.step(visiting(evaluate), iterate, state)
        np.testing.assert_array_equal(iterate.image.ravel(), expected)


def tensorflow_1_0(name, g, rate):
    """Steps of TensorFlow 1.0's CPU kernels, in float64, for a sequence of gradients."""
    a, u = {"adagrad": 0.1, "rmsprop": 1.0}.get(name, 0.0), 0.0
    m = 0.0
    for t, gradient in enumerate(g, start=1):
        if name == "gd":
            yield rate * gradient
        elif name == "adagrad":
            a = a + gradient**2
            yield rate * gradient / np.sqrt(a)
        elif name == "rmsprop":
            a = 0.9 * a + 0.1 * gradient**2
            yield rate * gradient / np.sqrt(a + 1e-10)
        elif name == "adadelta":
            a = 0.95 * a + 0.05 * gradient**2
            d = np.sqrt(u + 1e-8) / np.sqrt(a + 1e-8) * gradient
            u = 0.95 * u + 0.05 * d**2
            yield rate * d
        elif name == "adadelta-tf1gpu":
            a = 0.95 * u + 0.05 * gradient**2
            d = np.sqrt(u + 1e-8) / np.sqrt(a + 1e-8) * gradient
            u = 0.95 * u + 0.05 * d**2
            yield rate * np.sqrt(u + 1e-8) / np.sqrt(a + 1e-8) * gradient
        elif name == "adam":
            m = 0.9 * m + 0.1 * gradient
            a = 0.999 * a + 0.001 * gradient**2
            yield rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(a) + 1e-8)


@pytest.mark.parametrize("name", ["gd", "adadelta", "adadelta-tf1gpu", "adagrad", "adam", "rmsprop"])
def test_with_the_studys_loss_the_defaults_are_tensorflow_1_0s(name):
    spec = catalogue.parse(name, loss="ivanov2017")
    assert spec.traced["learning_rate"] == 10
    transformation = catalogue._FACTORIES[name](**spec.traced, **dict(spec.static))
    gradients = np.random.default_rng(4).normal(0, 30, (6, 4, 2, 3))
    state = transformation.init(jnp.zeros((4, 2, 3)))
    for gradient, expected in zip(gradients, tensorflow_1_0(name, gradients, 10.0), strict=True):
        updates, state = transformation.update(jnp.float32(gradient), state, jnp.zeros((4, 2, 3)))
        np.testing.assert_allclose(-updates, expected, rtol=2e-4)


@pytest.mark.parametrize("name", ["adam", "lbfgs", "optax-lbfgs", "scipy-lbfgs", "nonlinear-cg"])
@pytest.mark.parametrize("form", objective.FORMS)
def test_optimizers_lower_the_loss_of_a_small_pair(name, form, make_problem, content):
    form, spec = objective.FORMS[form], catalogue.parse(name)
    program = training.program(form, spec.name, spec.static)
    problem, image, values = make_problem(form), jnp.asarray(content), values_of(spec)
    if spec.name in catalogue.ON_HOST:
        step, state = program.step, program.init(problem, image, values)
    else:  # by one program, which evaluates the start too
        step = jax.jit(program.step)
        state = program.settle(step(problem, program.unseen(image, values))[0])
    start = state.iterate.evaluation.total
    for _ in range(15):
        state, _ = step(problem, state)
    assert state.iterate.evaluation.total < 0.5 * start


@pytest.mark.parametrize("text", ["lbfgs", "lbfgs:scaling=spectral", "nonlinear-cg", "scipy-lbfgs"])
def test_the_step_size_is_what_a_line_search_multiplied_its_direction_with(text):
    """The first direction is the negative gradient."""
    ours, step, _ = counting(text, quadratic)
    start = Iterate(jnp.zeros_like(GOAL), quadratic(jnp.zeros_like(GOAL)))
    outcome = step(start, ours.init(start))
    moved = outcome.iterate.image - start.image
    np.testing.assert_allclose(
        moved, -ours.stepsize(outcome.state) * start.evaluation.gradient, rtol=1e-4, atol=1e-6
    )
    assert np.abs(moved).max() > 0


def test_where_no_line_search_tells_there_is_no_step_size():
    for text in ("adam", "optax-lbfgs"):
        spec = catalogue.parse(text)
        ours = catalogue.build(spec.name, spec.static)(**spec.traced)
        start = Iterate(jnp.zeros_like(GOAL), quadratic(jnp.zeros_like(GOAL)))
        assert ours.stepsize(ours.init(start)) is None


def test_an_optax_alias_is_optaxs_own_step():
    spec = catalogue.parse("lion:learning_rate=0.5,b1=0.8")
    ours = catalogue.build(spec.name, spec.static)(**spec.traced)
    theirs = optax.lion(0.5, b1=0.8)
    iterate = Iterate(jnp.zeros_like(GOAL), quadratic(jnp.zeros_like(GOAL)))
    state = ours.init(iterate)
    params, their_state = iterate.image, theirs.init(iterate.image)
    for _ in range(3):
        updates, their_state = theirs.update(quadratic(params).gradient, their_state, params)
        params = optax.apply_updates(params, updates)
        iterate, state, *_ = ours.step(visiting(quadratic), iterate, state)
    np.testing.assert_allclose(iterate.image, params, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adan2", "no optimizer 'adan2'"),
        ("", "no optimizer ''"),
        ("adam:lr=1", "adam has no 'lr'; it has learning_rate"),
        ("adam:learning_rate", "should be key=value"),
        ("adam:learning_rate=fast", "learning_rate must be greater than 0, not 'fast'|must be a number"),
        ("adam:learning_rate=-1", "learning_rate must be greater than 0"),
        ("adam:learning_rate=nan", "learning_rate must be greater than 0"),
        ("adam:learning_rate=inf", "learning_rate must be greater than 0"),
        ("adam:b1=1", r"b1 must be in \[0, 1\)"),
        ("schedule_free_sgd:learning_rate=1,b1=0", "b1 must be from 0.001, below 1"),
        ("adam:nesterov=maybe", "nesterov must be true or false"),
        ("lbfgs:history_size=0", "history_size must be from 1 to 1000"),
        ("lbfgs:curvature=0.0001", "curvature must be greater than sufficient_decrease"),
        ("lbfgs:history_size=2.5", "history_size must be a whole number"),
        (f"lbfgs:max_evaluations={2**31}", "max_evaluations must be a whole number of 32 bits"),
        (f"adafactor:decay_offset={10**400}", "decay_offset must be a whole number of 32 bits"),
        ("lbfgs:scaling=diagonal", "scaling must be scalar or spectral"),
        ("nonlinear-cg:method=newton", "method must be hager-zhang or"),
        ("lion", "lion needs a learning_rate"),
    ],
)
def test_a_specification_that_cannot_be_used_is_refused_in_one_line(text, words):
    with pytest.raises(UserError, match=words) as refusal:
        catalogue.parse(text)
    assert "--optimizer=" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["adam:learning_rate=3", "lbfgs", "lbfgs:scaling=spectral", "optax-lbfgs", "nonlinear-cg"]
)
def test_iterates_that_are_clipped_find_the_minimum_of_their_range(text):
    """Of a quadratic whose minimum, for each pixel on its own, is partly out of range."""
    spec = catalogue.parse(text)
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)
    low, high = jnp.quantile(GOAL, 0.3), jnp.quantile(GOAL, 0.7)

    def clipped(image):
        image = jnp.clip(image, low, high)
        return Iterate(image, quadratic(image))

    visit = Visit(clipped)

    iterate = visit(START)
    state, step = (
        optimizer.init(iterate),
        jax.jit(lambda iterate, state: optimizer.step(visit, iterate, state)),
    )
    for _ in range(150):
        iterate, state, *_ = step(iterate, state)
        assert low <= iterate.image.min() <= iterate.image.max() <= high
    best = quadratic(jnp.clip(GOAL, low, high)).total
    first = visit(START).evaluation.total
    assert iterate.evaluation.total - best < 1e-3 * (first - best)


def scale_free(form, problem, image):
    """A quadratic of images of any size."""
    away = image - 100.0
    value = 0.5 * jnp.mean(away**2)
    return Evaluation(value, Terms(value, 0 * value, 0 * value), away / image.size)


def begin_by_the_step(program, values):
    """The states at a start and at that of a larger size, both evaluated by the step."""
    seen, _ = program.step(None, program.unseen(jnp.full((6, 8, 3), 250.0), values))
    first = program.settle(seen)
    seen, _ = program.step(None, program.unseen(program.enlarged((6, 9, 3), first), values))
    return first, program.settle(seen, first)


def assert_alike(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


#: Whose moments are factored, and so have not the image's shape.
FACTORED = ("adafactor", "sm3")


@pytest.mark.parametrize("text", [*catalogue.NAMES, "lbfgs:scaling=spectral", "lbfgs:history=bfloat16"])
def test_every_optimizer_changes_scale_resumes_clips_averages_and_vmaps(text, monkeypatch, tmp_path):
    monkeypatch.setattr(training.objective, "evaluate", scale_free)
    spec = catalogue.parse(f"{text}:learning_rate=0.1" if text in RATES else text)
    name = spec.name
    on_host = name in catalogue.ON_HOST
    # A form that no other test has: programs are kept by their arguments.
    form = objective.GATYS._replace(content=scale_free)
    program = training.program(form, name, spec.static, clip=not on_host, keep="average")
    small, larger = (6, 8, 3), [(6, 9, 3), (7, 9, 3)]
    if name in FACTORED:  # where two sides have 128 pixels: before, across and after that
        larger[1:] = (128, 130, 3), (131, 133, 3)
    values = values_of(spec)

    def through_scales(values):
        state, _ = program.step(None, program.init(None, jnp.full(small, 250.0), values))
        for shape in larger:
            state = program.init(None, program.enlarged(shape, state), values, state)
            state, _ = program.step(None, state)
        return state

    jit = jax.jit if not on_host else lambda function: function
    state = jit(through_scales)(values)
    assert (state.step, state.iterate.image.shape) == (1 + len(larger), larger[-1])
    assert not state.diverged
    # What finds its own step size hardly moves in these steps: no more is asked than that it is not thrown back.
    assert state.iterate.evaluation.total <= 1.00001 * scale_free(None, None, jnp.float32(250)).total
    assert program.result(state).shape == larger[-1]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(int(state.step), state, np.zeros((1, 7)))
    restored, _ = checkpoints.restore(lambda step: state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        if jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key):
            old, new = jax.random.key_data(old), jax.random.key_data(new)
        np.testing.assert_array_equal(new, old)
    again, _ = jit(program.step)(None, restored)
    assert again.step == state.step + 1
    if not on_host:
        first, grown = jax.jit(begin_by_the_step, static_argnums=0)(program, values)
        before = program.init(None, jnp.full((6, 8, 3), 250.0), values)
        assert_alike(first, before)
        assert_alike(grown, program.init(None, program.enlarged((6, 9, 3), before), values, before))
        assert 0 <= state.iterate.image.min() <= state.iterate.image.max() <= 255
        many = {key: jnp.broadcast_to(value, (2,)) for key, value in values.items()}
        begin = jax.vmap(
            lambda values: program.step(None, program.init(None, jnp.full(small, 250.0), values))
        )
        lanes, metrics = jax.jit(begin)(many)
        np.testing.assert_allclose(metrics.total[0], metrics.total[1], rtol=1e-6)
        np.testing.assert_array_equal(lanes.step, [1, 1])


@pytest.mark.parametrize("name", FACTORED)
def test_moments_that_are_factored_follow_the_image(name):
    """They keep their level when the image grows, as its gradients would."""
    spec = catalogue.parse(f"{name}:learning_rate=1")
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)
    before, after = (
        Iterate(jnp.zeros(shape), Evaluation(0.0, None, jnp.zeros(shape)))
        for shape in ((128, 130, 3), (140, 150, 3))
    )
    full = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3), optimizer.init(before))
    carried = optimizer.carry(full, after)
    assert jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, optimizer.init(after))
    for leaf in jax.tree.leaves(carried):
        np.testing.assert_allclose(leaf, 3, rtol=1e-6)
