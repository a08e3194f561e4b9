"""Gram matrices across layers: which features of a layer go with which of the next."""

import itertools
from collections.abc import Sequence

from jaxtyping import Float

from jaxstyle.losses.base import Groups, StyleLoss, mean_by_share, position_weights
from jaxstyle.losses.hypercolumns import resized
from jaxstyle.losses.terms import Array, Features, Guide, Scalar, flat, product

CrossGram = Float[Array, "shallow deep"]


def cross_gram(maps: Sequence[Features], guides: Sequence[Guide] | None) -> CrossGram:
    """Σᵢ wᵢ SᵢᵀDᵢ of two layers, the shallower averaged over what a position of the deeper stands for."""
    deep = maps[-1]
    shallow = resized(maps[0], deep.shape[:2])
    if guides is not None:
        shallow = shallow * position_weights(guides[-1])[..., None]
    found = product(flat(shallow).T, flat(deep))
    return found / (deep.shape[0] * deep.shape[1]) if guides is None else found


def cross_layer(maps: Sequence[Features], guides: Sequence[Guide] | None, target: CrossGram) -> Scalar:
    """Σ (G − A)² / 4NN' of the matrices of two layers of N and N' channels.

    Novak and Nikulin 2016, "Improving the Neural Algorithm of Artistic Style", and Yeh and Tang 2018, "Improved Style
    Transfer by Respecting Inter-layer Correlations", scaled as Gatys' loss, which it is for one layer.
    """
    return ((cross_gram(maps, guides) - target) ** 2).sum() / (4 * target.size)


def neighbours(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Each layer with the next deeper of some; one alone with itself."""
    ordered = sorted(layers)
    return list(itertools.pairwise(ordered)) or [tuple(ordered)]


STYLE_LOSS = StyleLoss(
    lambda maps, guides, key: cross_gram(maps, guides),
    mean_by_share,
    cross_layer,
    groups=Groups(neighbours, tuple),
)
