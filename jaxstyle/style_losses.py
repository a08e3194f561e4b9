"""The style losses: what each remembers of a style picture's feature maps, and how far an image's are from it.

Feature maps are float32 `[height, width, channels]`, M = height · width positions of N channels. A guide is
float32 `[height, width]`, ≥ 0: the region of a picture, soft masks included, at the layer's size. It multiplies
features, so that a position counts with wᵢ = gᵢ² / Σ g² in every loss here (Gatys et al. 2017, "Controlling
Perceptual Factors in Neural Style Transfer", section 4). Without a guide the whole picture counts, and a region of
no extent pulls nowhere.

A loss is a mean over positions, so that it does not grow with a picture or its region. `gram` is of the fourth order
in features; the others are of the second, mean squares by channel. So scaled they are of one size: for VGG16's
features of photos and paintings the others are 0.3 to 18 times `gram` where an image starts.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxstyle.losses import Features, Gram, Scalar, gatys_style, gram_matrix

Guide = Float[Array, "height width"]
Key = Array
Target = Any

#: The sliced loss keeps so many quantiles of a direction, or one a position where there are fewer positions.
MAX_QUANTILES = 2**16

#: The MRF loss keeps so many patches of a style picture, on a regular grid.
MAX_PATCHES = 2048

#: The Wasserstein loss blurs both distributions by noise, whose variance in each direction is this fraction of the
#: sum of the channels' variances: what float32 can tell from a covariance without full rank.
BLUR = 1e-6


class StyleLoss(NamedTuple):
    """A style loss in three pure functions. A target is a pytree of arrays.

    Attributes:
      summarize: the target that a style picture's feature maps at one layer give, in their guide. The key must be
        the same for all style pictures of a layer; only `sliced` draws from it.
      blend: the target of several style pictures by their shares, which sum to 1.
      loss: of the feature maps of the image that is optimised, in their guide, to a target.
    """

    summarize: Callable[[Features, Guide | None, Key], Target]
    blend: Callable[[Sequence[tuple[Target, float]]], Target]
    loss: Callable[[Features, Guide | None, Target], Scalar]


def mean_by_share(targets: Sequence[tuple[Target, float]]) -> Target:
    """The mean of targets of one structure and shape, each with its share."""
    (first, *others), shares = zip(*targets, strict=True)
    return jax.tree.map(
        lambda *arrays: sum(share * array for share, array in zip(shares, arrays, strict=True)),
        first,
        *others,
    )


def position_weights(guide: Guide) -> Float[Array, "height width"]:
    """wᵢ = gᵢ² / Σ g², or 0 everywhere for a guide of zeros."""
    total = jnp.sum(guide**2)
    return guide**2 / jnp.where(total > 0, total, 1)


# Gram matrices.


def guided_gram(features: Features, guide: Guide | None) -> Gram:
    """Σᵢ wᵢ FᵢᵀFᵢ, without a guide the plain Gram matrix FᵀF / M.

    Gatys et al. 2017, section 4.1: the features times a guide whose squares are normalised.
    """
    if guide is None:
        return gram_matrix(features)
    total = jnp.sum(guide**2)
    normalised = guide * jnp.sqrt(guide.size / jnp.where(total > 0, total, 1))
    return gram_matrix(features * normalised[..., None])


# Wasserstein distance of Gaussians.


class Gaussian(NamedTuple):
    """Mean and covariance of the features."""

    mean: Float[Array, " channels"]
    covariance: Gram


def gaussian(features: Features, guide: Guide | None) -> Gaussian:
    """Mean Σ wᵢFᵢ and covariance Σ wᵢ(Fᵢ − mean)ᵀ(Fᵢ − mean) of the features."""
    mean = (
        jnp.mean(features, (0, 1)) if guide is None else jnp.tensordot(position_weights(guide), features, 2)
    )
    return Gaussian(mean, guided_gram(features - mean[None, None], guide))


def wasserstein(features: Features, guide: Guide | None, target: Gaussian) -> Scalar:
    """W₂² / N between the Gaussians of the features' mean and covariance, both blurred by `BLUR`.

    W₂² = |m₁ − m₂|² + tr(S₁ + S₂ − 2 (S₂^½ S₁ S₂^½)^½): Dowson and Landau 1982, "The Fréchet Distance between
    Multivariate Normal Distributions". The program crowsonkb/style-transfer-pytorch has it as a style loss.
    """
    mean, covariance = gaussian(features, guide)
    moved = jnp.sum((mean - target.mean) ** 2)
    return (moved + squared_bures(blur(covariance), blur(target.covariance))) / mean.size


def blur(covariance: Gram) -> Gram:
    """The covariance S + (`BLUR` · tr S) I, which has full rank even for features that do not vary."""
    floor = 1e-12  # far below the variance of a feature
    return covariance + (BLUR * jnp.trace(covariance) + floor) * jnp.eye(
        len(covariance), dtype=covariance.dtype
    )


@jax.custom_vjp
def squared_bures(first: Gram, second: Gram) -> Scalar:
    """tr(S₁ + S₂ − 2 (S₂^½ S₁ S₂^½)^½) of blurred covariances.

    With any factors S = L Lᵀ it is the least |L₁Q − L₂|² for an orthogonal Q: Bhatia, Jain and Lim 2019, "On the
    Bures-Wasserstein Distance between Positive Definite Matrices", theorem 1. Nothing large cancels from that sum of
    squares, unlike from the traces, and it is exact to the second order in an error of Q.
    """
    return _bures_forward(first, second)[0]


def _bures_forward(first: Gram, second: Gram) -> tuple[Scalar, tuple[Gram, Gram, Gram]]:
    lower, target = jnp.linalg.cholesky(first), jnp.linalg.cholesky(second)
    # A factor's norm is √tr, its least singular value √(`BLUR` · tr) or more.
    norms = jnp.sqrt(jnp.trace(first) * jnp.trace(second))
    rotation = orthogonal_factor(lower.T @ target / norms, 0.9 * BLUR)
    return jnp.sum((lower @ rotation - target) ** 2), (lower, target, rotation)


def _bures_backward(factors: tuple[Gram, Gram, Gram], gradient: Scalar) -> tuple[Gram, Gram]:
    lower, target, rotation = factors
    return gradient * _bures_slope(lower, target, rotation), gradient * _bures_slope(
        target, lower, rotation.T
    )


def _bures_slope(lower: Gram, target: Gram, rotation: Gram) -> Gram:
    # I − T, T = L₁⁻ᵀ Q L₂ᵀ the symmetric matrix of the optimal transport.
    slope = jax.scipy.linalg.solve_triangular(lower, (lower - target @ rotation.T).T, trans=1, lower=True)
    return (slope + slope.T) / 2


squared_bures.defvjp(_bures_forward, _bures_backward)


def orthogonal_factor(matrix: Gram, smallest: float) -> Gram:
    """U Vᵀ of the singular value decomposition U Σ Vᵀ, by products alone, which any device does fast.

    The Newton-Schulz iteration X ← ρX(3 − ρ²XᵀX) / 2 with the ρ of Chen and Chow 2014, "A Stable Scaling of
    Newton-Schulz for Improving the Sign Function Computation of a Hermitian Matrix".

    Args:
      matrix: singular values in (0, 1].
      smallest: a lower bound of the singular values.
    """
    scales, bound = [], smallest
    while bound < 1 - 1e-9:
        # At ρ = √3 a singular value of 1 would become 0; their bound keeps clear of that.
        scales.append(min(1.6977, (3 / (1 + bound + bound**2)) ** 0.5))
        bound, top = (scales[-1] * x * (3 - scales[-1] ** 2 * x**2) / 2 for x in (bound, 1.0))
        bound = min(bound, top)

    def improve(x: Gram, scale: Scalar) -> tuple[Gram, None]:
        return scale * (1.5 * x - 0.5 * scale**2 * (x @ (x.T @ x))), None

    return jax.lax.scan(improve, matrix, jnp.array(scales, matrix.dtype))[0]


# Sliced Wasserstein distance.


class Slices(NamedTuple):
    """The distribution of features along some directions. Quantile k of K is that of level (k + ½) / K."""

    directions: Float[Array, "directions channels"]
    quantiles: Float[Array, "directions quantiles"]


def slices(features: Features, guide: Guide | None, key: Key) -> Slices:
    """The quantiles of the features' projections on N random directions: unit vectors, uniform on the sphere."""
    count = features.shape[-1]
    directions = jax.random.normal(key, (count, count), jnp.float32).astype(features.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    projections = _project(features, directions)
    positions = projections.shape[1]
    levels = (np.arange(min(positions, MAX_QUANTILES)) + 0.5) / min(positions, MAX_QUANTILES)
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
    of positions is compared to interpolated quantiles. At the style itself the loss is 0 if it has no more positions
    than `MAX_QUANTILES`; within a soft guide it is only nearly 0 there.
    """
    projections = _project(features, target.directions)
    positions, count = projections.shape[1], target.quantiles.shape[1]
    weights = None if guide is None else position_weights(guide).ravel()

    def transport(
        given: tuple[Float[Array, " positions"], Float[Array, " quantiles"]],
    ) -> Float[Array, " positions"]:
        """Where each position's projection belongs."""
        projection, quantiles = given
        # Integers sort in 0.6 of the time of floats: their comparison knows no NaN.
        _, order = jax.lax.sort(
            (_ordered_integers(projection), jnp.arange(positions, dtype=jnp.int32)),
            num_keys=1,
            is_stable=False,
        )
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


def _project(
    features: Features, directions: Float[Array, "directions channels"]
) -> Float[Array, "directions positions"]:
    return directions @ features.reshape(-1, features.shape[-1]).T


def _quantile(quantiles: Float[Array, " quantiles"], levels: Float[Array, " n"]) -> Float[Array, " n"]:
    """The quantiles of these levels, interpolated between the given ones; beyond them the outermost."""
    last = quantiles.size - 1
    place = jnp.clip(levels * quantiles.size - 0.5, 0, last)
    below = place.astype(jnp.int32)
    low, high = quantiles[below], quantiles[jnp.minimum(below + 1, last)]
    return low + (place - below) * (high - low)


def _ordered_integers(x: Float[Array, " n"]) -> Int[Array, " n"]:
    """Integers in the order of finite floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"int{x.dtype.itemsize * 8}"))
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


# Markov random fields.


class Patches(NamedTuple):
    """Patches of 3×3 positions around some positions of a style picture; those outside its guide are not used."""

    patches: Float[Array, "9 patches channels"]
    used: Bool[Array, " patches"]


#: In a patch, so small a component of all patches alike: it gives a patch of zeros a direction, and a nearest patch.
_CONSTANT = 1e-3


def patches(features: Features, guide: Guide | None, key: Key) -> Patches:
    """Patches on the finest regular grid with no more than `MAX_PATCHES` positions.

    With a guide those are used at whose centre it is at least half of its maximum on the grid.
    """
    del key
    height, width, channels = features.shape
    stride = next(s for s in itertools.count(1) if -(-height // s) * -(-width // s) <= MAX_PATCHES)
    padded = _pad(features)
    found = jnp.stack(
        [
            padded[i : i + height : stride, j : j + width : stride].reshape(-1, channels)
            for i, j in itertools.product(range(3), repeat=2)
        ]
    )
    if guide is None:
        return Patches(found, jnp.ones(found.shape[1], bool))
    centres = guide[::stride, ::stride].ravel()
    return Patches(found, centres >= jnp.max(centres) / 2)


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


STYLE_LOSSES = {
    "gram": StyleLoss(
        lambda features, guide, key: guided_gram(features, guide),
        mean_by_share,
        lambda features, guide, target: gatys_style(guided_gram(features, guide), target),
    ),
    "wasserstein": StyleLoss(
        lambda features, guide, key: gaussian(features, guide), mean_by_share, wasserstein
    ),
    "sliced": StyleLoss(slices, blend_slices, sliced_wasserstein),
    "mrf": StyleLoss(patches, join_patches, markov_random_field),
}
