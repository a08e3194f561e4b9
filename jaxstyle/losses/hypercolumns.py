"""Hypercolumns: what several layers say of one position, side by side.

Hariharan et al. 2015, "Hypercolumns for Object Segmentation and Fine-Grained Localization".
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses.base import position_weights
from jaxstyle.losses.terms import Features, Guide
from jaxstyle.network.convolution import average_pool

Columns = Float[Array, "positions channels"]

#: A column as short as this has next to no direction: that of zeros is zero.
_SHORTEST = 1e-6

#: (√5 − 1) / 2 of 2³².
_GOLDEN = 2654435769


def middle(arrays: Sequence[Array]) -> Array:
    """The maps, or the guide, of the middle layer, whose positions hypercolumns have: block 3 of blocks 1 to 4."""
    return arrays[len(arrays) // 2]


def hypercolumns(maps: Sequence[Features]) -> Features:
    """Maps of layers, shallow to deep, at the size of the middle one, each over its number of channels.

    Larger maps are averaged over what a position stands for, so that every pixel has a part in some column; smaller
    ones are interpolated. Without the division the deep layers alone, which have more channels, would decide the
    cosine: Kolkin et al. 2022, "Neural Neighbor Style Transfer".
    """
    shape = middle(maps).shape[:2]
    return jnp.concatenate([resized(each, shape) / each.shape[-1] for each in maps], -1)


def resized(maps: Features, shape: tuple[int, int]) -> Features:
    """Maps of a size or larger averaged, and smaller ones interpolated, to that size."""
    while maps.shape[0] >= 2 * shape[0] and maps.shape[1] >= 2 * shape[1]:
        maps = average_pool(maps)
    return maps if maps.shape[:2] == shape else jax.image.resize(maps, (*shape, maps.shape[-1]), "linear")


def directions(columns: Columns) -> Columns:
    """Columns of length 1. Half the square of the distance of two is one minus their cosine, and exact near 0."""
    return columns / jnp.sqrt(jnp.sum(columns**2, -1, keepdims=True) + _SHORTEST**2)


def turned(offsets: Float[Array, " count"], step: Int[Array, ""]) -> Float[Array, " count"]:
    """Other offsets for each step, those of step 0 as they are.

    All are moved round [0, 1) by a multiple of the golden ratio, so that successive steps draw evenly from a share:
    Weyl's sequence, in 32 bits.
    """
    way = (step.astype(jnp.uint32) * jnp.uint32(_GOLDEN)).astype(offsets.dtype) / 2.0**32
    found = offsets + way
    return found - (found >= 1)


def drawn(
    shape: tuple[int, int], guide: Guide | None, offsets: Float[Array, " most"]
) -> Int[Array, " count"]:
    """Positions of a picture in reading order, as many as there are offsets, or all where there are fewer.

    Each has its own share of the picture or, within a guide, of the sum of the positions' weights: it lies where its
    offset, in [0, 1), is in that share.
    """
    positions = shape[0] * shape[1]
    count = min(positions, len(offsets))
    if guide is None:
        if count == positions:
            return jnp.arange(positions)
        places = (jnp.arange(count) + offsets[:count]) * (positions / count)
        return jnp.minimum(places.astype(int), positions - 1)
    sums = jnp.cumsum(position_weights(guide).ravel())
    levels = (jnp.arange(count) + offsets[:count]) / count * sums[-1]
    # Rounded up to all of the sum, the last would lie beyond the guide.
    levels = jnp.minimum(levels, jnp.nextafter(sums[-1], 0))
    return jnp.minimum(jnp.searchsorted(sums, levels, side="right"), positions - 1)
