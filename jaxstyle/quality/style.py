"""How much of the style has come into a result: pure functions of images.

Images are float32 `[height, width, 3]`, RGB in [0, 255]. Where styles have regions, a distance is the mean of
theirs, weighted as in the objective; styles without one are blended in their statistics, by their shares.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxstyle.losses import objective, wasserstein
from jaxstyle.losses.base import StyleLoss
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.losses.terms import Image, Scalar, product
from jaxstyle.losses.wasserstein import Gaussian
from jaxstyle.network import vgg

#: Layers that the default losses do not optimise, for the distance of styles; `nearest` and `split` do, but the last.
HELD_OUT_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")

#: Of the variance of a style's features, what the principal components hold in which they are compared.
VARIANCE = 0.9

#: The layer before the second pooling, whose features SIFID compares.
SIFID_LAYER = "block2_conv2"


def style_distances(
    network: vgg.PreparedNetwork, result: Image, styles: Sequence[objective.Style]
) -> dict[str, Scalar]:
    """Relative distance ‖G − A‖ / ‖A‖ of Gram matrices at `HELD_OUT_LAYERS`, by Frobenius norm.

    G is the result's, A that of the style pictures, blended by their shares: 0 for the style itself, 1 for an image
    without features. At a layer that was not optimised it tells whether the style itself came through, or merely the
    numbers that were optimised.
    """

    def distance(own: Array, target: Array) -> Scalar:
        return jnp.linalg.norm(own - target) / jnp.linalg.norm(target)

    return _distances(network, result, styles, STYLE_LOSSES["gram"], distance)


def divergences(
    network: vgg.PreparedNetwork, result: Image, styles: Sequence[objective.Style]
) -> dict[str, Scalar]:
    """KL(result ‖ style) of the normal distributions of their features at `HELD_OUT_LAYERS`: 0 for the style itself.

    Yeh et al. 2020, "Improving Style Transfer with Calibrated Metrics": −log of it is their base E statistic, of how
    effectively the style was transferred. See `kullback_leibler` for what is computed and where it departs.
    """
    return _distances(network, result, styles, STYLE_LOSSES["wasserstein"], kullback_leibler)


def sifid(network: vgg.PreparedNetwork, result: Image, styles: Sequence[objective.Style]) -> Scalar:
    """The squared Fréchet distance of the normal distributions of the features at `SIFID_LAYER`.

    Shaham et al. 2019, "SinGAN: Learning a Generative Model from a Single Natural Image", section 3.2: between single
    images |m₁ − m₂|² + tr(S₁ + S₂ − 2 (S₁S₂)^½) of what a network sees before its second pooling.

    NOTE: The network is VGG16 and not Inception, so that values compare among themselves, and to no other program's.
    """
    found = _distances(network, result, styles, STYLE_LOSSES["wasserstein"], frechet, [SIFID_LAYER])
    return found[SIFID_LAYER]


def kullback_leibler(own: Gaussian, target: Gaussian) -> Scalar:
    """KL(own ‖ target) of normal distributions, in the target's first principal components; 0 for equal ones.

    With the target's variances Λ there, the own covariance S and the difference d of the means in these coordinates,
    ½ (tr Λ⁻¹S + dᵀΛ⁻¹d − k − log det S / det Λ), as Yeh et al. have it.

    NOTE: The k components are the fewest that hold `VARIANCE` of this style's variance. The paper takes 32, 48, 128,
    256 and 256 of what it finds in a set of style pictures, at the first layer of each block; a small picture has
    too few positions for so many, and no set is needed this way.
    """
    values, vectors = (way[..., ::-1] for way in jnp.linalg.eigh(target.covariance))
    floor = wasserstein.BLUR * jnp.sum(values) + 1e-12  # what float32 can tell from 0
    values = jnp.maximum(values, floor)
    kept = jnp.cumsum(values) - values < VARIANCE * jnp.sum(values)
    # Whitened by the target; what is not kept is as the target has it, and gives nothing.
    white = vectors / jnp.sqrt(values)[None]
    covariance = product(product(white.T, own.covariance), white)
    covariance = jnp.where(kept[None] & kept[:, None], covariance, jnp.diag(~kept))
    moved = jnp.where(kept, product(own.mean - target.mean, white), 0)
    spread = jnp.maximum(jnp.linalg.eigvalsh((covariance + covariance.T) / 2), wasserstein.BLUR)
    return jnp.sum(spread - 1 - jnp.log(spread)) / 2 + jnp.sum(moved**2) / 2


def frechet(own: Gaussian, target: Gaussian) -> Scalar:
    """The squared Fréchet distance of normal distributions, both blurred as in `wasserstein`."""
    bures = wasserstein.squared_bures(own.covariance, target.covariance)
    return jnp.sum((own.mean - target.mean) ** 2) + bures


def _distances(
    network: vgg.PreparedNetwork,
    result: Image,
    styles: Sequence[objective.Style],
    statistics: StyleLoss,
    distance: Callable[[Any, Any], Scalar],
    layers: Sequence[str] = HELD_OUT_LAYERS,
) -> dict[str, Scalar]:
    """By layer, the distance of the result's statistics, those of a style loss that draws nothing, to the styles'."""
    form = objective.GATYS._replace(style=statistics)
    regions = objective.regions(form, layers, network, styles)
    found = vgg.features(network, result, layers)
    weights = sum(region.weight for region in regions)

    def mean(layer: str) -> Scalar:
        total = 0
        for region in regions:
            own = statistics.summarize(found[layer], region.guides and region.guides[layer], None)
            total += region.weight * distance(own, region.targets[layer])
        return total / jnp.where(weights > 0, weights, 1)

    return {layer: mean(layer) for layer in layers}
