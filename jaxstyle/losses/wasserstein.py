"""The Wasserstein distance of Gaussians: mean and covariance of features."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxstyle import machine
from jaxstyle.losses.base import StyleLoss, mean_by_share, position_weights
from jaxstyle.losses.gram import guided_gram, weighted_gram
from jaxstyle.losses.terms import Array, Features, Gram, Guide, Scalar, product

#: The Wasserstein loss blurs both distributions by noise, whose variance in each direction is this fraction of the
#: sum of the channels' variances: what float32 can tell from a covariance without full rank. Where it does not make
#: both positive it is the stronger one: of stripes or a slow gradient a million positions round off to 1e-5.
BLUR, STRONGER_BLUR = 1e-6, 1e-4

#: On a CPU of so many cores or fewer a singular value decomposition, which keeps to one, takes less time than 36
#: products, which use them all: of 512 channels 34 ms where these take 53 ms on two.
FEW_CORES = 2


class Gaussian(NamedTuple):
    """Mean and covariance of the features."""

    mean: Float[Array, " channels"]
    covariance: Gram


def gaussian(features: Features, guide: Guide | None) -> Gaussian:
    """Mean Σ wᵢFᵢ and covariance Σ wᵢ(Fᵢ − mean)ᵀ(Fᵢ − mean) of the features."""
    mean = jnp.mean(features, (0, 1)) if guide is None else _mean(features, position_weights(guide))
    return Gaussian(mean, guided_gram(features - mean[None, None], guide))


def _mean(features: Features, weights: Guide) -> Float[Array, " channels"]:
    """Σᵢ wᵢFᵢ. As a product, XLA's CPU backend adds one position after another: of 2048² it is off by 1e-3."""
    return jnp.sum(weights[..., None] * features, (0, 1))


class Part(NamedTuple):
    """The weights' sum, and the mean and covariance of the features by them; zeros where nothing weighs."""

    weight: Scalar
    gaussian: Gaussian


def part(features: Features, weights: Guide) -> Part:
    """What a part of an image has of its mean and covariance, centred by its own mean: nothing large cancels."""
    total = jnp.sum(weights)
    own = weights / jnp.where(total > 0, total, 1)
    mean = _mean(features, own)
    return Part(total, Gaussian(mean, weighted_gram(features - mean[None, None], own)))


def join(parts: Part) -> Gaussian:
    """Mean and covariance of the whole from those of its parts, stacked.

    Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance": the pairwise algorithm.
    """
    total = jnp.sum(parts.weight)
    shares = parts.weight / jnp.where(total > 0, total, 1)
    mean = product(shares, parts.gaussian.mean)
    moved = parts.gaussian.mean - mean[None]
    within = jnp.tensordot(shares, parts.gaussian.covariance, 1, precision="highest")
    return Gaussian(mean, within + product((moved * shares[:, None]).T, moved))


def distance(found: Gaussian, target: Gaussian) -> Scalar:
    """W₂² / N between Gaussians of N channels, both blurred by `BLUR`.

    W₂² = |m₁ − m₂|² + tr(S₁ + S₂ − 2 (S₂^½ S₁ S₂^½)^½): Dowson and Landau 1982, "The Fréchet Distance between
    Multivariate Normal Distributions". The program crowsonkb/style-transfer-pytorch has it as a style loss.
    """
    moved = jnp.sum((found.mean - target.mean) ** 2)
    return (moved + squared_bures(found.covariance, target.covariance)) / found.mean.size


def wasserstein(features: Features, guide: Guide | None, target: Gaussian) -> Scalar:
    """The `distance` of the features' mean and covariance to a target."""
    return distance(gaussian(features, guide), target)


class Factor(NamedTuple):
    """A blurred covariance S = L Lᵀ and its trace."""

    lower: Gram
    trace: Scalar


def factor(covariance: Gram, blur: float = BLUR) -> Factor:
    """That of S + (`blur` · tr S) I, which has full rank even for features that do not vary; NaN where it has not."""
    trace, channels = jnp.trace(covariance), len(covariance)
    level = blur * trace + 1e-12  # far below the variance of a feature
    blurred = covariance + level * jnp.eye(channels, dtype=covariance.dtype)
    return Factor(jax.lax.linalg.cholesky(blurred, symmetrize_input=False), trace + channels * level)


@jax.custom_vjp
def squared_bures(first: Gram, second: Gram) -> Scalar:
    """tr(S₁ + S₂ − 2 (S₂^½ S₁ S₂^½)^½) of covariances, both blurred by `BLUR`, or by more where they need it.

    With any factors S = L Lᵀ it is the least |L₁Q − L₂|² for an orthogonal Q: Bhatia, Jain and Lim 2019, "On the
    Bures-Wasserstein Distance between Positive Definite Matrices", theorem 1. Nothing large cancels from that sum of
    squares, unlike from the traces, and it is exact to the second order in an error of Q.
    """
    return _bures_forward(first, second)[0]


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of matrices that, vmapped, takes them one after another on a CPU.

    There LAPACK's kernels share a batch out to XLA's threads and wait for them: if as many kernels run as there are
    threads, as those of several layers do, they wait for ever.
    """
    alone = jax.custom_batching.custom_vmap(function)

    @alone.def_vmap
    def rule(size: int, batched: Sequence[bool], *matrices: Any) -> tuple[Any, Any]:
        def spread(matrix: Any, has: Any) -> Any:
            return jax.tree.map(
                lambda x, own: x if own else jnp.broadcast_to(x, (size, *x.shape)), matrix, has
            )

        found = jax.lax.platform_dependent(
            *map(spread, matrices, batched),
            cpu=lambda *each: jax.lax.map(lambda one: function(*one), each),
            default=jax.vmap(function),
        )
        return found, jax.tree.map(lambda _: True, found)

    return alone


@_one_by_one
def _bures_forward(first: Gram, second: Gram) -> tuple[Scalar, tuple[Gram, Gram, Gram, Scalar]]:
    def factors(blur: float) -> tuple[Factor, Factor, Scalar]:
        return factor(first, blur), factor(second, blur), jnp.asarray(blur, first.dtype)

    found = factors(BLUR)
    positive = jnp.all(jnp.isfinite(found[0].lower) & jnp.isfinite(found[1].lower))
    (lower, trace), (target, target_trace), blur = jax.lax.cond(
        positive, lambda: found, lambda: factors(STRONGER_BLUR)
    )
    # A factor's norm is √tr, its least singular value √(`BLUR` · tr) or more.
    norms = jnp.sqrt(trace * target_trace)
    rotation = orthogonal_factor(product(lower.T, target) / norms)
    return jnp.sum((product(lower, rotation) - target) ** 2), (lower, target, rotation, blur)


@_one_by_one
def _bures_backward(factors: tuple[Gram, Gram, Gram, Scalar], gradient: Scalar) -> tuple[Gram, Gram]:
    lower, target, rotation, blur = factors
    slopes = _bures_slope(lower, target, rotation, blur), _bures_slope(target, lower, rotation.T, blur)
    return tuple(gradient * slope for slope in slopes)


def _bures_slope(lower: Gram, target: Gram, rotation: Gram, blur: Scalar) -> Gram:
    # I − T, T = L₁⁻ᵀ Q L₂ᵀ the symmetric matrix of the optimal transport; the blur grows with the trace.
    slope = jax.scipy.linalg.solve_triangular(
        lower, (lower - product(target, rotation.T)).T, trans=1, lower=True
    )
    return (slope + slope.T) / 2 + blur * jnp.trace(slope) * jnp.eye(len(slope), dtype=slope.dtype)


squared_bures.defvjp(_bures_forward, _bures_backward)


def orthogonal_factor(matrix: Gram) -> Gram:
    """U Vᵀ of the singular value decomposition U Σ Vᵀ: by that on few cores, and elsewhere by products.

    Args:
      matrix: singular values in (0.9 · `BLUR`, 1].
    """
    products = functools.partial(by_products, smallest=0.9 * BLUR)
    by_cpu = by_decomposition if machine.cores() <= FEW_CORES else products
    return jax.lax.platform_dependent(matrix, cpu=by_cpu, default=products)


def by_decomposition(matrix: Gram) -> Gram:
    """The orthogonal factor, by LAPACK in one thread."""
    left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
    return product(left, right)


def by_products(matrix: Gram, smallest: float) -> Gram:
    """The orthogonal factor, by products alone, which any device does fast.

    The Newton-Schulz iteration X ← ρX(3 − ρ²XᵀX) / 2 with the ρ of Chen and Chow 2014, "A Stable Scaling of
    Newton-Schulz for Improving the Sign Function Computation of a Hermitian Matrix".

    Args:
      matrix: singular values in (0, 1].
      smallest: a lower bound of the singular values.
    """
    scales, bound = [], smallest
    while 1 - bound > jnp.finfo(matrix.dtype).eps:
        # At ρ = √3 a singular value of 1 would become 0; their bound keeps clear of that.
        scales.append(min(1.6977, (3 / (1 + bound + bound**2)) ** 0.5))
        bound, top = (scales[-1] * x * (3 - scales[-1] ** 2 * x**2) / 2 for x in (bound, 1.0))
        bound = min(bound, top)

    def improve(x: Gram, scale: Scalar) -> tuple[Gram, None]:
        return scale * (1.5 * x - 0.5 * scale**2 * product(x, product(x.T, x))), None

    return jax.lax.scan(improve, matrix, jnp.array(scales, matrix.dtype))[0]


STYLE_LOSS = StyleLoss(
    lambda features, guide, key: gaussian(features, guide), mean_by_share, wasserstein, part, join, distance
)
