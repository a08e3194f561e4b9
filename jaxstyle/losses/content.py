"""The content losses by name: of feature maps, the photo's, and a guide, sums over their elements."""

import itertools

import jax.numpy as jnp
from jaxtyping import Float

from jaxstyle.losses.hypercolumns import directions
from jaxstyle.losses.terms import Array, Features, Guide, Scalar, flat, gatys_content, product

#: Positions of a regular grid whose similarities are compared.
MAX_POSITIONS = 1024


def self_similarity(features: Features, target: Features, guide: Guide | None = None) -> Scalar:
    """½ mean (D/d − D'/d')² over pairs of positions, each by both guides, times the number of elements.

    D are one minus the cosines of the features at two positions, d their mean over the first. What matters is which
    parts of the photo are alike, not what they look like: so shapes and colours may move. Kolkin et al. 2019, "Style
    Transfer by Relaxed Optimal Transport and Self-Similarity", section 2, on a grid and with squares, which are
    smooth, for absolute values.
    """
    height, width, _ = features.shape
    step = next(s for s in itertools.count(1) if -(-height // s) * -(-width // s) <= MAX_POSITIONS)
    at = tuple(slice(min((step - 1) // 2, side - 1), None, step) for side in (height, width))
    squares = (_distances(features[at]) - _distances(target[at])) ** 2
    if guide is not None:
        weights = guide[at].ravel()
        squares = squares * weights[:, None] * weights[None]
    return 0.5 * features.size * jnp.mean(squares)


def _distances(features: Features) -> Float[Array, "positions positions"]:
    found = directions(flat(features))
    distances = 1 - product(found, found.T)
    return distances / (jnp.mean(distances, 0) + 1e-6)[None]


CONTENT_LOSSES = {"squares": gatys_content, "self_similarity": self_similarity}
