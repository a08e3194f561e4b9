"""How much of the photo is left in a result: pure functions of images.

Images are float32 `[height, width, 3]`, RGB in [0, 255].
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxstyle.losses.terms import Features, Image, Scalar, product
from jaxstyle.network import vgg

#: Layers that are compared, the last of each block.
LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")

#: Self-similarity is of so many positions at most.
MAX_POSITIONS = 1024


def lpips(
    network: vgg.PreparedNetwork,
    heads: Mapping[str, Float[Array, " channels"]],
    first: Image,
    second: Image,
) -> Scalar:
    """Learned perceptual distance of two images of one shape; 0 for equal ones, some 0.7 for unlike ones.

    Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1; the VGG
    variant of version 0.1.

    Args:
      network: torchvision's VGG16 down to block5_conv3, with max pooling and zeros around the image.
      heads: weights of the channels by layer, see `weights.lpips_heads`.
      first, second: of at least 16×16 pixels.
    """
    features = [vgg.features(network, image, LAYERS) for image in (first, second)]
    total = jnp.float32(0)
    for layer in LAYERS:
        a, b = (_unit(maps[layer]) for maps in features)
        total += jnp.mean((a - b) ** 2 @ heads[layer])
    return total


def _unit(maps: Features) -> Features:
    """Each position's features over their norm."""
    return maps / (jnp.sqrt(jnp.sum(maps**2, -1, keepdims=True)) + 1e-10)


def self_similarity_distance(network: vgg.PreparedNetwork, first: Image, second: Image) -> Scalar:
    """How differently the parts of two images of one shape resemble each other: in [0, 1], 0 for equal images.

    The content loss of Kolkin et al. 2019, "Style Transfer by Relaxed Optimal Transport and Self-Similarity": of the
    cosine distances between the features of all pairs of positions, each column divided by its sum, the absolute
    differences. Colours and strokes may change and the distance stay small, as long as what was alike is alike and
    what was not is not. A position's features are those of `LAYERS` in one row.

    NOTE: It is the paper's by another factor, which makes it the mean distance in total variation of two columns.
    Positions are those of a regular grid, as many as block3 has but at most `MAX_POSITIONS`, to which all layers are
    brought, where the paper draws 1024 of the image's own. And the features are of one layer a block, where the paper
    takes more layers and the colours of the image.
    """
    features = [vgg.features(network, image, LAYERS) for image in (first, second)]
    own, other = (_similarities(_hypercolumns(maps)) for maps in features)
    return jnp.sum(jnp.abs(own - other)) / (2 * len(own))


def _hypercolumns(maps: Mapping[str, Features]) -> Float[Array, "positions channels"]:
    """The features of all layers, by position of one grid."""
    height, width, _ = maps["block3_conv3"].shape
    shrink = min(1.0, (MAX_POSITIONS / (height * width)) ** 0.5)
    grid = tuple(max(1, int(side * shrink)) for side in (height, width))
    each = [jax.image.resize(layer, (*grid, layer.shape[-1]), "linear") for layer in maps.values()]
    return jnp.concatenate(each, -1).reshape(grid[0] * grid[1], -1)


def _similarities(features: Float[Array, "positions channels"]) -> Float[Array, "positions positions"]:
    """Cosine distances of all pairs, over the sum of their column."""
    unit = features / (jnp.linalg.norm(features, axis=1, keepdims=True) + 1e-10)
    distances = jnp.maximum(1 - product(unit, unit.T), 0)
    return distances / (jnp.sum(distances, 0, keepdims=True) + 1e-10)
