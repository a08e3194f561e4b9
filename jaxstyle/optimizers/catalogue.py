"""The optimizers by name: a text to a specification, and that to `init` and `step`.

    spec = parse("adam:learning_rate=10,b1=0.9")
    optimizer = build(spec.name, spec.static)(**spec.traced)
    state = optimizer.init(iterate)
    outcome = optimizer.step(visit, iterate, state)

Hyperparameters that are real numbers may be traced arrays: a learning rate can be vmapped.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxstyle.errors import UserError
from jaxstyle.losses.objective import Evaluation, Terms
from jaxstyle.optimizers import parametrization
from jaxstyle.optimizers.base import Iterate, Optimizer
from jaxstyle.optimizers.first_order import adadelta_tf1gpu, from_optax
from jaxstyle.optimizers.quasi_newton import (
    COEFFICIENTS,
    HISTORIES,
    SCALINGS,
    lbfgs,
    nonlinear_cg,
    optax_lbfgs,
)
from jaxstyle.optimizers.scipy_lbfgs import scipy_lbfgs


def _momentum(
    learning_rate: float, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum, nesterov)


def _schedule_free_adamw(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Its iterate is where it takes gradients, b1 of its running average and the rest of what it moves.

    Defazio et al. 2024, "The Road Less Scheduled", whose result is the average alone.
    """
    return optax.contrib.schedule_free_adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def _schedule_free_sgd(learning_rate: float, b1: float = 0.9) -> optax.GradientTransformation:
    """Likewise, of gradient descent."""
    return optax.contrib.schedule_free_sgd(learning_rate, b1=b1)


_LINE_SEARCH_METHODS: dict[str, Callable[..., Optimizer]] = {
    "lbfgs": lbfgs,
    "optax-lbfgs": optax_lbfgs,
    "scipy-lbfgs": scipy_lbfgs,
    "nonlinear-cg": nonlinear_cg,
}

_SCHEDULE_FREE = {"schedule_free_adamw": _schedule_free_adamw, "schedule_free_sgd": _schedule_free_sgd}

_TRANSFORMATIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "gd": lambda learning_rate: optax.sgd(learning_rate),  # without what else `sgd` has
    "momentum": _momentum,
    "adadelta-tf1gpu": adadelta_tf1gpu,
    **_SCHEDULE_FREE,
} | {
    name: getattr(optax, name)
    for name in (
        *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw"),
        *("adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "noisy_sgd"),
        *("novograd", "optimistic_adam_v2", "optimistic_gradient_descent", "polyak_sgd", "radam"),
        *("rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi"),
    )
}
_TRANSFORMATIONS |= {
    name: getattr(optax.contrib, name)
    for name in (
        *("ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "madgrad", "momo", "momo_adam"),
        "prodigy",
    )
}

_FACTORIES = _LINE_SEARCH_METHODS | _TRANSFORMATIONS

#: The default of a hyperparameter that has none.
_MISSING = inspect.Parameter.empty

NAMES = tuple(_FACTORIES)

#: Optimizers whose steps compare no losses, so that each may be of other positions.
FIRST_ORDER = frozenset(_TRANSFORMATIONS)

#: Optimizers whose step runs on the host, and so cannot be traced or vmapped.
ON_HOST = frozenset({"scipy-lbfgs"})

#: Defaults of ours by form of the loss, where a library's own do not fit images in [0, 255] or have no value.
DEFAULTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "gatys": {
        "adam": {"learning_rate": 10.0},
        "adagrad": {"learning_rate": 10.0},
        "adadelta": {"learning_rate": 1.0},  # Zeiler 2012; without one optax's climbs
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

#: Ranges that hyperparameters must be in, of all optimizers or of one: (lowest, highest, words for it).
_FRACTION = (0.0, float(np.nextafter(np.float32(1), np.float32(0))), "in [0, 1)")
_POSITIVE = (math.ulp(0.0), math.inf, "greater than 0")
_NOT_NEGATIVE = (0.0, math.inf, "0 or greater")
_RANGES = {
    **dict.fromkeys(("b1", "b2", "b3", "rho", "decay", "momentum", "decay_rate"), _FRACTION),
    **dict.fromkeys(("learning_rate", "max_learning_rate", "max_evaluations", "cosine_steps"), _POSITIVE),
    **dict.fromkeys(("history_size", "memory_size"), (1, 1000, "from 1 to 1000")),
    "sufficient_decrease": (math.ulp(0.0), math.nextafter(0.5, 0.0), "between 0 and 1/2"),
    "curvature": _FRACTION,
    # optax divides by it.
    **{(name, "b1"): (1e-3, _FRACTION[1], "from 0.001, below 1") for name in _SCHEDULE_FREE},
    **dict.fromkeys(("eps", "eps_root", "initial_accumulator_value", "initial_scale"), _NOT_NEGATIVE),
}

_CHOICES = {
    ("lbfgs", "history"): HISTORIES,
    ("lbfgs", "scaling"): tuple(SCALINGS),
    ("nonlinear-cg", "method"): tuple(COEFFICIENTS),
    ("polyak_sgd", "variant"): ("sps", "sps+"),
}


class Spec(NamedTuple):
    """An optimizer's name with the values of all its hyperparameters.

    `static` ones are part of the program (sizes, choices, the parametrization if it is not pixels); `traced` ones are
    numbers that a program is given.
    """

    name: str
    static: tuple[tuple[str, bool | int | str], ...]
    traced: Mapping[str, float]

    @property
    def needs_key(self) -> bool:
        """Whether the optimizer draws random numbers."""
        return "key" in inspect.signature(_FACTORIES[self.name]).parameters


def has_learning_rate(name: str) -> bool:
    """Whether an optimizer of this name has a learning rate for which its library has no number by default."""
    return name in _FACTORIES and _settable(name).get("learning_rate", 0) in (None, _MISSING)


def suits(name: str, loss: str) -> str:
    """The parametrization that is best for an optimizer: see docs/parametrization.md."""
    return "fourier:exponent=0.5" if name in _LINE_SEARCH_METHODS and loss == "gatys" else "pixels"


def parse(text: str, loss: str = "gatys", variables: str | None = "pixels") -> Spec:
    """Reads `NAME` or `NAME:key=value,key=value`, with `@PARAMETRIZATION` after it or without.

    Args:
      text: the specification.
      loss: form of the losses, which decides defaults; see `DEFAULTS`.
      variables: the parametrization where the text has none; None is what `suits`.

    Raises:
      UserError: an unknown name or hyperparameter, a value that is out of range, or one that is missing.
    """
    method, at, given = text.strip().partition("@")
    name, _, rest = method.partition(":")
    if name not in _FACTORIES:
        raise UserError(f"--optimizer={text}: there is no optimizer {name!r}; there are {', '.join(NAMES)}")
    parameters = _settable(name)
    values = {key: default for key, default in parameters.items() if default is not _MISSING}
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
    if values.get("curvature", 1) <= values.get("sufficient_decrease", 0):
        raise UserError(
            f"--optimizer={text}: curvature must be greater than sufficient_decrease, as in 0.9 and 1e-4"
        )
    values = {key: value for key, value in values.items() if value is not None}
    static = {k: v for k, v in values.items() if isinstance(v, bool | int | str)}
    variables = given if at else variables or suits(name, loss)
    if parametrization.parse(variables, f"--optimizer={text}" if at else None) is not None:
        static["parametrization"] = variables
    traced = {k: float(v) for k, v in values.items() if k not in static}
    return Spec(name, tuple(sorted(static.items())), traced)


def _settable(name: str) -> dict[str, Any]:
    """Hyperparameters that a text can set, with their defaults: numbers, booleans and choices."""
    found = {
        key: parameter.default
        for key, parameter in inspect.signature(_FACTORIES[name]).parameters.items()
        if not key.endswith(("mask", "dtype", "dtype_momentum"))
        and key not in ("key", "seed")
        and (parameter.default in (None, _MISSING) or isinstance(parameter.default, int | float | str))
    }
    return found | ({"cosine_steps": None} if name in _TRANSFORMATIONS else {})


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
    if kind is int and abs(number) >= 2**31:  # a program has no larger ones
        raise refuse("a whole number of 32 bits")
    limits = _RANGES.get((name, key)) or _RANGES.get(key)
    lowest, highest, words = limits or (-math.inf, math.inf, "finite")
    if not (math.isfinite(number) and lowest <= number <= highest):
        raise refuse(words)
    return number


@functools.cache
def build(name: str, static: tuple[tuple[str, bool | int | str], ...]) -> Callable[..., Optimizer]:
    """The optimizer as a function of its traced hyperparameters, arrays or floats by keyword."""
    options = dict(static)
    variables = parametrization.parse(options.pop("parametrization", "pixels"))
    factory = functools.partial(_FACTORIES[name], **options)
    make = factory if name in _LINE_SEARCH_METHODS else functools.partial(_first_order, factory)
    return lambda **traced: parametrization.within(variables, make(**traced))


def bytes_kept(spec: Spec, shape: Sequence[int]) -> int:
    """What an optimizer remembers between two steps on an image of a height and a width.

    In variables it is what it remembers of them, and they and the gradient there. One on the host tells it by the
    state of a small image, as that cannot be had without making it.
    """
    on_host = spec.name in ON_HOST
    height, width = (64, 64) if on_host else shape[:2]
    options = dict(spec.static)
    variables = parametrization.parse(options.pop("parametrization", "pixels"))
    seen, twice = jax.ShapeDtypeStruct((height, width, 3), jnp.float32), ()
    if variables:
        seen = jax.eval_shape(variables.encode, seen)
        twice = seen, seen

    def init() -> Any:
        image = jnp.zeros(seen.shape, jnp.float32)
        nothing = Iterate(image, Evaluation(jnp.float32(0), Terms(*3 * [jnp.float32(0)]), image))
        traced = dict(spec.traced) | ({"key": jax.random.key(0)} if spec.needs_key else {})
        return build(spec.name, tuple(options.items()))(**traced).init(nothing)

    state = init() if on_host else jax.eval_shape(init)
    kept = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, twice)))
    return int(kept / (height * width) * shape[0] * shape[1])


def _first_order(
    factory: Callable[..., optax.GradientTransformation],
    cosine_steps: float | jax.Array | None = None,
    **traced: Any,
) -> Optimizer:
    """A transformation whose steps shrink over `cosine_steps` to nothing, by (1 + cos πt) / 2, or do not.

    Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5, without restarts.
    """
    transformation = factory(**traced)
    if cosine_steps is not None:

        def factor(step: jax.Array) -> jax.Array:
            return (1 + jnp.cos(jnp.pi * jnp.minimum(step / cosine_steps, 1))) / 2

        transformation = optax.chain(transformation, optax.scale_by_schedule(factor))
    return from_optax(transformation)
