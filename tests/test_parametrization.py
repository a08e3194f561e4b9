"""Variables of the optimizer: linear maps with their inverses, and every optimizer in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.errors import UserError
from jaxstyle.losses.objective import Evaluation, Terms
from jaxstyle.optimizers import catalogue, parametrization
from jaxstyle.optimizers.base import Iterate, Visit
from jaxstyle.optimizers.quasi_newton import lbfgs

SHAPES = [(8, 8, 3), (7, 10, 3), (10, 7, 3), (13, 11, 3), (1, 5, 3)]
TEXTS = ["fourier:exponent=0.35", "fourier:exponent=1.5", "pyramid", "pyramid:levels=3"]
RNG = np.random.default_rng(0)
GOAL = RNG.uniform(50, 200, (9, 6, 3))


def quadratic(image):
    """Curvature that grows with the frequency along rows, as that of a loss of features does not."""
    smooth = 0.5 * jnp.sum((image - GOAL.astype(image.dtype)) ** 2)
    value = smooth + 2 * jnp.sum(jnp.diff(image, axis=0) ** 2)
    return value


def visiting(low=-jnp.inf, high=jnp.inf):
    def go(image):
        image = jnp.clip(image, low, high)
        value, gradient = jax.value_and_grad(quadratic)(image)
        return Iterate(image, Evaluation(value, Terms(value, 0 * value, 0 * value), gradient))

    return Visit(go)


#: Compiled once.
EVALUATE = jax.jit(visiting().go)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", TEXTS)
def test_an_image_comes_back_from_its_variables(text, shape):
    encode, decode = parametrization.parse(text)
    with jax.enable_x64(True):
        image = jnp.asarray(RNG.uniform(0, 255, shape))
        np.testing.assert_allclose(jax.jit(lambda x: decode(shape, encode(x)))(image), image, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fourier_map_is_numpys_transform_times_a_power_of_frequency_of_mean_square_one(shape):
    exponent, (height, width, _) = 0.35, shape
    with jax.enable_x64(True):
        decode = parametrization.fourier(exponent).decode
        variables = RNG.normal(size=shape)
        found = jax.jit(functools.partial(decode, shape))(variables)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    scales = np.maximum(np.hypot(rows, columns), 1 / max(height, width)) ** -exponent
    scales /= np.sqrt(np.mean(scales**2))
    expected = np.fft.ifft2(scales[..., None] * np.fft.fft2(variables, axes=(0, 1)), axes=(0, 1))
    np.testing.assert_allclose(expected.imag, 0, atol=1e-9)
    np.testing.assert_allclose(found, expected.real, atol=1e-9)


@pytest.mark.parametrize("text", TEXTS)
def test_gradients_in_variables_agree_with_finite_differences(text):
    encode, decode = parametrization.parse(text)
    with jax.enable_x64(True):
        optimizer = parametrization.within(parametrization.Parametrization(encode, decode), spy())
        start = visiting()(jnp.asarray(RNG.uniform(0, 255, GOAL.shape)))
        seen = jax.jit(optimizer.init)(start).inner
        direction = jnp.asarray(RNG.normal(size=seen.image.shape))

        @jax.jit
        def loss(t):
            return quadratic(decode(GOAL.shape, seen.image + t * direction))

        slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
        np.testing.assert_allclose(jnp.vdot(seen.evaluation.gradient, direction), slope, rtol=1e-6)


def spy():
    """An optimizer whose state is the iterate that it was given."""
    optimizer = lbfgs()
    return optimizer._replace(init=lambda iterate: iterate)


def test_l_bfgs_in_variables_is_l_bfgs_in_pixels_with_another_first_matrix():
    """Against the two-loop recursion of Nocedal and Wright, algorithm 7.4, in NumPy, whose H₀ is γ D Dᵀ."""
    steps, size = 6, GOAL.size
    with jax.enable_x64(True):
        decode = parametrization.fourier(0.35).decode
        optimizer = parametrization.within(parametrization.fourier(0.35), lbfgs(history_size=4))
        iterate = jax.jit(visiting().go)(jnp.full(GOAL.shape, 30.0))
        state, found = jax.jit(optimizer.init)(iterate), []
        step = jax.jit(functools.partial(optimizer.step, visiting()))
        for _ in range(steps + 1):
            found.append((np.ravel(iterate.image), np.ravel(iterate.evaluation.gradient)))
            iterate, state, *_ = step(iterate, state)
        rows = jnp.eye(size).reshape(size, *GOAL.shape)
        decoded = jax.jit(jax.vmap(functools.partial(decode, GOAL.shape)))(rows)
        matrix = np.asarray(decoded).reshape(size, size).T
    metric = matrix @ matrix.T
    for k in range(2, steps):
        pairs = [(found[i + 1][0] - found[i][0], found[i + 1][1] - found[i][1]) for i in range(k)][-4:]
        q, alphas = found[k][1].copy(), []
        for s, y in reversed(pairs):
            alphas.append(s @ q / (s @ y))
            q -= alphas[-1] * y
        s, y = pairs[-1]
        r = (s @ y) / (y @ metric @ y) * (metric @ q)
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            r += s * (alpha - y @ r / (s @ y))
        moved = found[k + 1][0] - found[k][0]
        cosine = -(moved @ r) / np.linalg.norm(moved) / np.linalg.norm(r)
        assert cosine > 1 - 1e-9


@pytest.mark.parametrize("text", ["fourier:exponent=0.35", "pyramid:levels=3"])
@pytest.mark.parametrize(
    "name",
    [
        *("lbfgs", "lbfgs:scaling=spectral", "optax-lbfgs", "scipy-lbfgs", "nonlinear-cg"),
        *("adam", "rmsprop", "momentum"),
    ],
)
def test_optimizers_find_the_minimum_in_variables(name, text):
    rate = {"momentum": ":learning_rate=0.003", "adam": ":learning_rate=5", "rmsprop": ":learning_rate=4"}
    spec = catalogue.parse(f"{name}{rate.get(name, '')}@{text}")
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)
    on_host = name in catalogue.ON_HOST
    visit = Visit(EVALUATE) if on_host else visiting()
    iterate = EVALUATE(jnp.full(GOAL.shape, 30.0))
    init = optimizer.init if on_host else jax.jit(optimizer.init)
    first, state = float(iterate.evaluation.total), init(iterate)
    step = functools.partial(optimizer.step, visit)
    step = step if on_host else jax.jit(step)
    for _ in range(40):
        iterate, state, *_ = step(iterate, state)
    best = np.linalg.solve(*normal_equations())
    lowest = float(quadratic(jnp.asarray(best.reshape(GOAL.shape), jnp.float32)))
    assert iterate.image.shape == GOAL.shape
    assert iterate.evaluation.total - lowest < 0.05 * (first - lowest)
    np.testing.assert_allclose(iterate.evaluation.total, quadratic(iterate.image), rtol=1e-4)


@functools.cache
def normal_equations():
    """The Hessian of `quadratic` and its right-hand side."""
    with jax.enable_x64(True):
        zero = jnp.zeros(GOAL.shape)
        hessian = jax.jit(jax.hessian(quadratic))(zero).reshape(GOAL.size, GOAL.size)
        return np.asarray(hessian), -np.ravel(jax.jit(jax.grad(quadratic))(zero))


@pytest.mark.parametrize("name", ["lbfgs", "adam:learning_rate=3"])
@pytest.mark.parametrize("text", ["fourier:exponent=0.35", "pyramid:levels=3"])
def test_clipped_iterates_stay_in_range_and_come_near_its_minimum(name, text):
    low, high = 80.0, 150.0
    spec = catalogue.parse(f"{name}@{text}")
    optimizer, visit = catalogue.build(spec.name, spec.static)(**spec.traced), visiting(low, high)
    iterate = jax.jit(visit.go)(jnp.full(GOAL.shape, 100.0))
    first, state = iterate.evaluation.total, jax.jit(optimizer.init)(iterate)
    step = jax.jit(functools.partial(optimizer.step, visit))
    for _ in range(150):
        iterate, state, *_ = step(iterate, state)
        image = np.asarray(iterate.image)
        assert low <= image.min() <= image.max() <= high
    best = quadratic(minimum_between(low, high))
    assert iterate.evaluation.total - best < 0.02 * (first - best)


@functools.cache
def minimum_between(low, high):
    """Of `quadratic`, by projected gradient descent."""

    def descend(_, image):
        return jnp.clip(image - 0.05 * jax.grad(quadratic)(image), low, high)

    return jax.jit(lambda image: jax.lax.fori_loop(0, 3000, descend, image))(jnp.full(GOAL.shape, 100.0))


@pytest.mark.parametrize("name", ["lbfgs", "adam:learning_rate=3"])
@pytest.mark.parametrize("text", ["fourier:exponent=0.35", "pyramid:levels=3"])
def test_a_state_in_variables_grows_to_another_size(name, text):
    spec = catalogue.parse(f"{name}@{text}")
    optimizer = catalogue.build(spec.name, spec.static)(**spec.traced)
    before = EVALUATE(jnp.full(GOAL.shape, 30.0))

    def larger(image):
        value, gradient = jax.value_and_grad(lambda x: 0.5 * jnp.sum((x - 90) ** 2))(image)
        return Iterate(image, Evaluation(value, Terms(value, 0 * value, 0 * value), gradient))

    @jax.jit
    def grow(before):
        after = larger(jnp.full((14, 9, 3), 40.0))
        state = optimizer.carry(optimizer.init(before), after)
        return after, state, optimizer.init(after), optimizer.step(Visit(larger), after, state)

    after, state, fresh, outcome = grow(before)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, fresh)
    assert outcome.iterate.evaluation.total < after.evaluation.total


def test_pixels_are_the_optimizer_itself():
    assert parametrization.parse("pixels") is None
    optimizer = lbfgs()
    assert parametrization.within(None, optimizer) is optimizer
    assert catalogue.parse("lbfgs@pixels") == catalogue.parse("lbfgs")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lbfgs@", "there is no ''"),
        ("lbfgs@waves", "there is no 'waves'; there are pixels, fourier, pyramid"),
        ("lbfgs@fourier:power=1", "fourier has no 'power'; it has exponent"),
        ("lbfgs@fourier:exponent=x", "exponent must be from"),
        ("lbfgs@fourier:exponent=3", "exponent must be from"),
        ("lbfgs@pyramid:levels=1.5", "levels must be from"),
        ("lbfgs@pixels:a=1", "pixels has no 'a'"),
    ],
)
def test_what_is_no_parametrization_is_named_with_the_flag_that_has_it(text, named):
    with pytest.raises(UserError, match=f"^--optimizer={text}: {named}"):
        catalogue.parse(text)
    variables = text.partition("@")[2]
    with pytest.raises(UserError, match=f"^--parametrization={variables}: {named}"):
        parametrization.parse(variables)


def test_a_specification_says_its_own_or_takes_the_given_one_or_what_suits():
    def variables(*arguments):
        return dict(catalogue.parse(*arguments).static).get("parametrization", "pixels")

    assert variables("adam@pyramid", "gatys", "fourier") == "pyramid"
    assert variables("adam", "gatys", "fourier") == "fourier"
    assert variables("adam", "gatys", None) == "pixels"
    assert variables("lbfgs", "gatys", None).startswith("fourier")
    assert variables("lbfgs:scaling=spectral", "gatys", None).startswith("fourier")
    assert variables("lbfgs", "ivanov2017", None) == "pixels"
    assert variables("lbfgs", "gatys") == "pixels"


def test_fourier_variables_have_the_same_bits_each_time():
    """Beside other work, so that now one thread comes upon them and now another."""
    image = jnp.asarray(np.random.default_rng(5).uniform(0, 255, (400, 403, 3)).astype(np.float32))
    decode = parametrization.parse("fourier").decode
    both = jax.jit(
        lambda image, other: (decode(image.shape, image), decode(image.shape, image + 1), other @ other)
    )
    found = {np.asarray(part).tobytes() for _ in range(40) for part in both(image, jnp.ones((400, 400)))[:2]}
    assert len(found) == 2
