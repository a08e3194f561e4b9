"""What becomes of colours: styles that leave the photo its own. Pure functions of NumPy arrays, run once.

Images are float32 `[height, width, 3]`, RGB in [0, 255].

Source: Gatys, Bethge, Hertzmann and Shechtman, "Preserving Color in Neural Artistic Style Transfer", 2016.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Image = Float[np.ndarray, "height width 3"]

#: Of luminance in RGB: ITU-R BT.601, as the Y of YIQ.
LUMA = np.array([0.299, 0.587, 0.114])


def luminance(image: Image) -> Image:
    """The luminance of an image in all three channels."""
    return np.repeat(image @ np.float32(LUMA)[:, None], 3, axis=2)


def match_linear(style: Image, content: Image) -> Image:
    """The style picture under the linear map of colours that gives it the photo's mean and covariance.

    Section 4.1, with the symmetric map S_c^½ S_s^-½; directions of colour that the style picture does not have are
    left alone. Values may leave [0, 255].
    """
    pixels = np.float64(style).reshape(-1, 3)
    wanted = np.float64(content).reshape(-1, 3)
    to_white = _power(np.cov(pixels, rowvar=False), -0.5)
    matched = (pixels - pixels.mean(0)) @ to_white @ _power(np.cov(wanted, rowvar=False), 0.5) + wanted.mean(
        0
    )
    return np.float32(matched).reshape(style.shape)


def _power(covariance: Float[np.ndarray, "3 3"], exponent: float) -> Float[np.ndarray, "3 3"]:
    """A power of a symmetric matrix; what is as good as zero in it stays zero."""
    values, vectors = np.linalg.eigh(covariance)
    some = values > 1e-6 * max(values.max(), 1e-12)
    powers = np.where(some, np.where(some, values, 1) ** exponent, 0)
    return (vectors * powers) @ vectors.T


def match_histogram(style: Image, content: Image) -> Image:
    """The style picture with the photo's histogram in each channel: a value goes to the photo's of the same rank.

    Equal values stay equal, at the middle of their ranks. Section 4.1 names it as the alternative.
    """
    matched = np.empty_like(style)
    for channel in range(3):
        _, inverse, counts = np.unique(style[..., channel], return_inverse=True, return_counts=True)
        levels = (np.cumsum(counts) - counts / 2) / inverse.size
        ordered = np.sort(content[..., channel], axis=None)
        ranks = (np.arange(ordered.size) + 0.5) / ordered.size
        matched[..., channel] = np.interp(levels, ranks, ordered)[inverse].reshape(style.shape[:2])
    return matched


def match_luminance(style: Image, content: Image) -> Image:
    """The luminance of the style picture with the mean and the standard deviation of the photo's. Section 4.2."""
    style, content = luminance(style), luminance(content)
    scale = content.std() / max(style.std(), 1e-6)
    return np.float32((style - style.mean()) * scale + content.mean())


def recolor(result: Image, content: Image) -> Image:
    """The luminance of the result with the colour differences of the photo. Section 4.2.

    In YIQ a change of Y alone is the same change of R, G and B.
    """
    return np.float32(content + (luminance(result) - luminance(content)))


class Preserve(NamedTuple):
    """What is done to the pictures before, and to the result afterwards.

    `prepare_style` and `finish` are given the photo in its own colours as their second argument.
    """

    prepare_content: Callable[[Image], Image]
    prepare_style: Callable[[Image, Image], Image]
    finish: Callable[[Image, Image], Image]


def _first(image: Image, *_: Image) -> Image:
    return image


PRESERVE = {
    "none": Preserve(_first, _first, _first),
    "luminance": Preserve(luminance, match_luminance, recolor),
    "histogram": Preserve(_first, match_histogram, _first),
    "linear": Preserve(_first, match_linear, _first),
}
