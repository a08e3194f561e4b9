"""Relaxed optimal transport: the style's hypercolumns and the image's, each to the nearest of the others."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses import hypercolumns
from jaxstyle.losses.base import IMAGE, Groups, Key, StyleLoss
from jaxstyle.losses.hypercolumns import Columns
from jaxstyle.losses.terms import Features, Gram, Guide, Scalar, flat, gram_matrix, product

#: Positions that are drawn from a picture where it has more.
MAX_POSITIONS = 2048

#: What colours, in [0, 1], differ by without notice, and moments, relative to the style's: there the loss is smooth.
_SMOOTH = 0.01


class Distribution(NamedTuple):
    """Hypercolumns of style pictures at drawn positions, and the moments of them and their colours.

    `offsets` are those by which positions are drawn, of a style and, where they are not turned, of the image.
    """

    offsets: Float[Array, " most"]
    columns: Columns
    colors: Float[Array, "positions 3"]
    weights: Float[Array, " positions"]
    mean: Float[Array, " channels+3"]
    covariance: Gram


def _sampled(
    maps: Sequence[Features], guides: Sequence[Guide] | None, offsets: Float[Array, " most"]
) -> tuple[Columns, Float[Array, "positions 3"]]:
    """Hypercolumns and colours in [0, 1] at drawn positions. The picture itself is the first of the maps."""
    picture, *maps = maps
    found = hypercolumns.hypercolumns(maps)
    shape = found.shape[:2]
    at = hypercolumns.drawn(shape, guides and hypercolumns.middle(guides[1:]), offsets)
    colors = hypercolumns.resized(picture, shape) / 255
    return flat(found)[at], flat(colors)[at]


def _moments(columns: Columns, colors: Float[Array, "positions 3"]) -> tuple[Float[Array, " channels"], Gram]:
    both = jnp.concatenate([columns, colors], 1)
    mean = jnp.mean(both, 0)
    return mean, gram_matrix((both - mean[None])[None])


def distribution(maps: Sequence[Features], guides: Sequence[Guide] | None, key: Key) -> Distribution:
    """What is remembered of a style picture."""
    offsets = jax.random.uniform(key, (MAX_POSITIONS,))
    columns, colors = _sampled(maps, guides, offsets)
    weights = jnp.full(len(columns), 1 / len(columns), columns.dtype)
    return Distribution(offsets, columns, colors, weights, *_moments(columns, colors))


def mixture(targets: Sequence[tuple[Distribution, float]]) -> Distribution:
    """The distribution of a picture that is chosen by the shares."""
    mean = sum(share * each.mean for each, share in targets)

    def about_mean(each: Distribution) -> Gram:
        away = each.mean - mean
        return each.covariance + jnp.outer(away, away)

    return Distribution(
        targets[0][0].offsets,
        jnp.concatenate([each.columns for each, _ in targets]),
        jnp.concatenate([each.colors for each, _ in targets]),
        jnp.concatenate([share * each.weights for each, share in targets]),
        mean,
        sum(share * about_mean(each) for each, share in targets),
    )


def redraw(target: Distribution, step: Int[Array, ""]) -> Distribution:
    """The target for other positions of the image."""
    return target._replace(offsets=hypercolumns.turned(target.offsets, step))


def relaxed_transport(
    maps: Sequence[Features], guides: Sequence[Guide] | None, target: Distribution
) -> Scalar:
    """Relaxed earth mover's distances of hypercolumns and of colours, and the distance of the moments of both.

    Kolkin et al. 2019, "Style Transfer by Relaxed Optimal Transport and Self-Similarity", section 2, with these
    differences: hypercolumns are averages over a grid of positions and not of single pixels, and no colours are among
    their features; the palette is compared in RGB and weighs 1 whatever the content's weight; moments
    are relative to the style's; absolute values are smooth near 0; positions are part of the target, so that the loss
    is a function of the image: first-order methods are given other ones at each step.
    """
    columns, colors = _sampled(maps, guides, target.offsets)
    own, others = hypercolumns.directions(columns), hypercolumns.directions(target.columns)
    style = _relaxed(own, others, target.weights, lambda squares: squares / 2)
    palette = _relaxed(colors, target.colors, target.weights, _smooth)
    mean, covariance = _moments(columns, colors)
    moments = _relative(mean, target.mean) + _relative(covariance, target.covariance)
    inside = 1.0 if guides is None else jnp.where(jnp.any(guides[-1] > 0), 1.0, 0.0)
    return inside * (style + palette + moments)


def _relaxed(
    own: Columns, others: Columns, weights: Float[Array, " positions"], cost: Callable[[Array], Array]
) -> Scalar:
    """The larger of the mean costs of the way from each to the nearest of the others, and back.

    Whichever is nearest is constant but where two tie: so the gradient goes through the matches alone.
    """
    rows, columns = jax.lax.stop_gradient((own, others))
    near = jnp.sum(columns**2, 1)[None] / 2 - product(rows, columns.T)
    there = cost(jnp.sum((own - others[jnp.argmin(near, 1)]) ** 2, 1))
    near = near + jnp.sum(rows**2, 1)[:, None] / 2
    back = cost(jnp.sum((own[jnp.argmin(near, 0)] - others) ** 2, 1))
    return jnp.maximum(jnp.mean(there), jnp.sum(weights * back))


def _smooth(squares: Array) -> Array:
    """|x| by its square, smooth where it is much less than `_SMOOTH`."""
    return jnp.sqrt(squares + _SMOOTH**2) - _SMOOTH


def _relative(found: Array, target: Array) -> Scalar:
    """The mean absolute difference over the target's mean absolute value."""
    size = jnp.mean(jnp.abs(target)) + 1e-12
    return jnp.mean(_smooth(((found - target) / size) ** 2))


STYLE_LOSS = StyleLoss(
    distribution,
    mixture,
    relaxed_transport,
    groups=Groups(lambda layers: [(IMAGE, *sorted(layers))], tuple),
    redraw=redraw,
)
