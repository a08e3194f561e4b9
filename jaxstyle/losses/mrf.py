"""Markov random fields: patches of features, each drawn to its nearest among those of the style picture."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxstyle.losses.base import Key, StyleLoss, position_weights
from jaxstyle.losses.terms import Features, Guide, Scalar

#: The MRF loss keeps so many patches of a style picture, on a regular grid.
MAX_PATCHES = 2048


class Patches(NamedTuple):
    """Patches of 3×3 positions around some positions of a style picture; those outside its guide are not used."""

    patches: Float[Array, "9 patches channels"]
    used: Bool[Array, " patches"]


#: In a patch, so small a component of all patches alike: it gives a patch of zeros a direction, and a nearest patch.
_CONSTANT = 1e-3


def patches(features: Features, guide: Guide | None, key: Key) -> Patches:
    """Patches on the finest regular grid with no more than `MAX_PATCHES` positions.

    With a guide each cell of the grid gives the patch at its largest guide, so that no region falls between the
    grid's positions; those are used where that is at least half of the largest of all.
    """
    del key
    height, width, _ = features.shape
    stride = next(s for s in itertools.count(1) if -(-height // s) * -(-width // s) <= MAX_PATCHES)
    rows, columns = jnp.mgrid[:height:stride, :width:stride].reshape(2, -1)
    used = jnp.ones(rows.shape, bool)
    if guide is not None:
        cells = _cells(guide, stride)
        inside = jnp.argmax(cells, 1)
        rows, columns = rows + inside // stride, columns + inside % stride
        largest = jnp.max(cells, 1)
        used = largest >= jnp.max(largest) / 2
    padded = _pad(features)
    found = [padded[rows + i, columns + j] for i, j in itertools.product(range(3), repeat=2)]
    return Patches(jnp.stack(found), used)


def _cells(guide: Guide, stride: int) -> Float[Array, "cells positions"]:
    """The guide of each cell of a grid of stride × stride positions, from left to right; -1 beyond the border."""
    down, right = (-side % stride for side in guide.shape)
    whole = jnp.pad(guide, ((0, down), (0, right)), constant_values=-1)
    height, width = whole.shape
    blocks = whole.reshape(height // stride, stride, width // stride, stride)
    return blocks.swapaxes(1, 2).reshape(-1, stride * stride)


def join_patches(targets: Sequence[tuple[Patches, float]]) -> Patches:
    """The patches of all style pictures in one set, from which an image takes what is nearest.

    Shares are ignored: a picture's part in the result follows from how often its patches are the nearest.
    """
    found, used = zip(*(target for target, _ in targets), strict=True)
    return Patches(jnp.concatenate(found, 1), jnp.concatenate(used))


def markov_random_field(features: Features, guide: Guide | None, target: Patches) -> Scalar:
    """Mean of (F − S)² over the elements of the image's patches F and their matches S.

    Li and Wand 2016, "Combining Markov Random Fields and Convolutional Neural Networks for Image Synthesis",
    equations 2 and 3, with the mean for the sum. Every position has a patch of 3×3 positions around it, the
    outermost repeated beyond the border; its match is the style patch of the largest normalised correlation. At the
    style itself the loss is 0 if all of its patches are kept.
    """
    padded = _pad(features)
    matches = jax.lax.stop_gradient(_match(padded, target))

    def add(sums: Guide, given: tuple[Int[Array, ""], Features]) -> tuple[Guide, None]:
        place, patches = given
        neighbours = jax.lax.dynamic_slice(padded, (place // 3, place % 3, 0), features.shape)
        return sums + jnp.mean((neighbours - patches[matches]) ** 2, -1), None

    # One of nine at a time, and again for the gradient: kept, they were 30 times the features.
    sums = jnp.zeros(features.shape[:2], features.dtype)
    sums = jax.lax.scan(jax.checkpoint(add), sums, (jnp.arange(9), target.patches))[0] / 9
    return jnp.mean(sums) if guide is None else jnp.sum(position_weights(guide) * sums)


def _pad(features: Features) -> Features:
    return jnp.pad(features, ((1, 1), (1, 1), (0, 0)), "edge")


def _match(padded: Features, target: Patches) -> Int[Array, "height width"]:
    """The style patch that correlates best with the image's patch around each position.

    The norm of the image's patch has no part in which is the best.
    """
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    norms = jnp.sqrt(jnp.sum(target.patches**2, (0, 2)) + _CONSTANT**2)
    filters = (target.patches / norms[None, :, None]).swapaxes(0, 1).reshape(len(norms), -1)
    constants = jnp.where(target.used, _CONSTANT**2 / norms, -jnp.inf)

    def match_row(row: Int[Array, ""]) -> Int[Array, " width"]:
        strip = jax.lax.dynamic_slice_in_dim(padded, row, 3)
        found = jnp.concatenate(
            [strip[i, j : j + width] for i, j in itertools.product(range(3), repeat=2)], 1
        )
        return jnp.argmax(found @ filters.T + constants[None], 1)

    # As many rows at once as keep a product large and its correlations few.
    return jax.lax.map(match_row, jnp.arange(height), batch_size=max(1, 512 // width))


STYLE_LOSS = StyleLoss(patches, join_patches, markov_random_field)
