"""The training step: a state in, a state and its metrics out, whatever the optimizer.

    program = training.program(GATYS, spec.name, spec.static)
    state = program.init(problem, image, hyperparameters)
    state, metrics = program.step(problem, state)

All are pure. `init` evaluates the start image, so that row 0 of a run is the loss there, and every later row costs
the evaluations of one step. Hyperparameters live in the state as arrays: `jax.vmap` over them is a sweep.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxstyle.losses import objective, rows, strips
from jaxstyle.network import convolution
from jaxstyle.optimizers import catalogue
from jaxstyle.optimizers.base import Iterate, Optimizer, Visit

Scalar = Float[Array, ""]
Image = Float[Array, "height width 3"]


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
    """Everything that a step needs besides the problem. `kept` is its keeper's."""

    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    iterate: Iterate
    optimizer: Any
    hyperparameters: Mapping[str, Array]
    diverged: Bool[Array, ""]
    converged: Bool[Array, ""]
    kept: Any


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

    `grow` is the state to go on from at a problem of images of another shape, at the step where the given state is;
    it costs one evaluation. `result` is the image that a run has made when it ends. `stepsize` is that of the last
    line search, or None: see `Optimizer`.
    """

    init: Callable[[objective.Problem, Image, Mapping[str, Array]], TransferState]
    step: Callable[[objective.Problem, TransferState], tuple[TransferState, Metrics]]
    grow: Callable[[Sequence[int], objective.Problem, TransferState], TransferState]
    result: Callable[[TransferState], Image]
    stepsize: Callable[[TransferState], Scalar | None]


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


class Method(NamedTuple):
    """What the parts of a program have in common."""

    evaluate: Callable[[objective.Problem, Image], objective.Evaluation]
    project: Callable[[Image], Image]
    build: Callable[..., Optimizer]
    keeper: Keeper


def _visit(method: Method, problem: objective.Problem, image: Image) -> Iterate:
    image = method.project(image)
    return Iterate(image, method.evaluate(problem, image))


def _begin(
    method: Method,
    start: Iterate,
    memory: Any,
    evaluations: Int[Array, ""],
    hyperparameters: Mapping[str, Array],
) -> TransferState:
    """Step 0, from an optimizer's state at the start."""
    return TransferState(
        step=jnp.int32(0),
        evaluations=evaluations,
        iterate=start,
        optimizer=memory,
        hyperparameters=hyperparameters,
        diverged=~_is_finite(start),
        converged=jnp.bool_(False),
        kept=method.keeper.init(start),
    )


def _init(
    method: Method, problem: objective.Problem, image: Image, hyperparameters: Mapping[str, Array]
) -> TransferState:
    start = _visit(method, problem, image)
    memory = method.build(**hyperparameters).init(start)
    return _begin(method, start, memory, jnp.int32(1), hyperparameters)


def _step(method: Method, problem: objective.Problem, state: TransferState) -> tuple[TransferState, Metrics]:
    optimizer = method.build(**state.hyperparameters)
    visit = Visit(functools.partial(_visit, method, problem))
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
    )
    return new, metrics(new)


def _grow(
    method: Method, shape: Sequence[int], problem: objective.Problem, state: TransferState
) -> TransferState:
    image = jax.image.resize(_result(method, state), shape, "cubic")
    start, optimizer = _visit(method, problem, image), method.build(**state.hyperparameters)
    memory = optimizer.carry(state.optimizer, state.iterate, start)
    grown = _begin(method, start, memory, state.evaluations + 1, state.hyperparameters)
    return grown._replace(step=state.step)


def _stepsize(method: Method, state: TransferState) -> Scalar | None:
    return method.build(**state.hyperparameters).stepsize(state.optimizer)


def _result(method: Method, state: TransferState) -> Image:
    return method.keeper.image(state.kept, state.iterate)


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
    evaluate = objective.evaluate if form.devices == 1 else rows.evaluate
    evaluate = strips.evaluate if form.strips > 1 else evaluate
    evaluate = functools.partial(evaluate, form)
    if name in catalogue.ON_HOST:
        evaluate = convolution.jit(evaluate)
    project = functools.partial(jnp.clip, min=0, max=255) if clip else lambda image: image
    method = Method(evaluate, project, catalogue.build(name, static), KEEPERS[keep])
    return Program(*(functools.partial(part, method) for part in (_init, _step, _grow, _result, _stepsize)))


def run(
    form: objective.Form,
    problem: objective.Problem,
    image: Image,
    spec: catalogue.Spec,
    steps: int,
) -> tuple[Image, Metrics]:
    """Runs an optimizer from a start image.

    Args:
      form: the formulas of the losses.
      problem: see `objective.pose`.
      image: the start image, RGB in [0, 255].
      spec: see `catalogue.parse`; not one that needs a random key.
      steps: iterations.

    Returns:
      The last image, not clipped to [0, 255], and the metrics of all steps + 1 iterates, each field [steps + 1].
    """
    init, step, *_ = program(form, spec.name, spec.static)
    if spec.name not in catalogue.ON_HOST:
        init, step = convolution.jit(init), convolution.jit(step, donate_argnums=1)
    state = init(problem, jnp.array(image), {k: jnp.float32(v) for k, v in spec.traced.items()})
    rows = [jax.device_get(metrics(state))]  # before the step is given the state's buffers
    for _ in range(steps):
        state, row = step(problem, state)
        rows.append(row)
    return state.iterate.image, jax.tree.map(lambda *column: jnp.stack(column), *rows)
