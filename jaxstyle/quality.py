"""How good a result is, by more than the loss that was optimised: pure functions of images.

Images are float32 `[height, width, 3]`, RGB in [0, 255].
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxstyle.losses import base, gram, objective
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


# --- palette ------------------------------------------------------------------------------------------------------

#: Directions in which palettes are compared, and levels of their quantiles.
DIRECTIONS, LEVELS = 64, 256


def lab(image: Image) -> Float[Array, "height width 3"]:
    """CIE L*a*b* of sRGB, white at D65: L* in [0, 100], and a distance of 1 is about what an eye can tell."""
    rgb = jnp.clip(image / 255, 0, 1)
    linear = jnp.where(rgb <= 0.04045, rgb / 12.92, ((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4)
    primaries = jnp.array(_XYZ)
    xyz = linear @ (primaries / primaries.sum(1, keepdims=True)).T
    knee = 6 / 29
    f = jnp.where(xyz > knee**3, jnp.cbrt(jnp.maximum(xyz, knee**3)), xyz / (3 * knee**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


#: From linear sRGB, IEC 61966-2-1.
_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def palette_distance(result: Image, styles: Sequence[objective.Style]) -> Scalar:
    """Sliced Wasserstein distance of the colours of the result and of the style pictures, in units of L*a*b*.

    Rabin et al. 2012, "Wasserstein Barycenter and Its Application to Texture Mixing": the mean over directions on the
    sphere, spread evenly, of the distance of order 1 between the two projections. It is 0 for the same colours in
    other places, and half of c where all colours differ by a distance of c in one direction. Style pictures are mixed
    by their shares; where they have regions it is the mean of theirs, weighted as in the objective.
    """
    whole = [style for style in styles if style.content_mask is None]
    groups = [(1.0, whole)] * bool(whole)
    groups += [
        (style.share * jnp.mean(style.content_mask**2), [style])
        for style in styles
        if style.content_mask is not None
    ]

    def quantiles(images: Sequence[tuple[Image, Array | None, float]]) -> Float[Array, "directions levels"]:
        """Of the projections of several images' colours, each with a guide and a share."""
        colours = jnp.concatenate([lab(image).reshape(-1, 3) for image, _, _ in images])
        weights = jnp.concatenate([share * _position_weights(image, guide) for image, guide, share in images])
        return jax.lax.map(lambda direction: _quantiles(colours @ direction, weights), _sphere(DIRECTIONS))

    def distance(group: Sequence[objective.Style]) -> Scalar:
        own = quantiles([(result, group[0].content_mask, 1.0)])
        goal = quantiles([(style.picture, style.style_mask, style.share) for style in group])
        return jnp.mean(jnp.abs(own - goal))

    return sum(weight * distance(group) for weight, group in groups) / sum(weight for weight, _ in groups)


def _position_weights(image: Image, guide: Float[Array, "height width"] | None) -> Float[Array, " positions"]:
    guide = jnp.ones(image.shape[:2]) if guide is None else guide
    return base.position_weights(guide).ravel()


def _sphere(count: int) -> Float[Array, "directions 3"]:
    """Unit vectors spread evenly over half of the sphere: a spiral by the golden angle."""
    k = jnp.arange(count) + 0.5
    height, angle = k / count, jnp.pi * (3 - 5**0.5) * k
    radius = jnp.sqrt(1 - height**2)
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), height], -1)


def _quantiles(values: Float[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, " levels"]:
    """At evenly spaced levels, the value below which that part of the weights lies."""
    order = jnp.argsort(values)
    reached = jnp.cumsum(weights[order])
    levels = (jnp.arange(LEVELS) + 0.5) / LEVELS * reached[-1]
    return values[order][jnp.searchsorted(reached, levels)]
