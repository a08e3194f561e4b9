"""The training step: a state in, a state and its metrics out, whatever the optimizer.

    program = training.program(GATYS, spec.name, spec.static)
    state = program.init(problem, image, hyperparameters)
    state, metrics = program.step(problem, state)

All are pure. `init` evaluates the start image, so that row 0 of a run is the loss there, and every later row costs
the evaluations of one step. Hyperparameters live in the state as arrays: `jax.vmap` over them is a sweep.

Where compiling counts, the step evaluates the start image too, so that one program alone holds the objective:

    seen, _ = program.step(problem, program.unseen(image, hyperparameters))
    state = program.settle(seen)
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from jaxstyle.losses import objective, rows, strips
from jaxstyle.losses.terms import Image, Scalar
from jaxstyle.network import convolution
from jaxstyle.optimizers import catalogue
from jaxstyle.optimizers.base import UNSEEN, Iterate, Optimizer, Visit, is_unseen, unmoved


class Keeper(NamedTuple):
    """Which image a run has made when it ends, as three pure functions of what was kept so far."""

    init: Callable[[Iterate], Any]
    update: Callable[[Any, Iterate], Any]
    image: Callable[[Any, Iterate], Image]


class Average(NamedTuple):
    """Σ dᵗ x over the iterates x, t steps ago, and Σ dᵗ."""

    image: Image
    weight: Scalar


#: What an iterate weighs in `KEEPERS["average"]` a step later.
DECAY = 0.99

KEEPERS = {
    "last": Keeper(lambda iterate: (), lambda kept, iterate: kept, lambda kept, iterate: iterate.image),
    "best": Keeper(
        lambda iterate: (iterate.image, iterate.evaluation.total),
        lambda kept, iterate: jax.tree.map(
            lambda old, new: jnp.where(iterate.evaluation.total < kept[1], new, old),
            kept,
            (iterate.image, iterate.evaluation.total),
        ),
        lambda kept, iterate: kept[0],
    ),
    "average": Keeper(
        lambda iterate: Average(iterate.image, jnp.float32(1)),
        lambda kept, iterate: Average(DECAY * kept.image + iterate.image, DECAY * kept.weight + 1),
        lambda kept, iterate: kept.image / kept.weight,
    ),
}


class TransferState(NamedTuple):
    """Everything that a step needs besides the problem.

    `kept` is what the keeper remembers; `choices`, where an image on its way has chosen of the style's targets anew,
    replace those of the problem: see `objective.taking`.
    """

    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    iterate: Iterate
    optimizer: Any
    hyperparameters: Mapping[str, Array]
    diverged: Bool[Array, ""]
    converged: Bool[Array, ""]
    kept: Any
    choices: Sequence[Mapping[str, Any]] = ()


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
    """Pure functions of a problem.

    `init` is the state to begin with at an image, or, given the state before of another shape, to go on with at its
    `enlarged` image; it costs one evaluation. `result` is the image that a run has made when it ends. `stepsize` is
    that of the last line search, or None: see `Optimizer`.

    The first `step` from an `unseen` state only evaluates its image, and `settle` turns the result into what `init`
    gives; where the loss is not finite it has diverged too, but has no terms. Not for an optimizer in
    `catalogue.ON_HOST`.
    """

    init: Callable[..., TransferState]
    step: Callable[[objective.Problem, TransferState], tuple[TransferState, Metrics]]
    result: Callable[[TransferState], Image]
    stepsize: Callable[[TransferState], Scalar | None]
    unseen: Callable[..., TransferState]
    enlarged: Callable[[Sequence[int], TransferState], Image]
    settle: Callable[..., TransferState]


def metrics(state: TransferState) -> Metrics:
    """What a run records of a state."""
    evaluation = state.iterate.evaluation
    return Metrics(
        state.step, state.evaluations, evaluation.total, *evaluation.terms, state.diverged, state.converged
    )


def _is_finite(iterate: Iterate) -> Bool[Array, ""]:
    evaluation = iterate.evaluation
    return jnp.isfinite(evaluation.total) & jnp.all(jnp.isfinite(evaluation.gradient))


class Method(NamedTuple):
    """What the parts of a program have in common. `draw` gives the problem of a step."""

    evaluate: Callable[[objective.Problem, Image], objective.Evaluation]
    draw: Callable[[objective.Problem, Int[Array, ""]], objective.Problem]
    clip: bool
    build: Callable[..., Optimizer]
    keeper: Keeper


def _visit(method: Method, problem: objective.Problem, image: Image) -> Iterate:
    image = jnp.clip(image, 0, 255) if method.clip else image
    return Iterate(image, method.evaluate(problem, image))


def _start(
    method: Method,
    start: Iterate,
    hyperparameters: Mapping[str, Array],
    before: TransferState | None = None,
    choices: Sequence[Mapping[str, Any]] = (),
) -> TransferState:
    """The state to begin with at a start, or to go on with from a state of another size."""
    optimizer = method.build(**hyperparameters)
    if before is None:
        step, evaluations, memory = jnp.int32(0), jnp.int32(1), optimizer.init(start)
    else:
        step, evaluations = before.step, before.evaluations + 1
        memory = optimizer.carry(before.optimizer, start)
    return TransferState(
        step=step,
        evaluations=evaluations,
        iterate=start,
        optimizer=memory,
        hyperparameters=hyperparameters,
        diverged=~_is_finite(start),
        converged=jnp.bool_(False),
        kept=method.keeper.init(start),
        choices=choices,
    )


def _init(
    method: Method,
    problem: objective.Problem,
    image: Image,
    hyperparameters: Mapping[str, Array],
    before: TransferState | None = None,
    choices: Sequence[Mapping[str, Any]] = (),
) -> TransferState:
    start = _visit(method, objective.taking(problem, choices), image)
    return _start(method, start, hyperparameters, before, choices)


def _unseen(
    method: Method,
    image: Image,
    hyperparameters: Mapping[str, Array],
    choices: Sequence[Mapping[str, Any]] = (),
) -> TransferState:
    zero, unseen = jnp.zeros((), image.dtype), jnp.full((), UNSEEN, image.dtype)
    nothing = objective.Evaluation(unseen, objective.Terms(zero, zero, zero), jnp.zeros_like(image))
    state = _start(method, Iterate(image, nothing), hyperparameters, choices=choices)
    return state._replace(evaluations=jnp.int32(0), diverged=jnp.bool_(False))


def _settle(method: Method, seen: TransferState, before: TransferState | None = None) -> TransferState:
    return _start(method, seen.iterate, seen.hyperparameters, before, seen.choices)


def _step(method: Method, problem: objective.Problem, state: TransferState) -> tuple[TransferState, Metrics]:
    optimizer, here = method.build(**state.hyperparameters), state.iterate.image
    unseen, problem = is_unseen(state.iterate), objective.taking(problem, state.choices)
    problem = method.draw(problem, state.step)

    def go(image: Image) -> Iterate:
        return _visit(method, problem, jnp.where(unseen, here, image))

    visit = Visit(go, unmoved if method.clip else None)
    outcome = optimizer.step(visit, state.iterate, state.optimizer)
    diverged = state.diverged | ~_is_finite(outcome.iterate)
    iterate, kept = jax.tree.map(
        lambda old, new: jnp.where(diverged, old, new),
        (state.iterate, state.kept),
        (outcome.iterate, method.keeper.update(state.kept, outcome.iterate)),
    )
    new = TransferState(
        step=state.step + 1,
        evaluations=state.evaluations + outcome.evaluations,
        iterate=iterate,
        optimizer=outcome.state,
        hyperparameters=state.hyperparameters,
        diverged=diverged,
        converged=state.converged | outcome.converged,
        kept=kept,
        choices=state.choices,
    )
    return new, metrics(new)


def _enlarged(method: Method, shape: Sequence[int], state: TransferState) -> Image:
    return jax.image.resize(_result(method, state), shape, "cubic")


def _stepsize(method: Method, state: TransferState) -> Scalar | None:
    return method.build(**state.hyperparameters).stepsize(state.optimizer)


def _result(method: Method, state: TransferState) -> Image:
    return method.keeper.image(state.kept, state.iterate)


def evaluation(form: objective.Form) -> Callable[[objective.Problem, Image], objective.Evaluation]:
    """Loss and gradient of an image, in a form's strips or on its devices."""
    evaluate = objective.evaluate if form.devices == 1 else rows.evaluate
    return functools.partial(strips.evaluate if form.strips > 1 else evaluate, form)


@functools.cache
def program(
    form: objective.Form,
    name: str,
    static: tuple[tuple[str, bool | int | str], ...] = (),
    clip: bool = False,
    keep: str = "last",
) -> Program:
    """The training step for a form of the losses and an optimizer.

    The same arguments give the same functions, so that compiled programs are shared. For an optimizer in
    `catalogue.ON_HOST` they are not traceable: only its evaluations are compiled.

    Args:
      form: the formulas of the losses.
      name, static: see `catalogue.parse`.
      clip: whether every iterate is brought to [0, 255].
      keep: one of `KEEPERS`.

    Raises:
      ValueError: `clip` for an optimizer in `catalogue.ON_HOST`, whose library would not know of it.
    """
    if clip and name in catalogue.ON_HOST:
        raise ValueError(f"{name} cannot clip its iterates")
    evaluate = evaluation(form)
    if name in catalogue.ON_HOST:
        evaluate = convolution.jit(evaluate)
    draws = name in catalogue.FIRST_ORDER
    draw = functools.partial(objective.redrawn, form) if draws else lambda problem, step: problem
    method = Method(evaluate, draw, clip, catalogue.build(name, static), KEEPERS[keep])
    parts = _init, _step, _result, _stepsize, _unseen, _enlarged, _settle
    return Program(*(functools.partial(part, method) for part in parts))
