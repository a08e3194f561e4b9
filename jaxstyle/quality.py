"""How good a result is, by more than the loss that was optimised: pure functions of images.

Images are float32 `[height, width, 3]`, RGB in [0, 255].
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxstyle.losses import gram, objective
from jaxstyle.network import vgg

Image = Float[Array, "height width 3"]
Scalar = Float[Array, ""]

#: Layers that LPIPS compares, the last of each block.
LPIPS_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")

#: Layers that no default of the program optimises, for the distance of styles.
HELD_OUT_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")


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
    features = [vgg.features(network, image, LPIPS_LAYERS) for image in (first, second)]
    total = jnp.float32(0)
    for layer in LPIPS_LAYERS:
        a, b = (_unit(maps[layer]) for maps in features)
        total += jnp.mean((a - b) ** 2 @ heads[layer])
    return total


def _unit(maps: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
    """Each position's features over their norm."""
    return maps / (jnp.sqrt(jnp.sum(maps**2, -1, keepdims=True)) + 1e-10)


def style_distances(
    network: vgg.PreparedNetwork, result: Image, styles: Sequence[objective.Style]
) -> dict[str, Scalar]:
    """Relative distance ‖G − A‖ / ‖A‖ of Gram matrices at `HELD_OUT_LAYERS`, by Frobenius norm.

    G is the result's, A that of the style pictures, blended by their shares: 0 for the style itself, 1 for an image
    without features. Where styles have regions, G and A are those of each, and the distance is their mean, weighted
    as in the objective. Of a layer that was not optimised it tells whether the style came through or only its
    statistics where they were asked for.
    """
    regions = objective.regions(objective.GATYS, HELD_OUT_LAYERS, network, styles)
    found = vgg.features(network, result, HELD_OUT_LAYERS)

    def distance(region: objective.Region, layer: str) -> Scalar:
        target = region.targets[layer]
        own = gram.guided_gram(found[layer], region.guides and region.guides[layer])
        return jnp.linalg.norm(own - target) / jnp.linalg.norm(target)

    weights = sum(region.weight for region in regions)
    return {
        layer: sum(region.weight * distance(region, layer) for region in regions) / weights
        for layer in HELD_OUT_LAYERS
    }
