"""The sliced Wasserstein distance: distributions of features along random directions."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses.base import Key, StyleLoss, position_weights
from jaxstyle.losses.terms import Features, Guide, Scalar, flat, product

#: The sliced loss keeps so many quantiles of a direction, or one a position where there are fewer positions.
MAX_QUANTILES = 2**16


class Slices(NamedTuple):
    """The distribution of features along some directions. Quantile k of K is that of level (k + ½) / K."""

    directions: Float[Array, "directions channels"]
    quantiles: Float[Array, "directions quantiles"]


def slices(features: Features, guide: Guide | None, key: Key) -> Slices:
    """The quantiles of the features' projections on N random directions: unit vectors, uniform on the sphere."""
    channels = features.shape[-1]
    directions = jax.random.normal(key, (channels, channels), jnp.float32).astype(features.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    projections = product(directions, flat(features).T)
    positions = projections.shape[1]
    count = min(positions, MAX_QUANTILES)
    levels = (np.arange(count) + 0.5) / count
    if guide is None:
        return Slices(directions, jnp.sort(projections)[:, np.int32(levels * positions)])
    weights, levels = position_weights(guide).ravel(), jnp.array(levels, features.dtype)

    def weighted(projection: Float[Array, " positions"]) -> Float[Array, " quantiles"]:
        order = jnp.argsort(projection)
        at = jnp.searchsorted(jnp.cumsum(weights[order]), levels)
        return projection[order][jnp.minimum(at, positions - 1)]

    return Slices(directions, jax.lax.map(weighted, projections))


def blend_slices(targets: Sequence[tuple[Slices, float]]) -> Slices:
    """The means of the quantiles: along each direction the Wasserstein barycentre."""
    count = max(target.quantiles.shape[1] for target, _ in targets)
    levels = (jnp.arange(count) + 0.5) / count
    means = sum(
        share * jax.vmap(_quantile, (0, None))(target.quantiles, levels)
        if target.quantiles.shape[1] < count
        else share * target.quantiles
        for target, share in targets
    )
    return Slices(targets[0][0].directions, means)


def sliced_wasserstein(features: Features, guide: Guide | None, target: Slices) -> Scalar:
    """Mean over directions of W₂² of the features' projections.

    Heitz et al. 2021, "A Sliced Wasserstein Loss for Neural Texture Synthesis", section 3, but with directions that
    stay the same, so that the loss is a function of the image. An image that differs from the target in its number
    of positions is compared to interpolated quantiles. At the style itself the loss is 0, but for the levels of
    `_order`, if it has no more positions than `MAX_QUANTILES`; within a soft guide it is only nearly 0 there.
    """
    projections = product(target.directions, flat(features).T)
    positions, count = projections.shape[1], target.quantiles.shape[1]
    weights = None if guide is None else position_weights(guide).ravel()

    def transport(
        given: tuple[Float[Array, " positions"], Float[Array, " quantiles"]],
    ) -> Float[Array, " positions"]:
        """Where each position's projection belongs."""
        projection, quantiles = given
        order = _order(projection)
        if weights is not None:
            sorted_weights = weights[order]
            found = _quantile(quantiles, jnp.cumsum(sorted_weights) - sorted_weights / 2)
        elif positions == count:
            found = quantiles
        else:
            found = _quantile(quantiles, (jnp.arange(positions, dtype=projection.dtype) + 0.5) / positions)
        return jnp.zeros_like(projection).at[order].set(found, unique_indices=True)

    # The order is constant but where projections tie, and with it what each is compared to: so the gradient needs
    # no derivative of sorting.
    goals = jax.lax.map(transport, jax.lax.stop_gradient((projections, target.quantiles)))
    squares = jnp.mean((projections - goals) ** 2, 0)
    return jnp.mean(squares) if weights is None else jnp.sum(weights * squares)


def _quantile(quantiles: Float[Array, " quantiles"], levels: Float[Array, " n"]) -> Float[Array, " n"]:
    """The quantiles of these levels, interpolated between the given ones; beyond them the outermost."""
    last = quantiles.size - 1
    place = jnp.clip(levels * quantiles.size - 0.5, 0, last)
    below = place.astype(jnp.int32)
    low, high = quantiles[below], quantiles[jnp.minimum(below + 1, last)]
    return low + (place - below) * (high - low)


def _order(projection: Float[Array, " positions"]) -> Int[Array, " positions"]:
    """The positions in the order of their projections.

    A position and its projection's level between the least and the largest share one unsigned integer, of which
    32 bits sort in a quarter of the time of pairs. Positions on one level stay in their own order: of 384×384 pixels,
    in float32, there are 2¹⁴ levels.
    """
    positions = projection.size
    dtype = jnp.dtype(f"uint{8 * projection.dtype.itemsize}")
    places = max(1, (positions - 1).bit_length())
    levels = 2 ** min(8 * dtype.itemsize - places, jnp.finfo(projection.dtype).nmant) - 1
    low, high = jnp.min(projection), jnp.max(projection)
    level = (projection - low) / jnp.where(high > low, high - low, 1) * levels
    keys = (level.astype(dtype) << places) | jnp.arange(positions, dtype=dtype)
    return jax.lax.sort(keys, is_stable=False) & (2**places - 1)


STYLE_LOSS = StyleLoss(slices, blend_slices, sliced_wasserstein)
