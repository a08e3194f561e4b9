"""The training step: a state in, a state and its metrics out, whatever the optimizer.

    program = training.program(GATYS, spec.name, spec.static)
    state = program.init(problem, image, hyperparameters)
    state, metrics = program.step(problem, state)

Both are pure. `init` evaluates the start image, so that row 0 of a run is the loss there, and every later row costs
the evaluations of one step. Hyperparameters live in the state as arrays: `jax.vmap` over them is a sweep.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxstyle import convolution, objective, optimizers
from jaxstyle.line_search import Iterate

Scalar = Float[Array, ""]
Image = Float[Array, "height width 3"]


class TransferState(NamedTuple):
    """Everything that a step needs besides the problem."""

    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    iterate: Iterate
    optimizer: Any
    hyperparameters: Mapping[str, Array]
    diverged: Bool[Array, ""]
    converged: Bool[Array, ""]


class Metrics(NamedTuple):
    """The losses AT the iterate of `step`, and what has been spent to get there.

    Once `diverged`, the iterate stays the last one whose loss and gradient were finite.
    """

    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    total: Scalar
    content: Scalar
    style: Scalar
    tv: Scalar
    diverged: Bool[Array, ""]
    converged: Bool[Array, ""]


class Program(NamedTuple):
    """A pair of pure functions of a problem."""

    init: Callable[[objective.Problem, Image, Mapping[str, Array]], TransferState]
    step: Callable[[objective.Problem, TransferState], tuple[TransferState, Metrics]]


def metrics(state: TransferState) -> Metrics:
    """What a run records of a state."""
    evaluation = state.iterate.evaluation
    return Metrics(
        state.step,
        state.evaluations,
        evaluation.total,
        *evaluation.terms,
        state.diverged,
        state.converged,
    )


def _is_finite(iterate: Iterate) -> Bool[Array, ""]:
    evaluation = iterate.evaluation
    return jnp.isfinite(evaluation.total) & jnp.all(jnp.isfinite(evaluation.gradient))


@functools.cache
def program(
    form: objective.Form, name: str, static: tuple[tuple[str, bool | int | str], ...] = ()
) -> Program:
    """The initial state and the step for a form of the losses and an optimizer (see `optimizers.parse`).

    The same arguments give the same functions, so that compiled programs are shared. For an optimizer in
    `optimizers.ON_HOST` the step is not traceable: only its evaluations are compiled.
    """
    build = optimizers.build(name, static)
    evaluate = functools.partial(objective.evaluate, form)
    if name in optimizers.ON_HOST:
        evaluate = convolution.jit(evaluate)

    def init(problem: objective.Problem, image: Image, hyperparameters: Mapping[str, Array]) -> TransferState:
        start = Iterate(image, evaluate(problem, image))
        return TransferState(
            step=jnp.int32(0),
            evaluations=jnp.int32(1),
            iterate=start,
            optimizer=build(**hyperparameters).init(start),
            hyperparameters=hyperparameters,
            diverged=~_is_finite(start),
            converged=jnp.bool_(False),
        )

    def step(problem: objective.Problem, state: TransferState) -> tuple[TransferState, Metrics]:
        optimizer = build(**state.hyperparameters)
        outcome = optimizer.step(functools.partial(evaluate, problem), state.iterate, state.optimizer)
        diverged = state.diverged | ~_is_finite(outcome.iterate)
        new = TransferState(
            step=state.step + 1,
            evaluations=state.evaluations + outcome.evaluations,
            iterate=jax.tree.map(
                lambda old, new: jnp.where(diverged, old, new), state.iterate, outcome.iterate
            ),
            optimizer=outcome.state,
            hyperparameters=state.hyperparameters,
            diverged=diverged,
            converged=state.converged | outcome.converged,
        )
        return new, metrics(new)

    return Program(init, step)


def run(
    form: objective.Form,
    problem: objective.Problem,
    image: Image,
    spec: optimizers.Spec,
    steps: int,
) -> tuple[Image, Metrics]:
    """Runs an optimizer from a start image.

    Args:
      form: the formulas of the losses.
      problem: see `objective.pose`.
      image: the start image, RGB in [0, 255].
      spec: see `optimizers.parse`; not one that needs a random key.
      steps: iterations.

    Returns:
      The last image, not clipped to [0, 255], and the metrics of all steps + 1 iterates, each field [steps + 1].
    """
    init, step = program(form, spec.name, spec.static)
    if spec.name not in optimizers.ON_HOST:
        init, step = convolution.jit(init), convolution.jit(step, donate_argnums=1)
    state = init(problem, jnp.array(image), {k: jnp.float32(v) for k, v in spec.traced.items()})
    rows = [jax.device_get(metrics(state))]  # before the step is given the state's buffers
    for _ in range(steps):
        state, row = step(problem, state)
        rows.append(row)
    return state.iterate.image, jax.tree.map(lambda *column: jnp.stack(column), *rows)
