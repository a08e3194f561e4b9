"""The objective: what an image is optimised for, as a pure function of the image and a pytree of targets.

    problem = objective.pose(GATYS, network, content, [Style(style)], weighting)
    evaluation = objective.evaluate(GATYS, problem, image)

The form of the losses is static (functions); everything a number can be is an array in the `Problem`, an
ARGUMENT of the compiled step, so that arms that differ in weights or targets share one program.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int, Key

from jaxstyle.losses.base import IMAGE, Chosen, Group, StyleLoss
from jaxstyle.losses.gram import guided_gram
from jaxstyle.losses.recipes import Weighting
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.losses.terms import (
    Image,
    Scalar,
    gatys_content,
    ivanov2017_content,
    ivanov2017_style,
    squared_variation,
    sum_of_terms,
    total_variation,
)
from jaxstyle.network import convolution, vgg

Mask = Float[Array, "height width"]


class Form(NamedTuple):
    """The formulas of the losses, and how they are computed in less memory. All of it static.

    `content` is a function of features, target and guide, `variation` one of the image, and `total` one of the three
    weighted terms: see `losses/terms.py`.
    `remat` computes feature maps again in place of keeping them; more than one of `strips` is for `strips.evaluate`,
    more than one of `devices` for `rows.evaluate`.
    """

    content: Callable[[Array, Array, Array | None], Scalar]
    style: StyleLoss
    variation: Callable[[Image], Scalar]
    remat: bool = False
    strips: int = 1
    devices: int = 1
    total: Callable[[Scalar, Scalar, Scalar], Scalar] = sum_of_terms


GATYS = Form(gatys_content, STYLE_LOSSES["gram"], squared_variation)
IVANOV2017 = Form(
    ivanov2017_content,
    STYLE_LOSSES["gram"]._replace(
        loss=lambda features, guide, target: ivanov2017_style(guided_gram(features, guide), target),
        distance=ivanov2017_style,
    ),
    total_variation,
)
FORMS = {"gatys": GATYS, "ivanov2017": IVANOV2017}


class Style(NamedTuple):
    """A style picture, and what of it goes where.

    Attributes:
      picture: RGB in [0, 255], of any size.
      share: > 0. Pictures without a content mask are blended by their shares; the others have their loss multiplied.
      content_mask: in [0, 1], of the photo's size: the region that takes this style. None is everywhere.
      style_mask: in [0, 1], of the picture's size: the region that the style is taken from. None is all of it.
    """

    picture: Image
    share: float = 1.0
    content_mask: Mask | None = None
    style_mask: Mask | None = None


class Region(NamedTuple):
    """Where in the image which style is wanted: everywhere, without guides.

    Guides are by layer, targets by group, and so is what is chosen of them, where the style loss chooses.
    """

    weight: Scalar
    guides: Mapping[str, Float[Array, "height' width'"]] | None
    targets: Mapping[str, Any]
    choices: Mapping[str, Any] = {}

    def wanted(self, name: str) -> Any:
        """What the style loss of a group is given."""
        target = self.targets[name]
        return Chosen(target, self.choices[name]) if name in self.choices else target


class Problem(NamedTuple):
    """All arrays that an evaluation needs besides the image.

    The weight of a layer is already multiplied by its term's weight, and there is one for each target. A group of
    layers goes by the name of its deepest, and its weight is the mean of theirs.
    """

    network: vgg.PreparedNetwork
    content_targets: Mapping[str, Float[Array, "height' width' channels"]]
    content_guides: Mapping[str, Float[Array, "height' width'"]] | None
    content_weights: Mapping[str, Scalar]
    regions: Sequence[Region]
    style_weights: Mapping[str, Scalar]
    style_groups: Mapping[str, Group]
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


class Read(NamedTuple):
    """How a problem takes pictures through the network.

    Attributes:
      features: of the network, a picture and layers: the feature maps of these, as `vgg.features`.
      targets: of a form, the network, a style picture, the groups of layers, guides by layer or None, and a key:
        targets by group.
    """

    features: Callable[..., Mapping[str, Array]]
    targets: Callable[..., dict[str, Any]]


def _targets(
    form: Form,
    network: vgg.PreparedNetwork,
    picture: Image,
    groups: Mapping[str, Group],
    guides: Mapping[str, Array] | None,
    key: Key[Array, ""],
) -> dict[str, Any]:
    found = vgg.features(network, picture, _layers(groups)) | {IMAGE: picture}
    given = functools.partial(_given, form)
    # Each group has its key, the same for all styles: a blend needs the same directions.
    return {
        name: form.style.summarize(given(group, found), given(group, guides), jax.random.fold_in(key, i))
        for i, (name, group) in enumerate(groups.items())
    }


def _layers(groups: Mapping[str, Group]) -> set[str]:
    """The network's layers in some groups."""
    return set().union(*groups.values()) - {IMAGE}


def _given(form: Form, group: Group, arrays: Mapping[str, Array] | None) -> Any:
    """What the style loss takes of arrays by layer."""
    return arrays and form.style.groups.given([arrays[name] for name in group])


WHOLE = Read(vgg.features, _targets)


def pose(
    form: Form,
    network: vgg.PreparedNetwork,
    content: Image,
    styles: Sequence[Style],
    weighting: Weighting,
    content_mask: Mask | None = None,
    key: Key[Array, ""] | None = None,
    read: Read = WHOLE,
) -> Problem:
    """The problem of giving the photo `content` the style of some pictures.

    Args:
      form: the formulas.
      network: prepared to the deepest layer of `weighting`, or deeper.
      content: the photo, RGB in [0, 255]; the image to optimise has its size.
      styles: one or more.
      weighting: the layers and their weights.
      content_mask: ≥ 0, of the photo's size: how much the content loss counts where. Its mean is made 1.
      key: for a style loss that draws directions or positions.
      read: how pictures are taken through the network; by default whole.

    Raises:
      KeyError: the network has no such layer.
      UserError: from `jaxstyle.pose` alone: a layer has nothing of a picture, or a mask is of another size than its
        picture or out of range.
    """
    content = _floating(content)
    guides = None
    if content_mask is not None:
        content_mask = _floating(content_mask)
        mean = jnp.mean(content_mask)
        guides = _guides(content_mask / jnp.where(mean > 0, mean, 1), weighting.content)
    wanted, groups = list(weighting.style), form.style.groups.by_deepest(weighting.style)
    found = regions(form, wanted, network, styles, key, read)
    problem = Problem(
        network=network,
        content_targets=read.features(network, content, weighting.content),
        content_guides=guides,
        content_weights=jax.tree.map(jnp.float32, dict(weighting.content)),
        regions=found,
        style_weights={name: _mean_weight(weighting.style, group) for name, group in groups.items()},
        style_groups=groups,
        tv_weight=jnp.float32(weighting.tv),
    )
    return taking(problem, choices(form, wanted, network, content, found, read))


def _floating(array: Array) -> Array:
    """Bytes, booleans and numbers of 16 bits as such that can be summed: of float16 the largest is 65,504."""
    wide = jnp.result_type(array, jnp.float32)
    return array if jnp.result_type(array) == wide else jnp.asarray(array, wide)


def _mean_weight(weights: Mapping[str, float], group: Group) -> Scalar:
    found = [jnp.float32(weights[name]) for name in group if name != IMAGE]
    return sum(found) / len(found)


def regions(
    form: Form,
    layers: Sequence[str],
    network: vgg.PreparedNetwork,
    styles: Sequence[Style],
    key: Key[Array, ""] | None = None,
    read: Read = WHOLE,
) -> list[Region]:
    """Those of `apart`, each with the statistics of its styles blended."""
    key = jax.random.key(0) if key is None else key
    styles = [jax.tree.map(_floating, style) for style in styles]
    groups = form.style.groups.by_deepest(layers)
    members = {name for group in groups.values() for name in group}

    def turned(style: Style, turn: int) -> dict[str, Any]:
        mask = style.style_mask
        guides = None if mask is None else _guides(jnp.rot90(mask, turn), members)
        picture = jnp.rot90(style.picture, turn)
        return read.targets(form, network, picture, groups, guides, key)

    def targets(style: Style) -> dict[str, Any]:
        if form.style.turned is None:
            return turned(style, 0)
        each = [turned(style, turn) for turn in range(4)]
        return {name: form.style.turned([t[name] for t in each]) for name in groups}

    def blended(styles: Sequence[Style]) -> dict[str, Any]:
        shares = sum(style.share for style in styles)
        each = [(targets(style), style.share / shares) for style in styles]
        return {name: form.style.blend([(t[name], share) for t, share in each]) for name in groups}

    found = []
    for weight, together in apart(styles):
        mask = together[0].content_mask
        guides = None if mask is None else _guides(mask, members)
        found.append(Region(weight, guides, blended(together)))
    return found


def apart(styles: Sequence[Style]) -> list[tuple[Scalar, list[Style]]]:
    """The styles of each region, with its weight: all without a content mask in one, and each of the others alone."""
    everywhere = [style for style in styles if style.content_mask is None]
    # By its extent, so that masks which make up the whole weigh as much as no mask does.
    others = [
        (style.share * jnp.mean(style.content_mask**2), [style])
        for style in styles
        if style.content_mask is not None
    ]
    return ([(jnp.float32(1), everywhere)] if everywhere else []) + others


def choices(
    form: Form,
    layers: Sequence[str],
    network: vgg.PreparedNetwork,
    picture: Image,
    regions: Sequence[Region],
    read: Read = WHOLE,
) -> list[dict[str, Any]]:
    """What of the targets of each region a picture takes, by group; nothing where the style loss takes all."""
    if form.style.choose is None:
        return []
    groups = form.style.groups.by_deepest(layers)
    maps = read.features(network, picture, _layers(groups)) | {IMAGE: picture}
    given = functools.partial(_given, form)
    return [
        {
            name: form.style.choose(region.targets[name], given(group, maps), given(group, region.guides))
            for name, group in groups.items()
        }
        for region in regions
    ]


def taking(problem: Problem, choices: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem with other choices of its targets; with its own where there are none."""
    if not choices:
        return problem
    return problem._replace(
        regions=[region._replace(choices=own) for region, own in zip(problem.regions, choices, strict=True)]
    )


def redrawn(form: Form, problem: Problem, step: Int[Array, ""]) -> Problem:
    """The problem with the positions of a step, where the style loss draws some."""
    if form.style.redraw is None:
        return problem

    def moved(region: Region) -> Region:
        targets = {name: form.style.redraw(each, step) for name, each in region.targets.items()}
        return region._replace(targets=targets)

    return problem._replace(regions=[moved(region) for region in problem.regions])


def mixture(form: Form, content: Image, image: Image) -> Image:
    """The picture by which an image on its way chooses: the photo mixed with the image, by the style loss's `own`."""
    return content + np.float32(form.style.own) * (image - content)


def _guides(mask: Mask, layers: Collection[str]) -> dict[str, Float[Array, "height' width'"]]:
    """A mask at the size of each layer: the mean over what a position stands for."""
    pooled = [mask]
    for _ in range(4):
        pooled.append(_halved(pooled[-1]))
    return {name: pooled[0 if name == IMAGE else vgg.halvings(name)] for name in layers}


def _halved(mask: Mask) -> Float[Array, "height//2 width//2"]:
    """Means over 2×2; an odd last row or column, for which a layer has no position, goes to the last that it has."""
    odd = [side % 2 if side > 1 else 0 for side in mask.shape]
    halved = convolution.average_pool(jnp.pad(mask, [(0, each) for each in odd], "edge")[..., None])[..., 0]
    for each in odd:
        if each:
            halved = jnp.concatenate([halved[:-2], (2 * halved[-2:-1] + halved[-1:]) / 3])
        halved = halved.T
    return halved


class LayerTerms(NamedTuple):
    """What one layer adds to the terms of the loss."""

    content: Scalar
    style: Scalar


def layer_terms(
    form: Form, problem: Problem, name: str, maps: Array, earlier: Mapping[str, Array]
) -> tuple[Array, LayerTerms]:
    """Feature maps of a layer from those of the layer before, and what it adds to the terms of the loss.

    Args:
      form, problem: of the loss.
      name: of the layer.
      maps: of the layer before, or the image.
      earlier: by layer, the maps of the others in the group that ends here.
    """
    maps = vgg.layer(problem.network, name, maps)
    content = style = jnp.zeros((), maps.dtype)
    if name in problem.content_targets:
        guide = problem.content_guides and problem.content_guides[name]
        loss = form.content(maps, problem.content_targets[name], guide)
        content = problem.content_weights[name] * loss
    if name in problem.style_weights:
        given = functools.partial(_given, form, problem.style_groups[name])
        seen = given({**earlier, name: maps})
        for region in problem.regions:
            style += region.weight * form.style.loss(seen, given(region.guides), region.wanted(name))
        style = problem.style_weights[name] * style
    return maps, LayerTerms(content, style)


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """Total loss, its terms and its gradient with respect to the image: what one step costs.

    Gatys et al. 2016, equations 1, 4, 5 and 7. The gradient is taken layer by layer from the deepest, in an order
    that saves memory: `jax.grad` would have XLA compute the gradients of all layers' losses at once and hold them
    until they are needed. Where a layer's style loss sees earlier maps as well, their slopes wait until the pullback
    is there. With `form.remat` only the first feature maps of each block and those of groups are kept, and the others
    are computed a second time.
    """
    tv, pull_tv = jax.vjp(lambda image: problem.tv_weight * form.variation(image), image)
    maps, found, blocks, known = image, [], [], {IMAGE: image}
    for names in problem.network.blocks:
        inputs = maps
        maps, own, pulls = _forward(form, problem, names, inputs, known)
        found += own
        blocks.append((names, inputs, pulls))
    content, style = map(sum, zip(*found, strict=True))
    total, slopes_of = jax.value_and_grad(form.total, (0, 1, 2))(content, style, tv)
    gradient, waiting = jnp.zeros_like(maps), {}
    for names, inputs, pulls in reversed(blocks):
        if form.remat:
            inputs, gradient = lax.optimization_barrier((inputs, gradient))
            _, _, pulls = _forward(form, problem, names, inputs, known)
        for name, pull in zip(reversed(names), reversed(pulls), strict=True):
            # The layer's own losses wait for the gradient that comes from deeper ones.
            gradient, waiting, one = lax.optimization_barrier((gradient, waiting, jnp.ones((), maps.dtype)))
            gradient = sum(waiting.pop(name, []), gradient)
            gradient, slopes = pull((gradient, LayerTerms(one * slopes_of[0], one * slopes_of[1])))
            for earlier, slope in slopes.items():
                waiting[earlier] = [*waiting.get(earlier, []), slope]
    (gradient_tv,) = pull_tv(slopes_of[2])
    gradient = sum(waiting.pop(IMAGE, []), gradient)
    return Evaluation(total, Terms(content, style, tv), gradient + gradient_tv)


def _forward(
    form: Form, problem: Problem, names: Sequence[str], maps: Array, known: dict[str, Array]
) -> tuple[Array, list[LayerTerms], list[Callable]]:
    """The last maps of some layers, their terms, and the functions that pull gradients back through each.

    `known`, the maps of earlier layers by name, is given theirs.
    """
    found, pulls = [], []
    for name in names:
        one = functools.partial(layer_terms, form, problem, name)
        earlier = {member: known[member] for member in problem.style_groups.get(name, ())[:-1]}
        (maps, own), pull = jax.vjp(one, maps, earlier)
        known[name] = maps
        found.append(own)
        pulls.append(pull)
    return maps, found, pulls
