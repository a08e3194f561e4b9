"""What an optimizer is: `init` and `step`, alike for optax, jaxopt and SciPy.

`visit` is the objective, from an image to an iterate, which is an image with its evaluation: no optimizer evaluates
where it has been.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from jaxstyle.losses.objective import Evaluation
from jaxstyle.losses.terms import Image, Scalar


def inner(one: Image, other: Image) -> Scalar:
    """Σ of the products, in the shape that the images have.

    `jnp.vdot` flattens them, and XLA gathers for that what lies on several devices in uneven parts.
    """
    return jnp.tensordot(one, other, one.ndim, precision="highest")


class Iterate(NamedTuple):
    """An image and the objective there."""

    image: Image
    evaluation: Evaluation


#: The total of an image that nobody has evaluated; its gradient is zero.
UNSEEN = math.inf


def is_unseen(iterate: Iterate) -> Bool[Array, ""]:
    """Whether a step from here is to evaluate the image and do no more: any step whose one trial is that image."""
    return iterate.evaluation.total == UNSEEN


def unmoved(image: Image, iterate: Iterate, direction: Image) -> Image:
    """A direction without the pixels of a trial image that its iterate has moved."""
    return jnp.where(iterate.image == image, direction, 0)


class Visit(NamedTuple):
    """The objective, as an optimizer is given it. It is called with a trial image.

    Attributes:
      go: from a trial image to an iterate: the image brought to where it may be, and the objective there.
      free: from a trial image, its iterate and a direction, that without the pixels that `go` moved; None where it
        moves none.
    """

    go: Callable[[Image], Iterate]
    free: Callable[[Image, Iterate, Image], Image] | None = unmoved

    def __call__(self, image: Image) -> Iterate:
        return self.go(image)


class Outcome(NamedTuple):
    """What one step of an optimizer gives.

    `evaluations` counts those of this step. `converged` tells that the iterate cannot be improved any more.
    """

    iterate: Iterate
    state: Any
    evaluations: Int[Array, ""]
    converged: Bool[Array, ""]


class Optimizer(NamedTuple):
    """Pure functions.

    `carry(state, iterate)` is the state at an iterate of another size.
    `stepsize(state)` is what the line search of the last step multiplied its direction with; None where the state
    does not tell, as where there is no line search.
    """

    init: Callable[[Iterate], Any]
    step: Callable[[Visit, Iterate, Any], Outcome]
    carry: Callable[[Any, Iterate], Any]
    stepsize: Callable[[Any], Scalar | None] = lambda state: None
