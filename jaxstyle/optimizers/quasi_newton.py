"""Methods with a line search: the evaluations that the search needs, one place in the program.

This is the only file that knows jaxopt.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import optax
from jax import Array
from jaxtyping import Bool, Int

from jaxstyle.optimizers.base import Image, Iterate, Optimizer, Outcome, Scalar, Visit
from jaxstyle.optimizers.line_search import wolfe

#: Root mean square, in pixel levels, of the first move along a direction whose length means nothing.
FIRST_MOVE = 1.0


class QuasiNewtonState(NamedTuple):
    """`memory` is the library's own state; `fresh` tells that it holds no curvature."""

    memory: Any
    fresh: Bool[Array, ""]


def _unscaled(direction: Image) -> Scalar:
    """A step size for a direction whose length means nothing."""
    return FIRST_MOVE / jnp.sqrt(jnp.mean(direction**2))


def _restarting(
    init: Callable[[Iterate], Any],
    advance: Callable[[Visit, Iterate, Any, Bool[Array, ""]], tuple[Any, Any]],
) -> Optimizer:
    """A method with a memory that is forgotten where its line search fails.

    `advance(visit, iterate, memory, fresh)` gives the search and the new memory. Failing with an empty memory,
    along steepest descent, and without progress means that the iterate has converged.
    """

    def step(visit: Visit, iterate: Iterate, state: QuasiNewtonState) -> Outcome:
        search, memory = advance(visit, iterate, state.memory, state.fresh)
        # Not a `where`, which would write the whole history at every step.
        memory = jax.lax.cond(search.accepted, lambda: memory, lambda: init(search.iterate))
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
    return Optimizer(fresh, step, lambda state, before, iterate: fresh(iterate))


class _LineSearchStep(NamedTuple):
    """What jaxopt's solvers read from a line search."""

    params: Image
    value: Scalar
    grad: Image
    aux: Any
    failed: Bool[Array, ""]
    iter_num: Int[Array, ""]
    num_fun_eval: Int[Array, ""]
    num_grad_eval: Int[Array, ""]


def _from_jaxopt(solver_type: type, search_options: Mapping[str, Any], **options: Any) -> Optimizer:
    """A jaxopt solver on our line search.

    jaxopt's own searches inline the objective up to six times and evaluate again where it is known. The solver's
    step size carries the first trial into the search, where 0 asks for `_unscaled`, and its `aux` the search out.
    """

    def make(evaluate: Callable[[Image], tuple]) -> Any:
        return solver_type(
            evaluate,
            value_and_grad=True,
            has_aux=True,
            linesearch_init="current",
            max_stepsize=0.0,
            implicit_diff=False,
            **options,
        )

    def init(iterate: Iterate) -> Any:
        total, _, gradient = iterate.evaluation
        return make(lambda _: ((total, None), gradient)).init_state(iterate.image)

    def advance(visit: Visit, iterate: Iterate, memory: Any, fresh: Bool[Array, ""]):
        def run_line_search(init_stepsize, params, value, grad, descent_direction, *_, **__):
            del params, value, grad
            unscaled = fresh | (init_stepsize <= 0)
            trial = jnp.where(unscaled, _unscaled(descent_direction), init_stepsize)
            search = wolfe(visit, iterate, descent_direction, trial, **search_options)
            image, (total, _, gradient) = search.iterate
            count, failed = search.evaluations, ~search.accepted
            step = _LineSearchStep(image, total, gradient, search, failed, count, count, count)
            return search.stepsize, step

        solver = make(visit)
        solver.run_ls = run_line_search
        _, memory = solver.update(iterate.image, memory)
        return memory.aux, memory._replace(aux=None)

    return _restarting(init, advance)._replace(stepsize=lambda state: state.memory.stepsize)


def lbfgs(
    history_size: int = 10,
    max_evaluations: int = 20,
    sufficient_decrease: float = 1e-4,
    curvature: float = 0.9,
) -> Optimizer:
    """jaxopt's L-BFGS. Nocedal and Wright, "Numerical Optimization", algorithm 7.5.

    Args:
      history_size: corrections kept.
      max_evaluations: of one line search.
      sufficient_decrease, curvature: c₁ and c₂ of the Wolfe conditions.
    """
    options = {
        "max_evaluations": max_evaluations,
        "sufficient_decrease": sufficient_decrease,
        "curvature": curvature,
    }
    optimizer = _from_jaxopt(jaxopt.LBFGS, options, history_size=history_size)

    def step(visit: Visit, iterate: Iterate, state: QuasiNewtonState) -> Outcome:
        # A quasi-Newton direction has its length: the first trial is always 1.
        memory = state.memory._replace(stepsize=jnp.ones_like(state.memory.stepsize))
        return optimizer.step(visit, iterate, state._replace(memory=memory))

    return optimizer._replace(step=step)


def nonlinear_cg(
    method: str = "polak-ribiere",
    max_evaluations: int = 20,
    sufficient_decrease: float = 1e-4,
    curvature: float = 0.1,
) -> Optimizer:
    """jaxopt's nonlinear conjugate gradients. Nocedal and Wright, algorithm 5.4.

    Args:
      method: polak-ribiere, fletcher-reeves or hestenes-stiefel.
      max_evaluations, sufficient_decrease, curvature: as in `lbfgs`.
    """
    options = {
        "max_evaluations": max_evaluations,
        "sufficient_decrease": sufficient_decrease,
        "curvature": curvature,
    }
    return _from_jaxopt(jaxopt.NonlinearCG, options, method=method)


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

    def advance(visit: Visit, iterate: Iterate, memory: Any, fresh: Bool[Array, ""]):
        updates, memory = direction.update(iterate.evaluation.gradient, memory, iterate.image)
        search = wolfe(
            visit,
            iterate,
            updates,
            jnp.where(fresh, _unscaled(updates), 1.0),
            max_evaluations=max_evaluations,
            sufficient_decrease=sufficient_decrease,
            curvature=curvature,
        )
        return search, memory

    return _restarting(lambda iterate: direction.init(iterate.image), advance)
