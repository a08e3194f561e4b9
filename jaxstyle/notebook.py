"""What a notebook needs: functions of arrays as programs, a run, and a picture in one call."""

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.losses import objective, recipes
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.losses.terms import Image
from jaxstyle.network import convolution, vgg, weights
from jaxstyle.optimizers import catalogue
from jaxstyle.quality import photo, style
from jaxstyle.runs import threads

# Each as one program: else each of its operations would be compiled by itself, which takes longer.
_pose = jax.jit(objective.pose, static_argnames=("form", "read"))
lpips, style_distances = jax.jit(photo.lpips), jax.jit(style.style_distances)


@functools.wraps(objective.pose)  # whose help it has
def pose(
    form: objective.Form,
    network: vgg.PreparedNetwork,
    content: Image,
    styles: Sequence[objective.Style],
    weighting: recipes.Weighting,
    content_mask: objective.Mask | None = None,
    *arguments: Any,
    **named: Any,
) -> objective.Problem:
    known = set(network.filters)  # of others `vgg.features` tells the name
    _check_side(content, known.intersection([*weighting.content, *weighting.style]))
    _check_mask("content_mask", content_mask, content, math.inf)
    for each in styles:
        _check_side(each.picture, known.intersection(weighting.style))
        _check_mask("content_mask", each.content_mask, content)
        _check_mask("style_mask", each.style_mask, each.picture)
    return _pose(form, network, content, styles, weighting, content_mask, *arguments, **named)


def _check_side(picture: Image, layers: Collection[str]) -> None:
    """Refuses a picture of which a layer has nothing, whose loss would be no number."""
    height, width = jnp.shape(picture)[:2]
    deepest = max(layers, default="block1_conv1")
    if min(height, width) < vgg.smallest_side(deepest):
        raise UserError(f"{deepest} shrinks a picture of {width}x{height} to nothing")


def _check_mask(name: str, mask: objective.Mask | None, picture: Image, most: float = 1) -> None:
    """Refuses a mask of another size than its picture's or, as far as is known now, beyond [0, `most`].

    A style's loss grows as the square of its mask: one of bytes up to 255 would weigh 65,025 times as much.
    """
    if mask is None:
        return
    if jnp.shape(mask) != jnp.shape(picture)[:2]:
        height, width = jnp.shape(picture)[:2]
        raise UserError(f"{name}: is {[*jnp.shape(mask)]}; its picture needs one of [{height}, {width}]")
    if not isinstance(mask, jax.core.Tracer) and not (jnp.min(mask) >= 0 and jnp.max(mask) <= most):
        raise UserError(
            f"{name}: has values from {jnp.min(mask):g} to {jnp.max(mask):g}; a mask is in [0, {most:g}]"
        )


def run(
    form: objective.Form, problem: objective.Problem, image: Image, optimizer: catalogue.Spec, steps: int
) -> tuple[Image, training.Metrics]:
    """Runs an optimizer from a start image.

    Args:
      form: the formulas of the losses.
      problem: see `objective.pose`.
      image: the start image, RGB in [0, 255].
      optimizer: see `catalogue.parse`.
      steps: iterations, 0 or more.

    Returns:
      The last image, not clipped to [0, 255], and the metrics of all steps + 1 iterates, each field [steps + 1].

    Raises:
      UserError: the optimizer draws random numbers, or `steps` is negative.
    """
    if steps < 0:
        raise UserError(f"steps={steps}: must be 0 or more")
    if optimizer.needs_key:
        raise UserError(
            f"--optimizer={optimizer.name}: draws random numbers, which only the commands can give it"
        )
    made = training.program(form, optimizer.name, optimizer.static)
    image = jnp.array(image, jnp.result_type(image, jnp.float32))  # not as bytes
    start = image, {k: jnp.float32(v) for k, v in optimizer.traced.items()}
    with threads.one_for_lapack():
        if optimizer.name in catalogue.ON_HOST:
            step, state = made.step, made.init(problem, *start)
        else:
            step = convolution.jit(made.step, donate_argnums=1)
            seen, _ = step(problem, jax.jit(made.unseen)(*start))
            state = jax.jit(made.settle, donate_argnums=0)(seen)
        rows = [jax.device_get(training.metrics(state))]  # before the step is given the state's buffers
        for _ in range(steps):
            state, row = step(problem, state)
            rows.append(row)
        jax.block_until_ready(state)
    return state.iterate.image, jax.tree.map(lambda *column: jnp.stack(column), *rows)


def stylize(
    content: Image,
    *styles: Image,
    steps: int = 100,
    optimizer: str = "lbfgs:scaling=spectral",
    network: weights.Weights | None = None,
    recipe: recipes.Recipe | None = None,
    form: objective.Form | None = None,
) -> tuple[Image, training.Metrics]:
    """The photo `content` in the manner of one or more style pictures, at one size.

    `python -m experiments.stylize` does the same from coarse to fine, on files, and can be stopped.

    Args:
      content: float32, RGB in [0, 255]; the result has its shape.
      styles: float32, RGB in [0, 255], of any shapes; they are blended in equal shares.
      steps: iterations of the optimizer, 0 or more.
      optimizer: as on the command line, `NAME` or `NAME:key=value,key=value`.
      network: as `load_weights` gives it; by default torchvision's VGG16.
      recipe: layers and weights.
      form: of the losses. By default the program's: Gatys' form with Wasserstein style, and what suits it. Where one
        of `recipe` and `form` is given, the other is that of Gatys et al., with Gram matrices.

    Returns:
      The last image, not clipped to [0, 255], and the metrics of all steps + 1 iterates, each field [steps + 1].

    Raises:
      TypeError: no style picture is given.
      UserError: the optimizer is none or draws random numbers, `steps` is negative, or an array is no picture, or
        one so small that a layer has nothing of it.
      KeyError: the network has no layer that the recipe names.
    """
    if not styles:
        raise TypeError("stylize() needs one style picture or more")
    if recipe is form is None:
        name = recipes.STYLE_LOSS["gatys"]
        recipe, form = recipes.suiting("gatys", name), objective.GATYS._replace(style=STYLE_LOSSES[name])
    recipe, form = recipe or recipes.RECIPES["gatys"], form or objective.GATYS
    spec = catalogue.parse(optimizer, variables=None)
    network = network or weights.load("vgg16-torchvision")
    layers = [*recipe.content_layers, *recipe.style_layers]
    if missing := set(layers) - set(network.network.convolutions):
        raise KeyError(min(missing))
    for picture in (content, *styles):
        if not hasattr(picture, "shape"):
            raise UserError(
                f"a picture is an array [height, width, 3], not of type {type(picture).__name__}; read_picture makes "
                "one of a file, numpy.asarray one of a Pillow image"
            )
        if len(picture.shape) != 3 or picture.shape[2] != 3:
            raise UserError(f"a picture is an array [height, width, 3], not {[*picture.shape]}")
    prepared = vgg.prepare(network.network, max(layers), padding=recipe.padding)
    weighting = recipes.weighting(recipe, content.shape)
    wanted = [objective.Style(style) for style in styles]
    problem = pose(form, prepared, content, wanted, weighting)
    return run(form, problem, content, spec, steps)
