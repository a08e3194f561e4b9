"""What a style loss is: what it remembers of a style picture's feature maps, and how far an image's are from it.

It acts on groups of layers. A classical loss sees each layer alone; one of hypercolumns sees them all at once.

Feature maps are float32 `[height, width, channels]`, M = height · width positions of N channels. A guide is
float32 `[height, width]`, ≥ 0: the region of a picture, soft masks included, at the layer's size. It multiplies
features, so that a position counts with wᵢ = gᵢ² / Σ g² in every loss here (Gatys et al. 2017, "Controlling
Perceptual Factors in Neural Style Transfer", section 4). Without a guide the whole picture counts, and a region of
no extent pulls nowhere.

A loss is a mean over positions, so that it does not grow with a picture or its region. `gram` and `cross` are of the
fourth order in features; `wasserstein`, `sliced` and `mrf` of the second, mean squares by channel; `nearest`, `split`
and `rot` compare directions, which have no unit. So scaled they are of one size: for VGG16's features of photos and
paintings the others are 0.3 to 18 times `gram` where an image starts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses.terms import Features, Guide, Scalar

Key = Array
Target = Any

#: In a group, the picture itself as the shallowest layer.
IMAGE = "image"


@jax.tree_util.register_static
class Group(tuple):
    """Names of the layers that a loss sees at once, shallow to deep. It goes by the name of the deepest."""


class Groups(NamedTuple):
    """How a style loss sees layers.

    Attributes:
      of: the groups that some layers make.
      given: what the functions of the loss take, of the arrays of a group's layers: maps or guides.
    """

    of: Callable[[Sequence[str]], Iterable[Sequence[str]]]
    given: Callable[[Sequence[Array]], Any]

    def by_deepest(self, layers: Iterable[str]) -> dict[str, Group]:
        """The groups of some layers by their names."""
        return {group[-1]: Group(group) for group in self.of(list(layers))}


#: Each layer alone.
ALONE = Groups(lambda layers: [(layer,) for layer in layers], lambda arrays: arrays[0])


class Chosen(NamedTuple):
    """A style target, and what of it an image is to take."""

    target: Target
    choice: Any


class StyleLoss(NamedTuple):
    """A style loss in three pure functions, or more. A target is a pytree of arrays.

    Attributes:
      summarize: the target that a style picture's feature maps give, in their guide. The key must be the same for
        all style pictures of a group.
      blend: the target of several style pictures by their shares, which sum to 1.
      loss: of the feature maps of the image that is optimised, in their guide, to a target.
      part: for a loss of means over positions, what a part of an image adds to them: of feature maps and the weights
        of their positions, float32 `[height, width]`, 0 outside of the part. None for any other loss.
      join: the means, of such parts stacked. Those of a style picture are its target.
      distance: of means to a target.
      groups: which layers it sees at once. Where it is not `ALONE`, maps and guide are what `given` makes of those of
        a group's layers.
      choose: what of a target an image is to take, of the target, maps and their guide; the loss is then given a
        `Chosen`. None: all of it.
      turned: the target of a style picture from those of its four quarter turns, the first of them none. None: it is
        not turned.
      redraw: the target with other positions, of it and the number of a step, for optimizers whose steps need no
        common loss. None: it draws none.
      own: in [0, 1]. From the second scale on, what is chosen of a target is chosen for a mixture of the photo and
        the image so far; this is the image's part.
    """

    summarize: Callable[[Features, Guide | None, Key], Target]
    blend: Callable[[Sequence[tuple[Target, float]]], Target]
    loss: Callable[[Features, Guide | None, Target], Scalar]
    part: Callable[[Features, Float[Array, "height width"]], Any] | None = None
    join: Callable[[Any], Target] | None = None
    distance: Callable[[Any, Target], Scalar] | None = None
    groups: Groups = ALONE
    choose: Callable[[Target, Any, Any], Any] | None = None
    turned: Callable[[Sequence[Target]], Target] | None = None
    redraw: Callable[[Target, Int[Array, ""]], Target] | None = None
    own: float = 0.0


def mean_by_share(targets: Sequence[tuple[Target, float]]) -> Target:
    """The mean of targets of one structure and shape, each with its share."""
    (first, *others), shares = zip(*targets, strict=True)
    return jax.tree.map(
        lambda *arrays: sum(share * array for share, array in zip(shares, arrays, strict=True)),
        first,
        *others,
    )


def position_weights(guide: Guide) -> Float[Array, "height width"]:
    """wᵢ = gᵢ² / Σ g², or 0 everywhere for a guide of zeros."""
    total = jnp.sum(guide**2)
    return guide**2 / jnp.where(total > 0, total, 1)
