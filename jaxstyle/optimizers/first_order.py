"""First-order methods: optax's transformations of gradients, one evaluation a step, at the new image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxstyle.optimizers.base import Image, Iterate, Optimizer, Outcome, Visit


def from_optax(transformation: optax.GradientTransformation) -> Optimizer:
    """Any gradient transformation; those that ask for it are given the value of the loss."""
    transformation = optax.with_extra_args_support(transformation)

    def step(visit: Visit, iterate: Iterate, state: Any) -> Outcome:
        image, (total, _, gradient) = iterate
        updates, state = transformation.update(gradient, state, image, value=total)
        image = optax.apply_updates(image, updates)
        return Outcome(visit(image), state, jnp.int32(1), jnp.bool_(False))

    def carry(state: Any, iterate: Iterate) -> Any:
        """Arrays that follow the image's shape are resized, linearly: second moments stay positive.

        Where one changes its rank (adafactor factors its moments from 128 pixels on), all but a schedule begins anew:
        a count of steps that went on would take the empty moments beside it for those of many steps.
        """
        fresh = transformation.init(iterate.image)
        pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True))
        if any(jnp.ndim(old) != jnp.ndim(new) for old, new in pairs):
            return jax.tree.map(
                lambda old, new: old if _is_schedule(old) else new, state, fresh, is_leaf=_is_schedule
            )
        return jax.tree.map(
            lambda old, new: old if old.shape == new.shape else jax.image.resize(old, new.shape, "linear"),
            state,
            fresh,
        )

    return Optimizer(lambda iterate: transformation.init(iterate.image), step, carry)


def _is_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


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
