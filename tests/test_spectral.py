"""The first matrix of L-BFGS by frequency and colour."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.losses.objective import Evaluation, Terms
from jaxstyle.optimizers import spectral
from jaxstyle.optimizers.base import Iterate, Visit
from jaxstyle.optimizers.quasi_newton import lbfgs

SHAPES = [(16, 16, 3), (9, 14, 3), (14, 9, 3), (3, 40, 3), (1, 2, 3), (1, 1, 3)]
RNG = np.random.default_rng(3)

init, update, multiply = map(jax.jit, (spectral.init, spectral.update, spectral.multiply))


def positions(shape) -> np.ndarray:
    """Two bands in an octave, from one cycle over the longer side, on the whole plane of `fft2`."""
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None])
    return 2 * np.log2(np.maximum(radius * max(shape[:2]), 1))


def by_axis(image) -> np.ndarray:
    """F of light, red less blue and red and blue less green, each of length one."""
    red, green, blue = np.moveaxis(np.asarray(image, float), -1, 0)
    axes = [(red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red + blue - 2 * green) / 6**0.5]
    return np.fft.fft2(np.stack(axes), axes=(1, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_bands_share_out_the_power_of_all_frequencies(shape):
    with jax.enable_x64(True):
        move, change = (jnp.asarray(RNG.normal(size=shape)) for _ in range(2))
        found = update(init(move), move, change)
    bands = found.moves.shape[1]
    for image, powers in ((move, found.moves), (change, found.changes)):
        power, place = np.abs(by_axis(image)) ** 2, positions(shape)
        shares = [np.maximum(1 - np.abs(place - k), 0) for k in range(bands)]
        np.testing.assert_allclose(powers, [[np.sum(p * s) for s in shares] for p in power], atol=1e-9)
        np.testing.assert_allclose(
            np.sum(np.asarray(powers)), shape[0] * shape[1] * np.sum(np.square(image)), rtol=1e-9
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_diagonal_multiplies_each_axis_of_colour_and_frequency(shape):
    with jax.enable_x64(True):
        image = jnp.asarray(RNG.normal(size=shape))
        whole = init(image)
        diagonal = RNG.uniform(0.1, 10, whole.diagonal.shape)
        found = multiply(whole._replace(diagonal=jnp.asarray(diagonal)), image)
    bands = np.arange(diagonal.shape[1])
    factors = [np.exp(np.interp(positions(shape), bands, np.log(row))) for row in diagonal]
    np.testing.assert_allclose(by_axis(found), factors * by_axis(image), atol=1e-9)


def test_a_diagonal_that_nothing_was_seen_of_is_the_identity():
    image = jnp.asarray(RNG.normal(size=(9, 14, 3)), jnp.float32)
    np.testing.assert_allclose(multiply(init(image), image), image, atol=1e-6)
    still = update(init(image), image, jnp.zeros_like(image))
    np.testing.assert_allclose(multiply(still, image), image, atol=1e-6)


def curved(image, shape, steepness):
    """A quadratic whose curvature is a power of the frequency, another for each axis of colour."""
    place, seen = positions(shape), jnp.matmul(image, spectral.AXES.T, precision="highest")
    factors = jnp.asarray(np.stack([k * 2 ** (p * place / 2) for k, p in steepness]))
    there = jnp.fft.fft2(seen, axes=(0, 1))
    return 0.5 * jnp.sum(jnp.moveaxis(factors, 0, -1) * jnp.abs(there) ** 2) / (shape[0] * shape[1])


STEEPNESS = [(1.0, 1.0), (3.0, -0.5), (30.0, 0.5)]


def test_the_diagonal_is_the_inverse_of_a_curvature_by_frequency_and_colour():
    shape = (24, 31, 3)
    with jax.enable_x64(True):
        move = jnp.asarray(RNG.normal(size=shape))
        change = jax.jit(jax.grad(lambda image: curved(image, shape, STEEPNESS)))(move)
        found = update(init(move), move, change)
        back = multiply(found, change)
    # But for what curvature varies within a band. One number for all is off by 0.78 at best.
    assert np.linalg.norm(back - move) < 0.05 * np.linalg.norm(move)


def walk(scaling: str, shape, steps: int) -> np.ndarray:
    def visit(image):
        value, gradient = jax.value_and_grad(lambda image: curved(image, shape, STEEPNESS))(image)
        return Iterate(image, Evaluation(value, Terms(value, 0 * value, 0 * value), gradient))

    optimizer, iterate = lbfgs(scaling=scaling), jax.jit(visit)(jnp.asarray(RNG.normal(size=shape)))
    state, step = jax.jit(optimizer.init)(iterate), jax.jit(functools.partial(optimizer.step, Visit(visit)))
    totals = [iterate.evaluation.total]
    for _ in range(steps):
        iterate, state, *_ = step(iterate, state)
        totals.append(iterate.evaluation.total)
    return np.array(totals)


def test_l_bfgs_with_spectral_scaling_needs_few_steps_where_curvature_differs_by_frequency_and_colour():
    with jax.enable_x64(True):
        scalar, spectral_ = walk("scalar", (24, 31, 3), 12), walk("spectral", (24, 31, 3), 12)
    assert spectral_[4] < 1e-3 * spectral_[0]
    assert spectral_[12] < 1e-3 * scalar[12]
