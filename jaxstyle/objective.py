"""The objective: what an image is optimised for, as a pure function of the image and a pytree of targets.

    problem = objective.pose(GATYS, network, content, style, ...)
    evaluation = objective.evaluate(GATYS, problem, image)

The form of the losses is static (functions); everything a number can be is an array in the `Problem`, an
ARGUMENT of the compiled step, so that arms that differ in weights or targets share one program.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxstyle import losses, vgg

Scalar = Float[Array, ""]
Image = Float[Array, "height width 3"]


class Form(NamedTuple):
    """The formulas of the losses. Compare `losses`."""

    content: Callable[[Array, Array], Scalar]
    statistics: Callable[[Array], Array]
    style: Callable[[Array, Array], Scalar]
    variation: Callable[[Image], Scalar]


GATYS = Form(losses.gatys_content, losses.gram_matrix, losses.gatys_style, losses.squared_variation)
IVANOV2017 = Form(
    losses.ivanov2017_content, losses.gram_matrix, losses.ivanov2017_style, losses.total_variation
)
FORMS = {"gatys": GATYS, "ivanov2017": IVANOV2017}


class Problem(NamedTuple):
    """All arrays that an evaluation needs besides the image.

    The weight of a layer is already multiplied by its term's weight, and there is one for each target.
    """

    network: vgg.PreparedNetwork
    content_targets: Mapping[str, Float[Array, "height' width' channels"]]
    content_weights: Mapping[str, Scalar]
    style_targets: Mapping[str, Array]
    style_weights: Mapping[str, Scalar]
    tv_weight: Scalar


class Terms(NamedTuple):
    """The weighted terms of the total loss."""

    content: Scalar
    style: Scalar
    tv: Scalar


class Evaluation(NamedTuple):
    """Loss and gradient at one image."""

    total: Scalar
    terms: Terms
    gradient: Image


def pose(
    form: Form,
    network: vgg.PreparedNetwork,
    content: Image,
    styles: Sequence[tuple[Image, float]],
    *,
    content_weights: Mapping[str, float],
    style_weights: Mapping[str, float],
    tv_weight: float,
) -> Problem:
    """The problem of giving the photo `content` the style of the pictures `styles`.

    Args:
      form: the formulas.
      network: prepared to the deepest layer asked for, or deeper.
      content: the photo, RGB in [0, 255]; the image to optimise has its size.
      styles: style pictures, RGB in [0, 255], of any sizes, with their shares: their statistics are blended.
      content_weights: layer -> weight of its content loss, all factors included.
      style_weights: layer -> weight of its style loss, all factors included.
      tv_weight: weight of the total variation.

    Raises:
      KeyError: the network has no such layer.
    """
    return Problem(
        network=network,
        content_targets=vgg.features(network, content, content_weights),
        content_weights=jax.tree.map(jnp.float32, dict(content_weights)),
        style_targets=style_targets(form, network, styles, style_weights),
        style_weights=jax.tree.map(jnp.float32, dict(style_weights)),
        tv_weight=jnp.float32(tv_weight),
    )


def style_targets(
    form: Form,
    network: vgg.PreparedNetwork,
    styles: Sequence[tuple[Image, float]],
    layers: Collection[str],
) -> dict[str, Array]:
    """The statistics of the style pictures at each layer, their mean by share."""
    shares = sum(share for _, share in styles)
    blended: dict[str, Array] = {}
    for picture, share in styles:
        for name, maps in vgg.features(network, picture, layers).items():
            blended[name] = blended.get(name, 0.0) + share / shares * form.statistics(maps)
    return blended


def terms(form: Form, problem: Problem, image: Image) -> Terms:
    """The weighted terms of the loss at `image`. Gatys et al. 2016, equations 1, 4, 5 and 7."""
    taps = vgg.features(problem.network, image, {*problem.content_targets, *problem.style_targets})
    content = sum(
        weight * form.content(taps[name], problem.content_targets[name])
        for name, weight in problem.content_weights.items()
    )
    style = sum(
        weight * form.style(form.statistics(taps[name]), problem.style_targets[name])
        for name, weight in problem.style_weights.items()
    )
    return Terms(content, style, problem.tv_weight * form.variation(image))


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """Total loss, its terms and its gradient with respect to the image: what one step costs."""

    def total(image: Image) -> tuple[Scalar, Terms]:
        parts = terms(form, problem, image)
        return sum(parts), parts

    (value, parts), gradient = jax.value_and_grad(total, has_aux=True)(image)
    return Evaluation(value, parts, gradient)
