"""The objective in strips of rows: the same loss and gradient, in memory that hardly grows with the image's height.

    evaluation = strips.evaluate(GATYS._replace(strips=4), problem, image)

Content and style are sums over positions. A first pass adds up what each strip has of them; the slopes of the loss
with respect to the style's means are taken once; a second pass pulls them back through each strip. A window has the
rows above and below its strip that the deepest layer sees, so the sums are those of the whole image: no seams. All
windows have one height and begin at multiples of 16 rows, where all layers have a row of their own; the first and the
last end where the image does, so the network's own padding is right there.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int

from jaxstyle.losses.base import position_weights
from jaxstyle.losses.objective import Evaluation, Form, Image, Problem, Scalar, Terms
from jaxstyle.losses.terms import gatys_content
from jaxstyle.network import vgg

#: Rows of the image for one of the deepest layer.
_STEP = 16


class Windows(NamedTuple):
    """Rows of the image: window k is those from `starts[k]` on, and its strip `bounds[k]` up to `bounds[k + 1]`."""

    height: int
    starts: Int[np.ndarray, " strips"]
    bounds: Int[np.ndarray, " strips+1"]


class Sums(NamedTuple):
    """What strips add up: the weighted content loss, and by region and layer the means that style is made of."""

    content: Scalar
    means: Sequence[Mapping[str, Any]]


def halo(layers: Sequence[str]) -> int:
    """Rows beyond a strip that the deepest of the layers sees, up to the next multiple of 16."""
    return -(-sum(2 ** vgg.halvings(name) for name in layers) // _STEP) * _STEP


def windows(height: int, layers: Sequence[str], strips: int) -> Windows:
    """Windows for an image of so many rows, in `strips` strips or, if it has fewer than 16 rows for each, fewer."""
    strips = max(1, min(strips, height // _STEP))
    bounds = np.arange(strips + 1) * (height // _STEP) // strips * _STEP
    bounds[-1] = height
    least, rest = max(np.diff(bounds)) + 2 * halo(layers), height % _STEP
    window = min(height, -(-(least - rest) // _STEP) * _STEP + rest)
    return Windows(window, np.clip(bounds[:-1] - halo(layers), 0, height - window), bounds)


def divisible(form: Form) -> bool:
    """Whether a form of the losses has strips: its content loss is a sum over positions, its style one of means."""
    return form.content is gatys_content and form.style.means is not None


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """What `objective.evaluate` gives, in `form.strips` strips.

    Memory is that of one window and of some images; time is that of one more forward pass, and of the halo.

    Raises:
      ValueError: the style loss has no means, or the content loss is no sum over positions.
    """
    if not divisible(form):
        raise ValueError("this form of the losses is no sum over positions, and has no strips")
    plan = windows(len(image), list(problem.network.filters), form.strips)
    at = jnp.asarray(np.stack([plan.starts, plan.bounds[:-1], plan.bounds[1:]], 1))

    def sums(rows: Int[Array, "3"], window: Image) -> Sums:
        return _sums(form, problem, image.shape, rows, window)

    def view(rows: Int[Array, "3"]) -> Image:
        return lax.dynamic_slice_in_dim(image, rows[0], plan.height)

    def add(total: Sums, rows: Int[Array, "3"]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, sums(rows, view(rows))), None

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sums, at[0], view(at[0]))
    )
    total, _ = lax.scan(add, zeros, at)
    style, slopes = jax.value_and_grad(functools.partial(_style, form, problem))(total.means)
    tv, gradient = jax.value_and_grad(lambda image: problem.tv_weight * form.variation(image))(image)

    def pull(gradient: Image, rows: Int[Array, "3"]) -> tuple[Image, None]:
        _, back = jax.vjp(functools.partial(sums, rows), view(rows))
        (own,) = back(Sums(jnp.ones_like(total.content), slopes))
        own += lax.dynamic_slice_in_dim(gradient, rows[0], plan.height)
        return lax.dynamic_update_slice_in_dim(gradient, own, rows[0], 0), None

    gradient, _ = lax.scan(pull, gradient, at)
    return Evaluation(total.content + style + tv, Terms(total.content, style, tv), gradient)


def _style(form: Form, problem: Problem, means: Sequence[Mapping[str, Any]]) -> Scalar:
    return sum(
        problem.style_weights[name] * region.weight * form.style.distance(found[name], region.targets[name])
        for region, found in zip(problem.regions, means, strict=True)
        for name in found
    )


def _sums(form: Form, problem: Problem, shape: Sequence[int], rows: Int[Array, "3"], window: Image) -> Sums:
    """What one window adds: of each layer's rows those that belong to its strip."""
    start, begin, end = rows
    maps, content = window, jnp.zeros((), window.dtype)
    means: list[dict[str, Any]] = [{} for _ in problem.regions]
    for name in problem.network.filters:
        maps = vgg.layer(problem.network, name, maps)
        scale = 2 ** vgg.halvings(name)
        row = start // scale + jnp.arange(len(maps))
        mine = ((row >= begin // scale) & (row < end // scale)).astype(maps.dtype)
        own = jnp.broadcast_to(mine[:, None], maps.shape[:2])
        here = functools.partial(lax.dynamic_slice_in_dim, start_index=start // scale, slice_size=len(maps))
        if name in problem.content_targets:
            guide = own if problem.content_guides is None else own * here(problem.content_guides[name])
            loss = form.content(maps, here(problem.content_targets[name]), guide)
            content += problem.content_weights[name] * loss
        if name in problem.style_weights:
            for region, found in zip(problem.regions, means, strict=True):
                if region.guides is None:
                    weights = own / ((shape[0] // scale) * (shape[1] // scale))
                else:
                    weights = own * here(position_weights(region.guides[name]))
                found[name] = form.style.means(maps, weights)
    return Sums(content, means)
