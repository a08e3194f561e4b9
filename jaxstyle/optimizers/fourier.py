"""The two-dimensional Fourier transform of an image, colour by colour: products there, and power by bands.

Both give the same bits each time, and where the image's rows lie on several devices none gets the whole image.
A spectrum is [colours, half, height]: the half of the columns' frequencies that tells a real image's transform, as
`rfft2` orders them, and all of the rows'.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Complex, Float

from jaxstyle.network.convolution import parts

Image = Float[Array, "height width colours"]

#: Lines in a multiple of so many leave each of 1, 2, 3, 4, 6, 8, 12, 16, 24 or 48 threads a multiple of 16.
_FULL = 768

_ROWS, _COLUMNS = PartitionSpec("rows"), PartitionSpec(None, "rows")


def multiply(image: Image, factors: Float[Array, "#colours half height"]) -> Image:
    """F⁻¹ of the factors times F of an image."""
    if count := parts():
        return _multiply_in_parts(image, factors, count).astype(image.dtype)
    by_column = _by_column(_by_row(image)) * factors
    by_row = _lines(jnp.fft.ifft, by_column).transpose(0, 2, 1)
    return _inverse(by_row, image.shape[1]).astype(image.dtype)


def powers(image: Image, positions: Float[Array, "half height"], bands: int) -> Float[Array, "colours bands"]:
    """Σ |F|² of an image over the frequencies of each band; all bands together have what all frequencies have.

    Args:
      image: of any range.
      positions: where each frequency lies among the bands, from 0 to bands - 1. One between two counts for both, in
        proportion to how near they are.
      bands: their number.
    """
    (height, width, _), count = image.shape, parts()
    standing = _standing(width).astype(np.float32)[:, None]

    def add(by_column: Complex[Array, "colours part height"], positions: Array, standing: Array) -> Array:
        power = (by_column.real**2 + by_column.imag**2) * standing[None]
        share = jnp.maximum(
            1 - jnp.abs(positions[None] - np.arange(bands, dtype=np.float32)[:, None, None]), 0
        )
        return jnp.sum(power[:, None] * share[None], (2, 3))

    if not count:
        return add(_by_column(_by_row(image)), positions, standing)
    rows, cut = _missing(image.shape, count)

    def add_part(image: Image, positions: Array, standing: Array) -> Array:
        return jax.lax.psum(add(_scattered(image, height, cut), positions, standing), "rows")

    apart = jax.shard_map(add_part, in_specs=(_ROWS, _ROWS, _ROWS), out_specs=PartitionSpec())
    plane = cut, (0, 0)
    return apart(jnp.pad(image, (rows, (0, 0), (0, 0))), jnp.pad(positions, plane), jnp.pad(standing, plane))


def _standing(width: int) -> Float[np.ndarray, " half"]:
    """How many frequencies a column of the half stands for: two, or one for the first and an even width's last."""
    columns = np.arange(width // 2 + 1)
    return np.where((columns > 0) & (2 * columns < width), 2.0, 1.0)


def _by_row(image: Image) -> Complex[Array, "colours height half"]:
    return _lines(jnp.fft.rfft, image.transpose(2, 0, 1))


def _by_column(by_row: Complex[Array, "colours height half"]) -> Complex[Array, "colours half height"]:
    return _lines(jnp.fft.fft, by_row.transpose(0, 2, 1))


def _inverse(by_row: Complex[Array, "colours height half"], width: int) -> Image:
    """The image whose rows were transformed."""
    return _lines(functools.partial(jnp.fft.irfft, n=width), by_row).transpose(1, 2, 0)


def _lines(transform: Callable[[Array], Array], lines: Array) -> Array:
    """A transform of each line, the last axis of an array, to the same bits each time.

    XLA's FFT on a CPU, ducc0, shares many lines out to its threads or not, by which thread comes upon them. A thread
    takes as many lines at once as a vector register has numbers, and the rest one by one, whose last bits differ: so
    empty lines are added, and no thread has a rest.
    """
    flat = lines.reshape(-1, lines.shape[-1])
    if jax.default_backend() == "cpu":
        flat = jnp.pad(flat, ((0, -len(flat) % _FULL), (0, 0)))
    return transform(flat)[: lines.size // lines.shape[-1]].reshape(*lines.shape[:-1], -1)


def _missing(shape: tuple[int, ...], count: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """What rows and columns of F want until they divide, to pad with: zeros, cut off before they are transformed."""
    height, width, _ = shape
    return (0, -height % count), (0, -(width // 2 + 1) % count)


def _scattered(image: Image, height: int, cut: tuple[int, int]) -> Complex[Array, "colours part height"]:
    """The columns of F that a device has, of an image whose rows lie on several."""
    by_row = jnp.pad(_by_row(image), ((0, 0), (0, 0), cut))
    by_column = jax.lax.all_to_all(by_row, "rows", 2, 1, tiled=True)[:, :height].transpose(0, 2, 1)
    return _lines(jnp.fft.fft, by_column)


def _multiply_in_parts(image: Image, factors: Float[Array, "#colours half height"], count: int) -> Image:
    """`multiply` of an image whose rows lie on several devices; XLA would give each the whole image."""
    (height, width, _), half, (rows, cut) = image.shape, factors.shape[1], _missing(image.shape, count)

    def part(image: Image, factors: Float[Array, "#colours part height"]) -> Image:
        by_row = _lines(jnp.fft.ifft, _scattered(image, height, cut) * factors).transpose(0, 2, 1)
        by_row = jax.lax.all_to_all(jnp.pad(by_row, ((0, 0), rows, (0, 0))), "rows", 1, 2, tiled=True)
        return _inverse(by_row[..., :half], width)

    apart = jax.shard_map(part, in_specs=(_ROWS, _COLUMNS), out_specs=_ROWS)
    return apart(jnp.pad(image, (rows, (0, 0), (0, 0))), jnp.pad(factors, ((0, 0), cut, (0, 0))))[:height]


def squares(height: int, width: int) -> Float[Array, "height half"]:
    """Radial frequencies squared, in cycles per pixel."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    return jnp.asarray(rows**2) + jnp.asarray(columns**2)


def power_law(height: int, width: int, exponent: float) -> Float[Array, "height half"]:
    """f^−exponent, f the radial frequency, at least one cycle over the longer side; of mean square 1."""
    scales = jnp.maximum(squares(height, width), 1 / max(height, width) ** 2) ** (-exponent / 2)
    return scales / _root_mean_square(height, width, exponent)


@functools.cache
def _root_mean_square(height: int, width: int, exponent: float) -> float:
    """That of f^−exponent over all frequencies of an image: of each row of them in turn, for a large one's memory."""
    columns, standing, lowest = np.fft.rfftfreq(width), _standing(width), 1 / max(height, width) ** 2
    found = (
        np.maximum(row**2 + columns**2, lowest) ** -exponent @ standing for row in np.fft.fftfreq(height)
    )
    return math.sqrt(sum(found) / (height * width))
