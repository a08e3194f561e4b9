"""The variables in which an optimizer sees the image.

    optimizer = within(parse("fourier:exponent=0.5"), lbfgs())

is L-BFGS on the variables z of x = D z, for a linear D. Its steps are those of L-BFGS on the pixels x whose first
matrix is a multiple of D Dᵀ in place of the identity; any other optimizer's too are those of another metric.
Mordvintsev et al. 2018, "Differentiable Image Parameterizations", has such variables for gradient ascent.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxstyle.errors import UserError
from jaxstyle.optimizers.base import Image, Iterate, Optimizer, Outcome, Visit
from jaxstyle.optimizers.fourier import multiply, power_law

Variables = Float[Array, "rows columns 3"]


class Parametrization(NamedTuple):
    """Two linear functions: `decode` gives an image, and `encode` variables of it, `decode(encode(x))` = x.

    `decode` is also given the image's shape, where several images have variables of one shape.
    """

    encode: Callable[[Image], Variables]
    decode: Callable[[tuple[int, ...], Variables], Image]


# --- Fourier ------------------------------------------------------------------------------------------------------


def fourier(exponent: float = 0.5) -> Parametrization:
    """x = F⁻¹ S F z with the two-dimensional Fourier transform F of each colour and S = f^−exponent.

    f is the radial frequency in cycles per pixel, at least one over the longer side; S has a mean square of 1. D is
    symmetric and positive: its variables are an image themselves, in which coarse changes are cheap.
    """
    return Parametrization(
        lambda image: _filter(image, -exponent), lambda shape, variables: _filter(variables, exponent)
    )


def _filter(image: Image, exponent: float) -> Image:
    """F⁻¹ S F of an image, with S of a negative exponent the inverse of that of the positive one."""
    height, width, _ = image.shape
    scales = power_law(height, width, abs(exponent)).astype(image.dtype)
    scales = scales if exponent > 0 else 1 / scales
    return multiply(image, scales.T[None])


# --- pyramid ------------------------------------------------------------------------------------------------------


def pyramid(levels: int = 5) -> Parametrization:
    """x = Σ of images of halved sizes, each enlarged to the whole. More variables than pixels.

    They lie in one array, as in Williams 1983, "Pyramidal Parametrics": the first above, the others beside it below.
    """
    return Parametrization(
        functools.partial(_embed, levels=levels), functools.partial(_sum_levels, levels=levels)
    )


def _halves(shape: tuple[int, ...], levels: int) -> list[tuple[int, int]]:
    """(height, width) of the levels after the first."""
    return [(-(-shape[0] // 2**k), -(-shape[1] // 2**k)) for k in range(1, levels)]


def _embed(image: Image, levels: int) -> Variables:
    width, halves = image.shape[1], _halves(image.shape, levels)
    below = max((each for each, _ in halves), default=0)
    wider = max(sum(each for _, each in halves) - width, 0)
    return jnp.pad(image, ((0, below), (0, wider), (0, 0)))


def _sum_levels(shape: tuple[int, ...], variables: Variables, levels: int) -> Image:
    height, width, _ = shape
    image, left = variables[:height, :width], 0
    for rows, columns in _halves(shape, levels):
        level = variables[height : height + rows, left : left + columns]
        image += jax.image.resize(level, shape, "linear")
        left += columns
    return image


# --- names --------------------------------------------------------------------------------------------------------


#: By name, what makes one of its numbers, with their ranges.
PARAMETRIZATIONS: Mapping[str, tuple[Callable[..., Parametrization] | None, Mapping[str, tuple]]] = {
    "pixels": (None, {}),
    "fourier": (fourier, {"exponent": (float, 0.01, 2.0)}),
    "pyramid": (pyramid, {"levels": (int, 2, 12)}),
}


def parse(text: str, flag: str | None = None) -> Parametrization | None:
    """Reads `NAME` or `NAME:key=value`; None for `pixels`.

    Args:
      text: the specification.
      flag: that has it, for errors; by default `--parametrization`.

    Raises:
      UserError: an unknown name or number, or one that is out of range.
    """
    flag = flag or f"--parametrization={text}"
    name, _, rest = text.strip().partition(":")
    if name not in PARAMETRIZATIONS:
        raise UserError(f"{flag}: there is no {name!r}; there are {', '.join(PARAMETRIZATIONS)}")
    make, ranges = PARAMETRIZATIONS[name]
    values = {}
    for item in filter(None, rest.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in ranges:
            raise UserError(f"{flag}: {name} has no {key!r}; it has {', '.join(ranges) or 'none'}")
        kind, lowest, highest = ranges[key]
        try:
            values[key] = kind(value)
        except ValueError:
            values[key] = math.nan
        if not lowest <= values[key] <= highest:
            raise UserError(f"{flag}: {key} must be from {lowest} to {highest}, not {value!r}")
    return make and make(**values)


# --- the seam -----------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """What an iterate in variables carries in place of the terms of its loss, which no optimizer reads.

    Attributes:
      iterate: the same in pixels.
      free: where `visit` left the trial's pixels as they were.
    """

    iterate: Iterate
    free: Bool[Array, "height width 3"]


class WithinState(NamedTuple):
    """The variables of the iterate, the gradient there, and the state of the optimizer that sees them."""

    variables: Variables
    gradient: Variables
    inner: Any


# Compiled by themselves, for an optimizer whose step is not: it would compile the branches at every call.


@functools.partial(jax.jit, static_argnums=0)
def _encoded(parametrization: Parametrization, image: Image) -> Variables:
    return parametrization.encode(image)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(parametrization: Parametrization, shape: tuple[int, ...], variables: Variables) -> Image:
    return parametrization.decode(shape, variables)


@functools.partial(jax.jit, static_argnums=0)
def _seen(
    parametrization: Parametrization,
    variables: Variables,
    iterate: Iterate,
    free: Bool[Array, "height width 3"],
) -> Iterate:
    """An iterate in pixels as one in variables."""
    gradient = iterate.evaluation.gradient
    _, pull = jax.vjp(functools.partial(parametrization.decode, gradient.shape), variables)
    evaluation = iterate.evaluation._replace(terms=Held(iterate, free), gradient=pull(gradient)[0])
    return Iterate(variables, evaluation)


@functools.partial(jax.jit, static_argnums=0)
def _settled(parametrization: Parametrization, variables: Variables, image: Image, found: Iterate) -> Iterate:
    """What `visit` found at an image, in variables; moved where it moved pixels."""
    free = found.image == image
    moved = jax.lax.cond(
        jnp.all(free),
        lambda: jnp.zeros_like(variables),
        lambda: parametrization.encode(found.image - image),
    )
    return _seen(parametrization, variables + moved, found, free)


def _everywhere(parametrization: Parametrization, variables: Variables, iterate: Iterate) -> Iterate:
    """An iterate in pixels, of which none was moved, as one in variables."""
    return _seen(parametrization, variables, iterate, jnp.ones(iterate.image.shape, bool))


def _known(state: WithinState, iterate: Iterate) -> Iterate:
    """The iterate of a state, in variables, as `_everywhere` found it."""
    held = Held(iterate, jnp.ones(iterate.image.shape, bool))
    evaluation = iterate.evaluation._replace(terms=held, gradient=state.gradient)
    return Iterate(state.variables, evaluation)


def _in_variables(parametrization: Parametrization, shape: tuple[int, ...], visit: Visit) -> Visit:
    """The objective of images of a shape, as an optimizer on variables is given it."""

    def go(variables: Variables) -> Iterate:
        image = _decoded(parametrization, shape, variables)
        found = visit(image)
        if visit.free is None:
            return _everywhere(parametrization, variables, found)
        return _settled(parametrization, variables, image, found)

    def free(variables: Variables, found: Iterate, direction: Variables) -> Variables:
        del variables
        mask = found.evaluation.terms.free
        return jax.lax.cond(
            jnp.all(mask),
            lambda: direction,
            lambda: _encoded(
                parametrization, jnp.where(mask, _decoded(parametrization, shape, direction), 0)
            ),
        )

    return Visit(go, visit.free and free)


def within(parametrization: Parametrization | None, optimizer: Optimizer) -> Optimizer:
    """The optimizer on the variables of a parametrization, as one on images; itself for None."""
    if parametrization is None:
        return optimizer

    def encoded(iterate: Iterate) -> Iterate:
        return _everywhere(parametrization, _encoded(parametrization, iterate.image), iterate)

    def state_at(seen: Iterate, inner: Any) -> WithinState:
        return WithinState(seen.image, seen.evaluation.gradient, inner)

    def init(iterate: Iterate) -> WithinState:
        seen = encoded(iterate)
        return state_at(seen, optimizer.init(seen))

    def step(visit: Visit, iterate: Iterate, state: WithinState) -> Outcome:
        inner = _in_variables(parametrization, iterate.image.shape, visit)
        outcome = optimizer.step(inner, _known(state, iterate), state.inner)
        seen = outcome.iterate
        return outcome._replace(iterate=seen.evaluation.terms.iterate, state=state_at(seen, outcome.state))

    def carry(state: WithinState, iterate: Iterate) -> WithinState:
        seen = encoded(iterate)
        return state_at(seen, optimizer.carry(state.inner, seen))

    return Optimizer(init, step, carry, lambda state: optimizer.stepsize(state.inner))
