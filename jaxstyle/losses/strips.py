"""The objective in strips of rows: the same loss and gradient, in memory that hardly grows with the image's height.

    evaluation = strips.evaluate(GATYS._replace(strips=4), problem, image)

Content and style are sums over positions. A first pass adds up what each strip has of them; the slopes of the loss
with respect to the style's means are taken once; a second pass pulls them back through each strip. A window has the
rows above and below its strip that the deepest layer sees, so the sums are those of the whole image: no seams. All
windows have one height and begin at multiples of 16 rows, where all layers have a row of their own; the first and the
last end where the image does, so the network's own padding is right there.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from jaxstyle.losses.base import Group, position_weights
from jaxstyle.losses.objective import Evaluation, Form, Image, Problem, Read, Scalar, Terms
from jaxstyle.losses.terms import Features, Guide, gatys_content
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


class Rows(NamedTuple):
    """The rows of one window: its first, and those from which and up to which its strip is."""

    start: Int[Array, ""]
    begin: Int[Array, ""]
    end: Int[Array, ""]


def _cut(image: Image, names: Sequence[str], strips: int) -> tuple[Rows, Callable[[Rows], Image]]:
    """The rows of all windows that some layers need, and the function that gives one of them."""
    plan = windows(len(image), names, strips)
    return (
        Rows(*(jnp.asarray(each) for each in (plan.starts, plan.bounds[:-1], plan.bounds[1:]))),
        lambda rows: lax.dynamic_slice_in_dim(image, rows.start, plan.height),
    )


class Seen(NamedTuple):
    """A window's maps at one layer: the first row of them in the whole, and 1 where they are of its strip, else 0."""

    name: str
    maps: Features
    first: Int[Array, ""]
    own: Float[Array, "height width"]


def _through(network: vgg.PreparedNetwork, names: Sequence[str], rows: Rows, window: Image) -> Iterator[Seen]:
    maps = window
    for name in names:
        maps, scale = vgg.layer(network, name, maps), 2 ** vgg.halvings(name)
        row = rows.start // scale + jnp.arange(len(maps))
        mine = ((row >= rows.begin // scale) & (row < rows.end // scale)).astype(maps.dtype)
        yield Seen(name, maps, rows.start // scale, jnp.broadcast_to(mine[:, None], maps.shape[:2]))


def _zeros(function: Callable, *arguments: Any) -> Any:
    """What a function gives, all zeros."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def _added(function: Callable[[Rows, Image], Any], rows: Rows, view: Callable[[Rows], Image]) -> Any:
    """The sum of a function over all windows."""
    first = jax.tree.map(lambda each: each[0], rows)

    def add(total: Any, one: Rows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(one, view(one))), None

    return lax.scan(add, _zeros(function, first, view(first)), rows)[0]


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """What `objective.evaluate` gives, in `form.strips` strips.

    Memory is that of one window and of some images; time is that of one more forward pass, and of the halo.

    Raises:
      ValueError: the style loss has no means, or the content loss is no sum over positions.
    """
    if not divisible(form):
        raise ValueError("this form of the losses is no sum over positions, and has no strips")
    rows, view = _cut(image, list(problem.network.filters), form.strips)
    sums = functools.partial(_sums, form, problem, image.shape)
    total = _added(sums, rows, view)
    style, slopes = jax.value_and_grad(functools.partial(_style, form, problem))(total.means)
    tv, gradient = jax.value_and_grad(lambda image: problem.tv_weight * form.variation(image))(image)

    def pull(gradient: Image, one: Rows) -> tuple[Image, None]:
        window = view(one)
        _, back = jax.vjp(functools.partial(sums, one), window)
        (own,) = back(Sums(jnp.ones_like(total.content), slopes))
        own += lax.dynamic_slice_in_dim(gradient, one.start, len(window))
        return lax.dynamic_update_slice_in_dim(gradient, own, one.start, 0), None

    gradient, _ = lax.scan(pull, gradient, rows)
    return Evaluation(total.content + style + tv, Terms(total.content, style, tv), gradient)


def _style(form: Form, problem: Problem, means: Sequence[Mapping[str, Any]]) -> Scalar:
    return sum(
        problem.style_weights[name] * region.weight * form.style.distance(found[name], region.targets[name])
        for region, found in zip(problem.regions, means, strict=True)
        for name in found
    )


def _sums(form: Form, problem: Problem, shape: Sequence[int], rows: Rows, window: Image) -> Sums:
    """What one window adds: of each layer's rows those that belong to its strip."""
    content = jnp.zeros((), window.dtype)
    means: list[dict[str, Any]] = [{} for _ in problem.regions]
    for name, maps, first, own in _through(problem.network, list(problem.network.filters), rows, window):
        here = functools.partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=len(maps))
        if name in problem.content_targets:
            guide = own if problem.content_guides is None else own * here(problem.content_guides[name])
            loss = form.content(maps, here(problem.content_targets[name]), guide)
            content += problem.content_weights[name] * loss
        if name in problem.style_weights:
            for region, found in zip(problem.regions, means, strict=True):
                guide = region.guides and region.guides[name]
                found[name] = form.style.means(maps, own * _weights(name, shape, guide, here))
    return Sums(content, means)


def _weights(
    name: str, shape: Sequence[int], guide: Guide | None, here: Callable[[Guide], Guide]
) -> Guide | float:
    """What positions of a window count at a layer, of an image of this shape."""
    scale = 2 ** vgg.halvings(name)
    return 1 / ((shape[0] // scale) * (shape[1] // scale)) if guide is None else here(position_weights(guide))


# --- targets ------------------------------------------------------------------------------------------------------


def reading(strips: int) -> Read:
    """How `objective.pose` takes pictures through the network in strips, by the memory of one window.

    Targets of a style loss that has `means` are these.
    """
    return Read(functools.partial(_features, strips), functools.partial(_targets, strips))


def _features(
    strips: int, network: vgg.PreparedNetwork, picture: Image, layers: Collection[str]
) -> dict[str, Features]:
    names = _down_to(network, layers)
    rows, view = _cut(picture, names, strips)

    def write(found: dict[str, Features], one: Rows) -> tuple[dict[str, Features], None]:
        found = dict(found)
        for name, maps, first, own in _through(network, names, one, view(one)):
            if name in found:
                there = lax.dynamic_slice_in_dim(found[name], first, len(maps))
                mine = jnp.where(own[..., None] > 0, maps, there)
                found[name] = lax.dynamic_update_slice_in_dim(found[name], mine, first, 0)
        return found, None

    return lax.scan(write, _zeros(lambda: dict(vgg.features(network, picture, layers))), rows)[0]


def _targets(
    strips: int,
    form: Form,
    network: vgg.PreparedNetwork,
    picture: Image,
    groups: Mapping[str, Group],
    guides: Mapping[str, Guide] | None,
    key: Array,
) -> dict[str, Any]:
    del key
    names = _down_to(network, groups)
    rows, view = _cut(picture, names, strips)

    def means(one: Rows, window: Image) -> dict[str, Any]:
        found = {}
        for name, maps, first, own in _through(network, names, one, window):
            if name in groups:
                here = functools.partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=len(maps))
                weights = own * _weights(name, picture.shape, guides and guides[name], here)
                found[name] = form.style.means(maps, weights)
        return found

    return _added(means, rows, view)


def _down_to(network: vgg.PreparedNetwork, layers: Collection[str]) -> list[str]:
    """The network's layers down to the deepest of some."""
    return [name for name in network.filters if name <= max(layers)]
