"""How much of the style's palette has come into a result: pure functions of images.

Images are float32 `[height, width, 3]`, RGB in [0, 255].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxstyle.losses import base, objective
from jaxstyle.losses.terms import Image, Scalar, product

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
    by their shares; where they have regions it is the mean of theirs, weighted as in the objective, and 0 if none has
    any extent.
    """
    groups = objective.apart(styles)

    def quantiles(images: Sequence[tuple[Image, Array | None, float]]) -> Float[Array, "directions levels"]:
        """Of the projections of several images' colours, each with a guide and a share."""
        colours = jnp.concatenate([lab(image).reshape(-1, 3) for image, _, _ in images])
        weights = jnp.concatenate([share * _position_weights(image, guide) for image, guide, share in images])
        return jax.lax.map(
            lambda direction: _quantiles(product(colours, direction), weights), _sphere(DIRECTIONS)
        )

    def distance(group: Sequence[objective.Style]) -> Scalar:
        own = quantiles([(result, group[0].content_mask, 1.0)])
        goal = quantiles([(style.picture, style.style_mask, style.share) for style in group])
        return jnp.mean(jnp.abs(own - goal))

    total = sum(weight for weight, _ in groups)
    return sum(weight * distance(group) for weight, group in groups) / jnp.where(total > 0, total, 1)


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
