"""The objective in strips of rows: the same loss and gradient, in memory that hardly grows with the image's height.

    evaluation = strips.evaluate(GATYS._replace(strips=4), problem, image)

Content and style are sums over positions. Block by block, a first pass takes the maps through the network in strips:
what a block gives to the next is made whole, and each strip leaves its part of the content loss and of the means that
style is made of. The slopes of the loss with respect to these parts are taken once; a second pass, from the deepest
block up, pulls them back through each strip.

A window is a strip with the rows above and below it that the layers of one block see, so parts and gradients are
those of the whole image: no seams. As each block is cut anew, they are four rows of its own maps on either side.
All windows of a block have one height and begin at multiples of four rows, as pooling and Winograd's tiles do; the
first and the last end where the maps do, so the network's own padding is right there.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from jaxstyle.losses.base import Group, position_weights
from jaxstyle.losses.objective import WHOLE, Evaluation, Form, Image, Problem, Read, Scalar, Terms
from jaxstyle.losses.terms import Features, Guide, gatys_content, sum_of_terms
from jaxstyle.network import vgg

#: Windows begin at multiples of so many rows of a block's maps.
_STEP = 4

#: A strip has at least so many rows of its block's maps.
_LEAST = 16


class Windows(NamedTuple):
    """Rows of a block's maps: window k is those from `starts[k]` on, its strip `bounds[k]` up to `bounds[k + 1]`."""

    height: int
    starts: Int[np.ndarray, " strips"]
    bounds: Int[np.ndarray, " strips+1"]


class Rows(NamedTuple):
    """Those of one window: the first, and those from which and up to which its strip is."""

    start: Int[Array, ""]
    begin: Int[Array, ""]
    end: Int[Array, ""]


class Parts(NamedTuple):
    """Of the strips of a block, stacked: the weighted content loss, and by region and layer parts of style."""

    content: Scalar
    style: Sequence[Mapping[str, Any]]


def windows(height: int, strips: int, layers: int) -> Windows:
    """Windows of the maps of a block.

    Args:
      height: of its maps.
      strips: as many, or fewer if there are less than 16 rows for each.
      layers: in the block.
    """
    strips, halo = max(1, min(strips, height // _LEAST)), -(-layers // _STEP) * _STEP
    bounds = np.arange(strips + 1) * (height // _STEP) // strips * _STEP
    bounds[-1] = height
    least, rest = max(np.diff(bounds)) + 2 * halo, height % _STEP
    window = min(height, -(-(least - rest) // _STEP) * _STEP + rest)
    return Windows(window, np.clip(bounds[:-1] - halo, 0, height - window), bounds)


def plans(height: int, blocks: Sequence[Sequence[str]], strips: int) -> list[Windows]:
    """The windows of each block for an image of so many rows.

    From the third block on maps need half of the memory of those before, so half as many strips do.
    """
    return [
        windows(height >> number, -(-strips >> max(0, number - 1)), len(names))
        for number, names in enumerate(blocks)
    ]


def divisible(form: Form) -> bool:
    """Whether a form of the losses has strips: a sum of a content loss over positions and a style loss of means."""
    return form.total is sum_of_terms and form.content is gatys_content and form.style.part is not None


def estimate(form: Form, layers: Sequence[str], shape: Sequence[int]) -> int:
    """Bytes that an evaluation holds in between for an image of this shape, or some more.

    In feature maps of all layers, as VGG16's evaluations need that were compiled for 512² to 8192² pixels.
    """
    whole, strips = (1.25, 0.15) if form.remat else (1.6, 0.5)
    factor = whole if form.strips == 1 else strips + 1.25 / form.strips
    return int(factor * 4 * sum(vgg.size(name, shape) for name in layers))


def fitting(form: Form, layers: Sequence[str], shape: Sequence[int], free: int) -> Form:
    """The form in as few strips as fit, with maps computed again only where nothing else does: this costs most time.

    Where nothing fits it is the one of least memory; a form without strips stays whole.
    """
    choices = [form._replace(strips=2**k) for k in (range(7) if divisible(form) else range(1))]
    if not form.remat and divisible(form):
        choices = choices[:4] + [each._replace(remat=True) for each in choices[3:]]
    return next((each for each in choices if estimate(each, layers, shape) <= free), choices[-1])


def _rows(plan: Windows) -> Rows:
    return Rows(*(jnp.asarray(each) for each in (plan.starts, plan.bounds[:-1], plan.bounds[1:])))


def _cut(maps: Array, plan: Windows, rows: Rows) -> Array:
    return lax.dynamic_slice_in_dim(maps, rows.start, plan.height)


def _join(plan: Windows, parts: Array) -> Array:
    """The whole maps of stacked windows."""
    own = zip(parts, plan.bounds[:-1] - plan.starts, plan.bounds[1:] - plan.starts, strict=True)
    return jnp.concatenate([part[begin:end] for part, begin, end in own])


def _own(plan: Windows, rows: Rows) -> Float[Array, "height 1"]:
    """1 for the rows of a window that are of its strip, else 0."""
    row = rows.start + jnp.arange(plan.height)
    return ((row >= rows.begin) & (row < rows.end)).astype(jnp.float32)[:, None]


def _own_pooled(plan: Windows, rows: Rows, pooled: Array) -> Float[Array, "height 1 1"]:
    """The same for a window's pooled maps."""
    return _own(plan, rows)[: 2 * len(pooled) : 2, :, None]


def _convolve(
    network: vgg.PreparedNetwork, names: Sequence[str], maps: Array, known: Mapping[str, Features]
) -> dict[str, Features]:
    """The maps of a block's layers, of which what the gradient needs may be known."""
    found = {}
    for name in names:
        maps = found[name] = vgg.convolve(network, name, maps, known.get(name))
    return found


def _through(
    network: vgg.PreparedNetwork,
    names: Sequence[str],
    plan: Windows,
    maps: Array,
    leave: Callable[[Rows, Mapping[str, Features]], Any],
) -> tuple[Array, Any]:
    """What a block gives to the next, and what `leave` makes of each window's rows and maps, stacked."""

    def go(whole: Array, rows: Rows) -> tuple[Array, Any]:
        found = _convolve(network, names, _cut(maps, plan, rows), {})
        given = vgg.pool(network, found[names[-1]])
        there = lax.dynamic_slice_in_dim(whole, rows.start // 2, len(given))
        given = jnp.where(_own_pooled(plan, rows, given) > 0, given, there)
        return lax.dynamic_update_slice_in_dim(whole, given, rows.start // 2, 0), leave(rows, found)

    height, width, _ = maps.shape
    channels = network.filters[names[-1]].bias.size
    return lax.scan(go, jnp.zeros((height // 2, width // 2, channels), maps.dtype), _rows(plan))


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """What `objective.evaluate` gives, in `form.strips` strips.

    What the gradient needs of the maps is kept whole, but for what is computed again: the first block, whose maps are
    the largest, and the first layers of the two blocks after it, whose maps are twice as large as what these blocks
    are given. With `form.remat` all layers are.

    Raises:
      ValueError: the style loss has no parts, or the content loss is no sum over positions.
    """
    if not divisible(form):
        raise ValueError("this form of the losses is no sum over positions, and has no strips")
    network, maps, blocks = problem.network, image, []
    there = zip(network.blocks, plans(len(image), network.blocks, form.strips), strict=True)
    for number, (names, plan) in enumerate(there):
        sums = functools.partial(_parts, form, problem, image.shape, plan)
        again = len(names) if form.remat or number == 0 else int(number < 3)
        keep = functools.partial(_kept, problem, names[again:])

        def leave(rows: Rows, found: Mapping[str, Features], sums: Any = sums, keep: Any = keep) -> Any:
            return sums(rows, found), keep(found)

        given, (parts, known) = _through(network, names, plan, maps, leave)
        blocks.append((_Block(names, plan, maps, sums), parts, known))
        maps = given
    content = sum(jnp.sum(parts.content) for _, parts, _ in blocks)
    style, slopes = jax.value_and_grad(functools.partial(_style, form, problem))(
        [parts.style for _, parts, _ in blocks]
    )
    tv, gradient_tv = jax.value_and_grad(lambda image: problem.tv_weight * form.variation(image))(image)
    gradient = jnp.zeros_like(maps)
    for (block, parts, known), slope in zip(reversed(blocks), reversed(slopes), strict=True):
        each = _rows(block.plan), Parts(jnp.ones_like(parts.content), slope), known
        gradient = _pull(network, block, gradient, each)
    return Evaluation(content + style + tv, Terms(content, style, tv), gradient + gradient_tv)


class _Block(NamedTuple):
    """A block's layers and windows, the maps that it is given, and the parts of a window's rows and maps."""

    names: Sequence[str]
    plan: Windows
    maps: Array
    sums: Callable[[Rows, Mapping[str, Features]], Parts]


def _kept(problem: Problem, names: Sequence[str], maps: Mapping[str, Features]) -> dict[str, Array]:
    """What the gradient needs of the maps of some of a block's layers.

    Of a layer without losses it needs a yes or no per element: did ReLU let it through and, before max pooling, was
    it the window's maximum. A byte holds that. The slopes of l2 pooling need the values.
    """
    kept, pooled = {}, list(maps)[-1]
    for name in names:
        found = maps[name]
        if name in problem.content_targets or name in problem.style_weights:
            kept[name] = found
        elif name != pooled:
            kept[name] = found > 0
        elif problem.network.pooling == "l2":
            kept[name] = found
        else:
            given, back = jax.vjp(functools.partial(vgg.pool, problem.network), found)
            kept[name] = (found > 0) & (back(jnp.ones_like(given))[0] > 0)
    return kept


def _pull(
    network: vgg.PreparedNetwork,
    block: _Block,
    above: Array,
    windows: tuple[Rows, Parts, Mapping[str, Array]],
) -> Array:
    """The gradient with respect to what a block is given.

    It takes the place of the maps that the block is given, row by row as no window needs them any more.

    Args:
      network, block: what it goes through.
      above: the gradient with respect to what the block gives to the next.
      windows: their rows, the slopes of their parts, and what was kept of their maps.
    """
    plan, (rows, _, kept) = block.plan, windows
    following = jnp.append(rows.start[1:], len(block.maps))
    overlap = plan.height - min(np.diff(plan.starts), default=plan.height)

    def pull(carry: tuple[Array, Array], each: Any) -> tuple[tuple[Array, Array], None]:
        (maps, before), ((rows, slopes, kept), after) = carry, each
        known = {name: maps.astype(jnp.float32) for name, maps in kept.items()}

        def forward(cut: Array) -> tuple[Array, Parts]:
            found = _convolve(network, block.names, cut, known)
            return vgg.pool(network, found[block.names[-1]]), block.sums(rows, found)

        cut = _cut(maps, plan, rows)
        (given, _), back = jax.vjp(forward, cut)
        deeper = lax.dynamic_slice_in_dim(above, rows.start // 2, len(given))
        (found,) = back((_own_pooled(plan, rows, given) * deeper, slopes))
        found += jnp.pad(before, ((0, plan.height - overlap), (0, 0), (0, 0)))
        done = (rows.start + jnp.arange(plan.height) < after)[:, None, None]
        maps = lax.dynamic_update_slice_in_dim(maps, jnp.where(done, found, cut), rows.start, 0)
        found = jnp.pad(found, ((0, overlap), (0, 0), (0, 0)))
        return (maps, lax.dynamic_slice_in_dim(found, after - rows.start, overlap)), None

    maps = jnp.zeros_like(block.maps) if block.names[0] in kept else block.maps
    nothing = jnp.zeros((overlap, *maps.shape[1:]), maps.dtype)
    return lax.scan(pull, (maps, nothing), (windows, following))[0][0]


def _style(form: Form, problem: Problem, parts: Sequence[Sequence[Mapping[str, Any]]]) -> Scalar:
    """The style term, of the parts by block, region and layer."""
    return sum(
        problem.style_weights[name]
        * region.weight
        * form.style.distance(form.style.join(left), region.targets[name])
        for block in parts
        for region, found in zip(problem.regions, block, strict=True)
        for name, left in found.items()
    )


def _parts(
    form: Form,
    problem: Problem,
    shape: Sequence[int],
    plan: Windows,
    rows: Rows,
    maps: Mapping[str, Features],
) -> Parts:
    """What one window leaves of an image of this shape: of each layer's rows those that belong to its strip."""
    own, content = _own(plan, rows), jnp.zeros(())
    style: list[dict[str, Any]] = [{} for _ in problem.regions]
    here = functools.partial(_cut, plan=plan, rows=rows)
    for name, found in maps.items():
        if name in problem.content_targets:
            guide = own if problem.content_guides is None else own * here(problem.content_guides[name])
            guide = jnp.broadcast_to(guide, found.shape[:2])
            loss = form.content(found, here(problem.content_targets[name]), guide)
            content += problem.content_weights[name] * loss
        if name in problem.style_weights:
            for region, parts in zip(problem.regions, style, strict=True):
                guide = region.guides and region.guides[name]
                parts[name] = form.style.part(found, own * _weights(name, shape, guide, here))
    return Parts(content, style)


def _weights(name: str, shape: Sequence[int], guide: Guide | None, here: Callable[[Guide], Guide]) -> Guide:
    """What positions of a window count at a layer, of an image of this shape."""
    if guide is not None:
        return here(position_weights(guide))
    height, width = (side >> vgg.halvings(name) for side in shape[:2])
    return jnp.full((1, width), 1 / (height * width), jnp.float32)


# --- targets ------------------------------------------------------------------------------------------------------


def reading(strips: int) -> Read:
    """How `objective.pose` takes pictures through the network in strips, by the memory of a window and of block 2.

    In more than one the style loss must have parts.
    """
    if strips == 1:
        return WHOLE
    return Read(functools.partial(_features, strips), functools.partial(_targets, strips))


def _features(
    strips: int, network: vgg.PreparedNetwork, picture: Image, layers: Collection[str]
) -> dict[str, Features]:
    def leave(plan: Windows, rows: Rows, found: Mapping[str, Features]) -> dict[str, Features]:
        return {name: maps for name, maps in found.items() if name in layers}

    return _taken(strips, network, picture, layers, leave, _join)


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

    def leave(plan: Windows, rows: Rows, found: Mapping[str, Features]) -> dict[str, Any]:
        here, own, parts = functools.partial(_cut, plan=plan, rows=rows), _own(plan, rows), {}
        for name in [name for name in found if name in groups]:
            weights = own * _weights(name, picture.shape, guides and guides[name], here)
            parts[name] = form.style.part(found[name], weights)
        return parts

    return _taken(strips, network, picture, groups, leave, lambda _, parts: form.style.join(parts))


def _taken(
    strips: int,
    network: vgg.PreparedNetwork,
    picture: Image,
    layers: Collection[str],
    leave: Callable[[Windows, Rows, Mapping[str, Features]], Mapping[str, Any]],
    join: Callable[[Windows, Any], Any],
) -> dict[str, Any]:
    """By layer, down to the deepest of some, what `join` makes of what is left of each window of its block."""
    blocks = [[name for name in names if name <= max(layers)] for names in network.blocks]
    blocks = [names for names in blocks if names]
    maps, taken = picture, {}
    for names, plan in zip(blocks, plans(len(picture), blocks, strips), strict=True):
        maps, left = _through(network, names, plan, maps, functools.partial(leave, plan))
        taken |= {name: join(plan, parts) for name, parts in left.items()}
    return taken
