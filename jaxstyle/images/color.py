"""What becomes of colours: the photo keeps its own, or its hues in the palette of the style. Pure functions of NumPy
arrays, run once.

Images are float32 `[height, width, 3]`, RGB in [0, 255]. Section numbers are of Gatys, Bethge, Hertzmann and
Shechtman, "Preserving Color in Neural Artistic Style Transfer", 2016.
"""

from collections.abc import Callable, Sequence
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
    wanted = np.float64(content).reshape(-1, 3)
    matched = _with_moments(np.float64(style).reshape(-1, 3), wanted.mean(0), _covariance(wanted))
    return np.float32(matched).reshape(style.shape)


def _with_moments(
    pixels: Float[np.ndarray, "pixels n"], mean: Float[np.ndarray, " n"], covariance: Float[np.ndarray, "n n"]
) -> Float[np.ndarray, "pixels n"]:
    to_white = _power(_covariance(pixels), -0.5)
    return (pixels - pixels.mean(0)) @ to_white @ _power(covariance, 0.5) + mean


def _covariance(pixels: Float[np.ndarray, "pixels n"]) -> Float[np.ndarray, "n n"]:
    """That of some pixels; zero of a single one."""
    return np.cov(pixels, rowvar=False, ddof=min(1, len(pixels) - 1))


#: A variance of colours as good as zero, in any units here: that of a grey picture is the rounding of float32.
_NOTHING = 1e-7


def _power(covariance: Float[np.ndarray, "n n"], exponent: float) -> Float[np.ndarray, "n n"]:
    """A power of a symmetric matrix; what is as good as zero in it stays zero."""
    values, vectors = np.linalg.eigh(covariance)
    some = values > max(1e-6 * values.max(), _NOTHING)
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


#: Style pictures and their shares.
Styles = Sequence[tuple[Image, float]]

#: What is done to a result, of the photo's shape.
Finish = Callable[[Image], Image]


def recolor(content: Image, _: Styles) -> Finish:
    """Gives the luminance of a result the colour differences of the photo. Section 4.2.

    In YIQ a change of Y alone is the same change of R, G and B.
    """
    return lambda result: np.float32(content + (luminance(result) - luminance(content)))


#: Of linear sRGB to cones, and of their cube roots to Oklab: Ottosson, "A perceptual color space for image
#: processing", 2020.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(image: Image) -> Image:
    """Lightness in [0, 1], and the two axes of hue and chroma; values beyond [0, 255] are brought there."""
    coded = np.clip(image, 0, 255) / np.float32(255)
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ np.float32(_TO_CONES).T) @ np.float32(_TO_OKLAB).T


def from_oklab(image: Image) -> Image:
    """What `oklab` was given; what no sRGB has is brought to the nearest of each channel."""
    cones = (image @ np.float32(np.linalg.inv(_TO_OKLAB)).T) ** 3
    linear = np.clip(cones @ np.float32(np.linalg.inv(_TO_CONES)).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_palette(content: Image, styles: Styles) -> Finish:
    """Gives the lightness of a result the photo's hues, under the linear map that gives them the mean and the
    covariance of the styles', in Oklab.

    Edges of hue go where those of lightness are, and nothing leaves the range that the styles have. With this ends
    the program of Kolkin et al. 2022, "Neural Neighbor Style Transfer", which takes coded values for linear ones.
    """
    palettes = [(oklab(picture).reshape(-1, 3), share) for picture, share in styles]
    total = sum(share for _, share in palettes)
    lowest, highest = (end([end(each, 0) for each, _ in palettes], 0) for end in (np.min, np.max))
    hues = [(each[:, 1:], share / total) for each, share in palettes]
    mean = sum(share * each.mean(0, dtype=np.float64) for each, share in hues)
    # About the mean of all.
    square = sum(share * _square(each - mean) for each, share in hues)
    own = oklab(content)[..., 1:]
    moved = np.float32(_with_moments(np.float64(own).reshape(-1, 2), mean, square)).reshape(own.shape)

    def finish(result: Image) -> Image:
        lightness = np.clip(oklab(result)[..., :1], lowest[0], highest[0])
        kept = np.clip(_along_edges(moved, lightness), lowest[1:], highest[1:])
        return from_oklab(np.concatenate([lightness, kept], 2))

    return finish


def _square(values: Float[np.ndarray, "pixels n"]) -> Float[np.ndarray, "n n"]:
    return values.T @ values / len(values)


#: Of lightness, across which hues mix little; and how often each pixel takes the mean of its neighbours.
_EDGE, _ROUNDS = 0.1, 5


def _along_edges(
    values: Float[np.ndarray, "height width n"], lightness: Float[np.ndarray, "height width 1"]
) -> Float[np.ndarray, "height width n"]:
    """Means over 3×3 neighbours, again and again, each by how near it is in lightness."""
    height, width, _ = values.shape

    def neighbours(image: np.ndarray) -> list[np.ndarray]:
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
        return [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]

    weights = [np.exp(-np.abs(each - lightness) / np.float32(_EDGE)) for each in neighbours(lightness)]
    whole = sum(weights)
    for _ in range(_ROUNDS):
        values = sum(weight * each for weight, each in zip(weights, neighbours(values), strict=True)) / whole
    return values


class Preserve(NamedTuple):
    """What is done to the pictures before, and to the result afterwards.

    `prepare_style` is given the photo in its own colours as its second argument, and `finish` as its first.
    """

    prepare_content: Callable[[Image], Image]
    prepare_style: Callable[[Image, Image], Image]
    finish: Callable[[Image, Styles], Finish]


def _first(image: Image, *_: object) -> Image:
    return image


def _as_it_is(*_: object) -> Finish:
    return _first


PRESERVE = {
    "none": Preserve(_first, _first, _as_it_is),
    "luminance": Preserve(luminance, match_luminance, recolor),
    "histogram": Preserve(_first, match_histogram, _as_it_is),
    "linear": Preserve(_first, match_linear, _as_it_is),
    "palette": Preserve(_first, _first, to_palette),
}
