"""Gram matrices of features: the style of Gatys et al. 2016."""

import jax.numpy as jnp

from jaxstyle.losses.base import StyleLoss, mean_by_share
from jaxstyle.losses.terms import Features, Gram, Guide, gatys_style, gram_matrix


def guided_gram(features: Features, guide: Guide | None) -> Gram:
    """Σᵢ wᵢ FᵢᵀFᵢ, without a guide the plain Gram matrix FᵀF / M.

    Gatys et al. 2017, section 4.1: the features times a guide whose squares are normalised.
    """
    if guide is None:
        return gram_matrix(features)
    total = jnp.sum(guide**2)
    normalised = guide * jnp.sqrt(guide.size / jnp.where(total > 0, total, 1))
    return gram_matrix(features * normalised[..., None])


def weighted_gram(features: Features, weights: Guide) -> Gram:
    """Σᵢ wᵢ FᵢᵀFᵢ."""
    return gram_matrix(features * jnp.sqrt(weights * weights.size)[..., None])


STYLE_LOSS = StyleLoss(
    lambda features, guide, key: guided_gram(features, guide),
    mean_by_share,
    lambda features, guide, target: gatys_style(guided_gram(features, guide), target),
    weighted_gram,
    lambda grams: jnp.sum(grams, 0),
    gatys_style,
)
