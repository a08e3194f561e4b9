"""The losses of style transfer, one function a formula.

Feature maps are float32 `[height, width, channels]`, images float32 `[height, width, 3]` in [0, 255]. In the
comments F are the features of the image that is optimised, P those of the photo, N the number of channels and
M = height · width the number of positions.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

Features = Float[Array, "height width channels"]
Guide = Float[Array, "height width"]
Gram = Float[Array, "channels channels"]
Image = Float[Array, "height width 3"]
Scalar = Float[Array, ""]


#: A product of matrices or vectors in all 24 bits of float32. Unasked, a GPU multiplies in 11 (TF32), as it may in
#: the network's convolutions; but a loss is what is left of statistics' differences: with mean and covariance the
#: gradient would be off by 2 %.
product = functools.partial(jnp.matmul, precision="highest")


def flat(features: Features) -> Float[Array, "positions channels"]:
    """One row a position."""
    return features.reshape(-1, features.shape[-1])


@jax.custom_vjp
def gram_matrix(features: Features) -> Gram:
    """Mean over positions of the products of channels, G = FᵀF / M.

    Gatys et al. 2016, equation 3, divided by M, so that pictures of different sizes have comparable statistics.
    """
    rows = flat(features)
    return product(rows.T, rows) / len(rows)


def _gram_forward(features: Features) -> tuple[Gram, Features]:
    return gram_matrix(features), features


def _gram_backward(features: Features, gradient: Gram) -> tuple[Features]:
    # FᵀF is symmetric: one product, where transposing the forward pass takes two.
    rows = flat(features)
    return (product(rows, (gradient + gradient.T) / len(rows)).reshape(features.shape),)


gram_matrix.defvjp(_gram_forward, _gram_backward)


def safe_sqrt(x: Scalar) -> Scalar:
    """√x for x ≥ 0, with gradient 0 at 0 where √ has none: a loss that is exactly 0 pulls nowhere."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def gatys_content(features: Features, target: Features, guide: Guide | None = None) -> Scalar:
    """½ Σ (F − P)², each position times the guide. Gatys et al. 2016, equation 1."""
    return 0.5 * jnp.sum(guided_squares(features, target, guide))


def guided_squares(features: Features, target: Features, guide: Guide | None) -> Features:
    """(F − P)², each position times the guide; without one, as it is."""
    squares = (features - target) ** 2
    return squares if guide is None else guide[..., None] * squares


def gatys_style(gram: Gram, target: Gram) -> Scalar:
    """Σ (G − A)² / 4N² with both Gram matrices divided by their M.

    Gatys et al. 2016, equation 4, to which it is equal where both pictures have the same M.
    """
    return jnp.sum((gram - target) ** 2) / (4 * gram.shape[0] ** 2)


def squared_variation(image: Image) -> Scalar:
    """Σ Δ² over vertical and horizontal neighbours.

    Total variation with β = 2: Mahendran and Vedaldi 2015, section 3.2. Gatys et al. have no such term.
    """
    return jnp.sum(jnp.diff(image, axis=0) ** 2) + jnp.sum(jnp.diff(image, axis=1) ** 2)


def ivanov2017_content(features: Features, target: Features, guide: Guide | None = None) -> Scalar:
    """√(½ Σ (F − P)² / MN), each position times the guide. The 2017 study's notebook."""
    return safe_sqrt(0.5 * jnp.mean(guided_squares(features, target, guide)))


def ivanov2017_style(gram: Gram, target: Gram) -> Scalar:
    """√Σ ((G − A) / N³)²: the study divides its Gram matrices by MN and their difference by N²."""
    return safe_sqrt(jnp.sum(((gram - target) / gram.shape[0] ** 3) ** 2))


def sum_of_terms(content: Scalar, style: Scalar, tv: Scalar) -> Scalar:
    """Gatys et al. 2016, equation 7, and total variation."""
    return content + style + tv


def product_of_terms(content: Scalar, style: Scalar, tv: Scalar) -> Scalar:
    """Content times style, and total variation: the weights of the two say nothing of what is kept and what comes.

    Yeh and Tang 2018, "Improved Style Transfer by Respecting Inter-layer Correlations" (arXiv 1801.01933). Its least
    value, 0, is at the photo, where the content loss is 0: so no image may begin there.
    """
    return content * style + tv


TOTALS = {"sum": sum_of_terms, "product": product_of_terms}


def total_variation(image: Image) -> Scalar:
    """Σ |Δ| over vertical and horizontal neighbours.

    Anisotropic total variation: Rudin, Osher and Fatemi 1992; the form of the 2017 study.
    """
    return jnp.sum(jnp.abs(jnp.diff(image, axis=0))) + jnp.sum(jnp.abs(jnp.diff(image, axis=1)))
