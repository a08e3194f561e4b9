"""Methods with a line search: the evaluations that the search needs, one place in the program.

This is the only file that knows jaxopt.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Int

from jaxstyle.network.convolution import parts
from jaxstyle.optimizers import spectral
from jaxstyle.optimizers.base import Image, Iterate, Optimizer, Outcome, Scalar, Visit, inner
from jaxstyle.optimizers.line_search import Conditions, Search, wolfe

#: Root mean square, in pixel levels, of the first move along a direction whose length means nothing.
FIRST_MOVE = 1.0


class QuasiNewtonState(NamedTuple):
    """`memory` is the library's own state; `fresh` tells that it holds no curvature."""

    memory: Any
    fresh: Bool[Array, ""]


def _or_empty(search: Search, memory: Any, init: Callable[[Iterate], Any]) -> Any:
    """The memory after a search, emptied where that failed: not by a `where`, which would write all of it."""
    return jax.lax.cond(search.accepted, lambda: memory, lambda: init(search.iterate))


def _unscaled(direction: Image) -> Scalar:
    """A step size for a direction whose length means nothing."""
    return FIRST_MOVE / jnp.sqrt(jnp.mean(direction**2))


def _restarting(
    init: Callable[[Iterate], Any],
    advance: Callable[[Visit, Iterate, Any, Bool[Array, ""]], tuple[Search, Any]],
) -> Optimizer:
    """A method with a memory that is forgotten where its line search fails.

    `advance(visit, iterate, memory, fresh)` gives the search and the memory after it, an empty one where it failed.
    Failing with an empty memory, along steepest descent, and without progress means that the iterate has converged.
    """

    def step(visit: Visit, iterate: Iterate, state: QuasiNewtonState) -> Outcome:
        search, memory = advance(visit, iterate, state.memory, state.fresh)
        stuck = ~search.accepted & (search.stepsize == 0)
        return Outcome(
            search.iterate,
            QuasiNewtonState(memory, ~search.accepted),
            search.evaluations,
            stuck & state.fresh,
        )

    def fresh(iterate: Iterate) -> QuasiNewtonState:
        return QuasiNewtonState(init(iterate), jnp.bool_(True))

    # Curvature of another size is none of the new one's.
    return Optimizer(fresh, step, lambda _, iterate: fresh(iterate))


class Scaling(NamedTuple):
    """The first matrix of L-BFGS, made of corrections; what makes it is kept where jaxopt's state has γ."""

    init: Callable[[Image], Any]
    update: Callable[[Any, Image, Image], Any]
    multiply: Callable[[Any, Image], Image]


def _scalar(gamma: Scalar, move: Image, change: Image) -> Scalar:
    """Nocedal and Wright, equation 7.20."""
    del gamma
    squares = inner(change, change)
    return jnp.where(squares > 0, inner(change, move) / squares, 1)


SCALINGS = {
    "scalar": Scaling(lambda image: jnp.ones((), image.dtype), _scalar, lambda gamma, image: gamma * image),
    "spectral": Scaling(spectral.init, spectral.update, spectral.multiply),
}


#: How corrections are kept: as images are, or as the bits of bfloat16, whose arrays XLA would widen whole on a CPU.
HISTORIES = ("float32", "bfloat16")


def _kept(image: Image, history: Array) -> Array:
    """An image as a history keeps it."""
    if history.dtype != jnp.uint16:
        return image
    rounded = jax.lax.reduce_precision(image, exponent_bits=8, mantissa_bits=7)
    return (jax.lax.bitcast_convert_type(rounded, jnp.uint32) >> 16).astype(jnp.uint16)


def _seen(kept: Array) -> Image:
    """The image that `_kept` was given, to the precision of the history."""
    if kept.dtype != jnp.uint16:
        return kept
    return jax.lax.bitcast_convert_type(kept.astype(jnp.uint32) << 16, jnp.float32)


def _downhill(memory: Any, scaling: Scaling) -> Image:
    """-H times the gradient, by the two loops of Nocedal and Wright, algorithm 7.4, from a state of jaxopt's."""
    moves, changes, weights = memory.s_history, memory.y_history, memory.rho_history
    from_oldest = (memory.iter_num + jnp.arange(len(weights))) % len(weights)

    def back(rest: Image, i: Int[Array, ""]) -> tuple[Image, Scalar]:
        alpha = weights[i] * inner(_seen(moves[i]), rest)
        return rest - alpha * _seen(changes[i]), alpha

    def forth(found: Image, at: tuple[Int[Array, ""], Scalar]) -> tuple[Image, None]:
        i, alpha = at
        beta = weights[i] * inner(_seen(changes[i]), found)
        return found + (alpha - beta) * _seen(moves[i]), None

    # The gradient as the search found it: pulled into other variables once more, its last bits differ.
    rest, alphas = jax.lax.scan(back, -memory.grad, from_oldest, reverse=True)
    found, _ = jax.lax.scan(forth, scaling.multiply(memory.gamma, rest), (from_oldest, alphas))
    return found


def _remember(memory: Any, before: Image, search: Search, scaling: Scaling) -> Any:
    """jaxopt's state after a step from an image; what only jaxopt's loop reads stays as it began.

    The history is written in place, as copies of it would cost as much memory again. So where the search failed, its
    images stay, and weigh nothing.
    """
    image, (_, _, gradient) = search.iterate
    move = _kept(jnp.where(search.accepted, image - before, 0), memory.s_history)
    change = _kept(jnp.where(search.accepted, gradient - memory.grad, 0), memory.y_history)
    curvature = inner(_seen(move), _seen(change))
    slot = memory.iter_num % len(memory.rho_history)
    # Held: what is read of them below would else be computed from the history before, which would be kept for that.
    moves, changes = jax.lax.optimization_barrier(
        (memory.s_history.at[slot].set(move), memory.y_history.at[slot].set(change))
    )
    weights = memory.rho_history.at[slot].set(jnp.where(curvature == 0, 0, 1 / curvature))
    # From the history as in jaxopt: from `move` and `change` γ's last bits would differ.
    gamma = scaling.update(memory.gamma, _seen(moves[slot]), _seen(changes[slot]))
    count, stepsize, weights, gamma = jax.tree.map(
        lambda known, empty: jnp.where(search.accepted, known, empty),
        (memory.iter_num + 1, search.stepsize, weights, gamma),
        (0, 0.0, jnp.zeros_like(weights), scaling.init(image)),
    )
    return memory._replace(
        iter_num=count,
        grad=gradient,
        stepsize=stepsize,
        s_history=moves,
        y_history=changes,
        rho_history=weights,
        gamma=gamma,
    )


def lbfgs(
    history_size: int = 10,
    max_evaluations: int = 20,
    sufficient_decrease: float = 1e-4,
    curvature: float = 0.9,
    scaling: str = "scalar",
    history: str = "float32",
) -> Optimizer:
    """jaxopt's L-BFGS, with one γ to the bit. Nocedal and Wright, "Numerical Optimization", algorithm 7.5.

    The state is jaxopt's. Its own step takes products of flattened images; see `inner`.

    Args:
      history_size: corrections kept.
      max_evaluations: of one line search.
      sufficient_decrease, curvature: c₁ and c₂ of the Wolfe conditions.
      scaling: of the first matrix: `scalar`, or by frequency and colour `spectral`.
      history: one of `HISTORIES`. What is computed of a correction is of it as it is kept.
    """
    first = SCALINGS[scaling]
    conditions = Conditions(sufficient_decrease, curvature)

    def init(iterate: Iterate) -> Any:
        import jaxopt  # here, as only this optimizer should wait for it

        total, _, gradient = iterate.evaluation
        solver = jaxopt.LBFGS(
            lambda _: (total, gradient), value_and_grad=True, history_size=history_size, max_stepsize=0.0
        )
        memory = solver.init_state(iterate.image)._replace(gamma=first.init(iterate.image))
        if history == "bfloat16":
            memory = memory._replace(
                s_history=memory.s_history.astype(jnp.uint16), y_history=memory.y_history.astype(jnp.uint16)
            )
        return memory

    def advance(visit: Visit, iterate: Iterate, memory: Any, fresh: Bool[Array, ""]):
        direction = _downhill(memory, first)
        # A quasi-Newton direction has its length: the first trial is always 1.
        first_trial = jnp.where(fresh, _unscaled(direction), 1.0)
        found = wolfe(visit, iterate, direction, first_trial, conditions, max_evaluations)
        return found, _remember(memory, iterate.image, found, first)

    return _restarting(init, advance)._replace(stepsize=lambda state: state.memory.stepsize)


def _ratio(above: Scalar, below: Scalar) -> Scalar:
    """Their ratio, and 0, which forgets the direction before, where it is negative or cannot be told."""
    return jnp.where(below > 0, jnp.maximum(above / jnp.where(below > 0, below, 1), 0), 0)


def _hager_zhang(g: Image, after: Image, d: Image) -> Scalar:
    """The direction that it gives descends whatever the line search was. Hager and Zhang 2005, equation 1.3; not
    below 0.4 dᵀg / dᵀd, which has no unit (Hager and Zhang 2013, "The limited memory conjugate gradient method")."""
    y = after - g
    along, least = inner(d, y), 0.4 * inner(d, g) / inner(d, d)
    found = inner(y, after) / along - 2 * (inner(y, y) / along) * (inner(d, after) / along)
    return jnp.where(along > 0, jnp.maximum(found, least), 0)


#: Of nonlinear conjugate gradients: the coefficient of the direction before, from the gradients before and after and
#: that direction. Those but the first are Nocedal and Wright's, equations 5.45, 5.41a and 5.46.
COEFFICIENTS = {
    "hager-zhang": _hager_zhang,
    "polak-ribiere": lambda g, after, d: _ratio(inner(after - g, after), inner(g, g)),
    "fletcher-reeves": lambda g, after, d: _ratio(inner(after, after), inner(g, g)),
    "hestenes-stiefel": lambda g, after, d: _ratio(inner(after - g, after), inner(after - g, d)),
}


class ConjugateState(NamedTuple):
    """The gradient, the direction to go, and the step size and φ'(0) of the search before; 0 for none."""

    gradient: Image
    direction: Image
    stepsize: Scalar
    slope: Scalar


def nonlinear_cg(
    method: str = "hager-zhang",
    max_evaluations: int = 20,
    sufficient_decrease: float = 1e-4,
    curvature: float = 0.3,
) -> Optimizer:
    """Nonlinear conjugate gradients. Nocedal and Wright, algorithm 5.4; the first trial has the first-order change of
    the step before (section 3.5, "Initial step length").

    The line search's conditions are the strong ones: by the weak ones alone the next direction may ascend. jaxopt's
    own method is not used, as it divides by 1e-6 or more, which the squares of a gradient come to at a few hundred
    pixels: there it is nearly steepest descent.

    Args:
      method: one of `COEFFICIENTS`.
      max_evaluations, sufficient_decrease, curvature: as in `lbfgs`.
    """
    conditions = Conditions(sufficient_decrease, curvature, strong=True)

    def init(iterate: Iterate) -> ConjugateState:
        gradient, zero = iterate.evaluation.gradient, jnp.zeros_like(iterate.evaluation.total)
        return ConjugateState(gradient, -gradient, zero, zero)

    def advance(visit: Visit, iterate: Iterate, memory: ConjugateState, fresh: Bool[Array, ""]):
        direction = memory.direction
        slope = inner(memory.gradient, direction)
        like_before = memory.stepsize * jnp.clip(memory.slope / slope, 0.05, 20)
        first_trial = jnp.where(fresh, _unscaled(direction), like_before)
        found = wolfe(visit, iterate, direction, first_trial, conditions, max_evaluations)
        gradient = found.iterate.evaluation.gradient
        # Where a pixel was held back, it did not go there.
        gone = jnp.abs(found.iterate.image - iterate.image) >= 0.5 * found.stepsize * jnp.abs(direction)
        direction = jnp.where(gone, direction, 0)
        turned = COEFFICIENTS[method](memory.gradient, gradient, direction) * direction - gradient
        turned = jnp.where(inner(turned, gradient) < 0, turned, -gradient)
        return found, _or_empty(found, ConjugateState(gradient, turned, found.stepsize, slope), init)

    return _restarting(init, advance)._replace(stepsize=lambda state: state.memory.stepsize)


def _with_rows(tree: Any) -> Any:
    """Images and histories with empty rows below until the devices share them evenly.

    optax flattens them, and XLA would gather for that what lies in uneven parts.
    """

    def pad(leaf: Array) -> Array:
        if leaf.ndim < 3:
            return leaf
        missing = -leaf.shape[-3] % (parts() or 1)
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 3) + [(0, missing), (0, 0), (0, 0)])

    return jax.tree.map(pad, tree)


def _without_rows(tree: Any, height: int) -> Any:
    """Without the rows that `_with_rows` adds."""
    return jax.tree.map(lambda leaf: leaf[..., :height, :, :] if leaf.ndim >= 3 else leaf, tree)


def optax_lbfgs(
    memory_size: int = 10,
    max_evaluations: int = 20,
    sufficient_decrease: float = 1e-4,
    curvature: float = 0.9,
) -> Optimizer:
    """optax's L-BFGS direction on the line search that `lbfgs` has, so that the two differ in nothing else.

    Args:
      memory_size: corrections kept.
      max_evaluations, sufficient_decrease, curvature: as in `lbfgs`.
    """
    direction = optax.lbfgs(memory_size=memory_size, linesearch=None)
    conditions = Conditions(sufficient_decrease, curvature)

    def init(iterate: Iterate) -> Any:
        return direction.init(iterate.image)

    def advance(visit: Visit, iterate: Iterate, memory: Any, fresh: Bool[Array, ""]):
        given = iterate.evaluation.gradient, memory, iterate.image
        updates, memory = _without_rows(direction.update(*_with_rows(given)), len(iterate.image))
        first_trial = jnp.where(fresh, _unscaled(updates), 1.0)
        found = wolfe(visit, iterate, updates, first_trial, conditions, max_evaluations)
        return found, _or_empty(found, memory, init)

    return _restarting(init, advance)
