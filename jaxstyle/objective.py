"""The objective: what an image is optimised for, as a pure function of the image and a pytree of targets.

    problem = objective.pose(GATYS, network, content, [(style, 1.0)], weighting)
    evaluation = objective.evaluate(GATYS, problem, image)

The form of the losses is static (functions); everything a number can be is an array in the `Problem`, an
ARGUMENT of the compiled step, so that arms that differ in weights or targets share one program.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxstyle import losses, vgg

Scalar = Float[Array, ""]
Image = Float[Array, "height width 3"]


class Form(NamedTuple):
    """The formulas of the losses, see `losses`, and whether feature maps are computed again to save memory."""

    content: Callable[[Array, Array], Scalar]
    statistics: Callable[[Array], Array]
    style: Callable[[Array, Array], Scalar]
    variation: Callable[[Image], Scalar]
    remat: bool = False


GATYS = Form(losses.gatys_content, losses.gram_matrix, losses.gatys_style, losses.squared_variation)
IVANOV2017 = Form(
    losses.ivanov2017_content, losses.gram_matrix, losses.ivanov2017_style, losses.total_variation
)
FORMS = {"gatys": GATYS, "ivanov2017": IVANOV2017}


class Recipe(NamedTuple):
    """Layers with their weights, and the weights of the terms that multiply them.

    A content weight of None is one over the number of elements that the content loss sums, so that a recipe
    suits pictures of any size.
    """

    content_layers: Mapping[str, float]
    style_layers: Mapping[str, float]
    content_weight: float | None
    style_weight: float
    tv_weight: float


#: What suits each form. For `gatys` it was chosen by looking: with equal weights the third and the fourth block
#: drown the first, and with it the colours of the style. For `ivanov2017` it is the study's.
RECIPES = {
    "gatys": Recipe(
        content_layers={"block4_conv2": 1.0},
        style_layers={
            "block1_conv1": 100.0,
            "block2_conv1": 10.0,
            "block3_conv1": 1.0,
            "block4_conv1": 1.0,
            "block5_conv1": 1.0,
        },
        content_weight=None,
        style_weight=30.0,
        tv_weight=0.0,
    ),
    "ivanov2017": Recipe(
        content_layers={"block4_conv2": 1.0},
        style_layers={f"block{block}_conv1": 1.0 for block in range(1, 6)},
        content_weight=1e3,
        style_weight=1e6,
        tv_weight=1e-2,
    ),
}


class Weighting(NamedTuple):
    """The weights of a total loss, all factors included: by layer, and of the total variation."""

    content: Mapping[str, float]
    style: Mapping[str, float]
    tv: float


def content_weight(recipe: Recipe, image_shape: Sequence[int]) -> float:
    """The content weight of a recipe for an image of shape (height, width, 3)."""
    if recipe.content_weight is not None:
        return recipe.content_weight
    return 1 / sum(vgg.size(name, image_shape) for name in recipe.content_layers)


def weighting(recipe: Recipe, image_shape: Sequence[int]) -> Weighting:
    """The weights of a recipe for an image of shape (height, width, 3)."""
    weight = content_weight(recipe, image_shape)
    return Weighting(
        {name: weight * layer for name, layer in recipe.content_layers.items()},
        {name: recipe.style_weight * layer for name, layer in recipe.style_layers.items()},
        recipe.tv_weight,
    )


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
    weighting: Weighting,
) -> Problem:
    """The problem of giving the photo `content` the style of the pictures `styles`.

    Args:
      form: the formulas.
      network: prepared to the deepest layer of `weighting`, or deeper.
      content: the photo, RGB in [0, 255]; the image to optimise has its size.
      styles: style pictures, RGB in [0, 255], of any sizes, with their shares: their statistics are blended.
      weighting: the layers and their weights.

    Raises:
      KeyError: the network has no such layer.
    """
    return Problem(
        network=network,
        content_targets=vgg.features(network, content, weighting.content),
        content_weights=jax.tree.map(jnp.float32, dict(weighting.content)),
        style_targets=style_targets(form, network, styles, weighting.style),
        style_weights=jax.tree.map(jnp.float32, dict(weighting.style)),
        tv_weight=jnp.float32(weighting.tv),
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


class LayerTerms(NamedTuple):
    """What one layer adds to the terms of the loss."""

    content: Scalar
    style: Scalar


def layer_terms(form: Form, problem: Problem, name: str, maps: Array) -> tuple[Array, LayerTerms]:
    """Feature maps of a layer from those of the layer before, and what it adds to the terms of the loss."""
    maps = vgg.layer(problem.network, name, maps)
    content = style = jnp.zeros((), maps.dtype)
    if name in problem.content_targets:
        content = problem.content_weights[name] * form.content(maps, problem.content_targets[name])
    if name in problem.style_targets:
        style = problem.style_weights[name] * form.style(form.statistics(maps), problem.style_targets[name])
    return maps, LayerTerms(content, style)


def terms(form: Form, problem: Problem, image: Image) -> Terms:
    """The weighted terms of the loss at `image`. Gatys et al. 2016, equations 1, 4, 5 and 7."""
    maps, found = image, []
    for name in problem.network.filters:
        maps, own = layer_terms(form, problem, name, maps)
        found.append(own)
    content, style = map(sum, zip(*found, strict=True))
    return Terms(content, style, problem.tv_weight * form.variation(image))


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """Total loss, its terms and its gradient with respect to the image: what one step costs.

    The gradient is that of `terms`, layer by layer from the deepest, in an order that saves memory: `jax.grad` would
    have XLA compute the gradients of all layers' losses at once and hold them until they are needed. With
    `form.remat` only the first feature maps of each block are kept, and the others are computed a second time.
    """
    tv, pull_tv = jax.vjp(lambda image: problem.tv_weight * form.variation(image), image)
    maps, found, blocks = image, [], []
    for names in problem.network.blocks:
        inputs = maps
        maps, own, pulls = _forward(form, problem, names, inputs)
        found += own
        blocks.append((names, inputs, pulls))
    gradient = jnp.zeros_like(maps)
    for names, inputs, pulls in reversed(blocks):
        if form.remat:
            inputs, gradient = lax.optimization_barrier((inputs, gradient))
            _, _, pulls = _forward(form, problem, names, inputs)
        for pull in reversed(pulls):
            # The layer's own losses wait for the gradient that comes from deeper ones.
            gradient, one = lax.optimization_barrier((gradient, jnp.ones((), maps.dtype)))
            (gradient,) = pull((gradient, LayerTerms(one, one)))
    content, style = map(sum, zip(*found, strict=True))
    (gradient_tv,) = pull_tv(jnp.ones_like(tv))
    return Evaluation(content + style + tv, Terms(content, style, tv), gradient + gradient_tv)


def _forward(
    form: Form, problem: Problem, names: Sequence[str], maps: Array
) -> tuple[Array, list[LayerTerms], list[Callable]]:
    """The last maps of some layers, their terms, and the functions that pull gradients back through each."""
    found, pulls = [], []
    for name in names:
        (maps, own), pull = jax.vjp(functools.partial(layer_terms, form, problem, name), maps)
        found.append(own)
        pulls.append(pull)
    return maps, found, pulls
