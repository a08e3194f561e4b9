"""Optimizers: a name and hyperparameters -> `init` and `step`, alike for optax, jaxopt and SciPy.

    spec = parse("adam:learning_rate=10,b1=0.9")
    optimizer = build(spec.name, spec.static)(**spec.traced)
    state = optimizer.init(iterate)
    outcome = optimizer.step(visit, iterate, state)

`visit` is the objective, from an image to an iterate, which is an image with its evaluation: no optimizer evaluates
where it has been. Hyperparameters that are real numbers may be traced arrays: a learning rate can be vmapped.
This is the only file that knows jaxopt.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int
from scipy.optimize import _lbfgsb

from jaxstyle.errors import UserError
from jaxstyle.line_search import Iterate, Visit, wolfe

Scalar = Float[Array, ""]
Image = Float[Array, "height width 3"]


class Outcome(NamedTuple):
    """What one step of an optimizer gives.

    `evaluations` counts those of this step. `converged` tells that the iterate cannot be improved any more.
    """

    iterate: Iterate
    state: Any
    evaluations: Int[Array, ""]
    converged: Bool[Array, ""]


class Optimizer(NamedTuple):
    """Three pure functions.

    `carry(state, before, iterate)` is the state at an iterate of another size than the one `before`.
    """

    init: Callable[[Iterate], Any]
    step: Callable[[Visit, Iterate, Any], Outcome]
    carry: Callable[[Any, Iterate, Iterate], Any]


# --- optax: one evaluation a step, at the new image --------------------------------------------------------------


def from_optax(transformation: optax.GradientTransformation) -> Optimizer:
    """Any gradient transformation; those that ask for it are given the value of the loss."""
    transformation = optax.with_extra_args_support(transformation)

    def step(visit: Visit, iterate: Iterate, state: Any) -> Outcome:
        image, (total, _, gradient) = iterate
        updates, state = transformation.update(gradient, state, image, value=total)
        image = optax.apply_updates(image, updates)
        return Outcome(visit(image), state, jnp.int32(1), jnp.bool_(False))

    def carry(state: Any, before: Iterate, iterate: Iterate) -> Any:
        """What is there for each pixel is resized like the image, linearly: second moments stay positive."""
        shape = iterate.image.shape
        return jax.tree.map(
            lambda leaf: (
                jax.image.resize(leaf, shape, "linear") if leaf.shape == before.image.shape else leaf
            ),
            state,
        )

    return Optimizer(lambda iterate: transformation.init(iterate.image), step, carry)


class AdadeltaTF1GPUState(NamedTuple):
    """Running means of the squared gradients `a` and of the squared steps `u`."""

    a: Image
    u: Image


def adadelta_tf1gpu(
    learning_rate: float, rho: float = 0.95, eps: float = 1e-8
) -> optax.GradientTransformation:
    """What TensorFlow 1.0 computed on a GPU under the name Adadelta. For the record, not for use.

    Its kernel evaluated the step late (tensorflow/tensorflow#9058) and decayed the wrong accumulator, as the
    losses that the 2017 study printed show:

        a ← ρ·u + (1−ρ)·g²;  d = √(u+ε)/√(a+ε)·g;  u ← ρ·u + (1−ρ)·d²;  x ← x − η·√(u+ε)/√(a+ε)·g
    """

    def init(image: Image) -> AdadeltaTF1GPUState:
        return AdadeltaTF1GPUState(jnp.zeros_like(image), jnp.zeros_like(image))

    def update(g: Image, state: AdadeltaTF1GPUState, params: Image | None = None):
        del params
        a = rho * state.u + (1 - rho) * g**2
        d = jnp.sqrt(state.u + eps) / jnp.sqrt(a + eps) * g
        u = rho * state.u + (1 - rho) * d**2
        return -learning_rate * jnp.sqrt(u + eps) / jnp.sqrt(a + eps) * g, AdadeltaTF1GPUState(a, u)

    return optax.GradientTransformation(init, update)


# --- line-search methods: the evaluations that the search needs, one place in the program -------------------------

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

    return _restarting(init, advance)


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


# --- SciPy: the host drives, in float64 ---------------------------------------------------------------------------


class ScipyLBFGSState(NamedTuple):
    """The arrays of L-BFGS-B's reverse communication (SciPy's own names), all NumPy."""

    x: np.ndarray
    f: np.ndarray
    g: np.ndarray
    wa: np.ndarray
    iwa: np.ndarray
    task: np.ndarray
    lsave: np.ndarray
    isave: np.ndarray
    dsave: np.ndarray
    ln_task: np.ndarray


_START, _NEW_X, _EVALUATE = 0, 1, 3  # task[0] of L-BFGS-B


def scipy_lbfgs(history_size: int = 10, max_evaluations: int = 20) -> Optimizer:
    """SciPy's L-BFGS-B without bounds: what the 2017 study ran. Byrd, Lu, Nocedal and Zhu 1995.

    It never stops for a small decrease; where its line search fails it starts again with an empty memory. Its
    `step` runs on the host and cannot be traced: `visit` is a compiled function there, that moves no pixel.

    Args:
      history_size: corrections kept.
      max_evaluations: of one line search.
    """

    def start(iterate: Iterate) -> ScipyLBFGSState:
        n, m = iterate.image.size, history_size
        return ScipyLBFGSState(
            x=np.asarray(iterate.image, np.float64).ravel(),
            f=np.array(iterate.evaluation.total, np.float64),
            g=np.asarray(iterate.evaluation.gradient, np.float64).ravel(),
            wa=np.zeros(2 * m * n + 5 * n + 11 * m * m + 8 * m),
            iwa=np.zeros(3 * n, np.int32),
            task=np.zeros(2, np.int32),
            lsave=np.zeros(4, np.int32),
            isave=np.zeros(44, np.int32),
            dsave=np.zeros(29),
            ln_task=np.zeros(2, np.int32),
        )

    def step(visit: Visit, iterate: Iterate, state: ScipyLBFGSState) -> Outcome:
        state = jax.tree.map(np.array, state)  # L-BFGS-B writes into its arrays
        unbounded = np.zeros(state.x.size)
        fresh = bool(state.task[0] == _START)
        current, evaluations = iterate, 0
        while True:
            _lbfgsb.setulb(
                *(history_size, state.x, unbounded, unbounded, unbounded.astype(np.int32)),
                *(state.f, state.g, 0.0, 0.0, state.wa, state.iwa, state.task),
                *(state.lsave, state.isave, state.dsave, max_evaluations, state.ln_task),
            )
            if state.task[0] == _NEW_X:
                return Outcome(current, state, jnp.int32(evaluations), jnp.bool_(False))
            if state.task[0] != _EVALUATE:
                if fresh:
                    return Outcome(iterate, start(iterate), jnp.int32(evaluations), jnp.bool_(True))
                state, fresh, current = start(iterate), True, iterate
                continue
            image = jnp.asarray(state.x.reshape(iterate.image.shape), iterate.image.dtype)
            if not np.array_equal(image, current.image):
                current = visit(image)
                evaluations += 1
            state.f[()] = current.evaluation.total
            state.g[:] = np.asarray(current.evaluation.gradient).ravel()

    return Optimizer(start, step, lambda state, before, iterate: start(iterate))


# --- names ----------------------------------------------------------------------------------------------------


def _gd(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate)


def _momentum(
    learning_rate: float, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum, nesterov)


_LINE_SEARCH_METHODS: dict[str, Callable[..., Optimizer]] = {
    "lbfgs": lbfgs,
    "optax-lbfgs": optax_lbfgs,
    "scipy-lbfgs": scipy_lbfgs,
    "nonlinear-cg": nonlinear_cg,
}

_TRANSFORMATIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "gd": _gd,
    "momentum": _momentum,
    "adadelta-tf1gpu": adadelta_tf1gpu,
} | {
    name: getattr(optax, name)
    for name in (
        *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw"),
        *("adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "noisy_sgd"),
        *("novograd", "optimistic_adam_v2", "optimistic_gradient_descent", "polyak_sgd", "radam"),
        *("rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi"),
    )
}

_FACTORIES = _LINE_SEARCH_METHODS | _TRANSFORMATIONS

NAMES = tuple(_FACTORIES)

#: Optimizers whose step runs on the host, and so cannot be traced or vmapped.
ON_HOST = frozenset({"scipy-lbfgs"})

#: Defaults of ours by form of the loss, where a library's own do not fit images in [0, 255] or have no value.
DEFAULTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "gatys": {
        "adam": {"learning_rate": 10.0},
        "adagrad": {"learning_rate": 10.0},
    },
    # TensorFlow 1.0's, and the rate of the study's experiments 1 to 3.
    "ivanov2017": {
        "gd": {"learning_rate": 10.0},
        "momentum": {"learning_rate": 10.0},
        "adadelta": {"learning_rate": 10.0, "rho": 0.95, "eps": 1e-8},
        "adadelta-tf1gpu": {"learning_rate": 10.0, "rho": 0.95, "eps": 1e-8},
        "adagrad": {"learning_rate": 10.0, "initial_accumulator_value": 0.1, "eps": 0.0},
        "adam": {"learning_rate": 10.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
        "rmsprop": {"learning_rate": 10.0, "decay": 0.9, "eps": 1e-10, "initial_scale": 1.0},
    },
}

#: Ranges that hyperparameters must be in: (lowest, highest, words for it).
_FRACTION = (0.0, math.nextafter(1.0, 0.0), "in [0, 1)")
_POSITIVE = (math.ulp(0.0), math.inf, "greater than 0")
_RANGES = {
    **dict.fromkeys(("b1", "b2", "b3", "rho", "decay", "momentum", "decay_rate"), _FRACTION),
    **dict.fromkeys(("learning_rate", "max_learning_rate", "history_size"), _POSITIVE),
    **dict.fromkeys(("memory_size", "max_evaluations"), _POSITIVE),
    **dict.fromkeys(("sufficient_decrease", "curvature"), _FRACTION),
    **dict.fromkeys(
        ("eps", "eps_root", "initial_accumulator_value", "initial_scale"),
        (0.0, math.inf, "0 or greater"),
    ),
}

_CG_METHODS = ("polak-ribiere", "fletcher-reeves", "hestenes-stiefel")
_CHOICES = {("nonlinear-cg", "method"): _CG_METHODS, ("polyak_sgd", "variant"): ("sps", "sps+")}


class Spec(NamedTuple):
    """An optimizer's name with the values of all its hyperparameters.

    `static` ones are part of the program (sizes, choices); `traced` ones are numbers that a program is given.
    """

    name: str
    static: tuple[tuple[str, bool | int | str], ...]
    traced: Mapping[str, float]

    @property
    def needs_key(self) -> bool:
        """Whether the optimizer draws random numbers."""
        return "key" in inspect.signature(_FACTORIES[self.name]).parameters


def parse(text: str, loss: str = "gatys") -> Spec:
    """Reads `NAME` or `NAME:key=value,key=value`.

    Args:
      text: the specification.
      loss: form of the losses, which decides defaults; see `DEFAULTS`.

    Raises:
      UserError: an unknown name or hyperparameter, a value that is out of range, or one that is missing.
    """
    name, _, rest = text.strip().partition(":")
    if name not in _FACTORIES:
        raise UserError(f"--optimizer={text}: there is no optimizer {name!r}; there are {', '.join(NAMES)}")
    parameters = _settable(name)
    values = {key: default for key, default in parameters.items() if default is not inspect.Parameter.empty}
    values |= DEFAULTS[loss].get(name, {})
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UserError(f"--optimizer={text}: {item!r} should be key=value")
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise UserError(f"--optimizer={text}: {name} has no {key!r}; it has {known}")
        values[key] = _read(text, name, key, value, parameters[key])
    for key in parameters:
        if key not in values:
            raise UserError(f"--optimizer={text}: {name} needs a {key}, as in {name}:{key}=0.1")
    values = {key: value for key, value in values.items() if value is not None}
    static = {k: v for k, v in values.items() if isinstance(v, bool | int | str)}
    traced = {k: float(v) for k, v in values.items() if k not in static}
    return Spec(name, tuple(sorted(static.items())), traced)


def _settable(name: str) -> dict[str, Any]:
    """Hyperparameters that a text can set, with their defaults: numbers, booleans and choices."""
    return {
        key: parameter.default
        for key, parameter in inspect.signature(_FACTORIES[name]).parameters.items()
        if not key.endswith(("mask", "dtype", "dtype_momentum")) and key not in ("key", "seed")
    }


def _read(text: str, name: str, key: str, value: str, default: Any) -> bool | int | str | float:
    """The value of one hyperparameter, of the type that its default has."""

    def refuse(wanted: str) -> UserError:
        return UserError(f"--optimizer={text}: {key} must be {wanted}, not {value!r}")

    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise refuse("true or false")
        return value.lower() == "true"
    if isinstance(default, str):
        choices = _CHOICES[name, key]
        if value not in choices:
            raise refuse(" or ".join(choices))
        return value
    kind = int if isinstance(default, int) else float
    try:
        number = kind(value)
    except ValueError:
        raise refuse("a whole number" if kind is int else "a number") from None
    lowest, highest, words = _RANGES.get(key, (-math.inf, math.inf, "finite"))
    if not (math.isfinite(number) and lowest <= number <= highest):
        raise refuse(words)
    return number


@functools.cache
def build(name: str, static: tuple[tuple[str, bool | int | str], ...]) -> Callable[..., Optimizer]:
    """The optimizer as a function of its traced hyperparameters, arrays or floats by keyword."""
    factory = functools.partial(_FACTORIES[name], **dict(static))
    if name in _LINE_SEARCH_METHODS:
        return factory
    return lambda **traced: from_optax(factory(**traced))
