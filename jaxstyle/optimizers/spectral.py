"""A first matrix for L-BFGS that is diagonal by frequency and colour.

L-BFGS begins each direction with a multiple of the identity, γ = sᵀy / yᵀy by the last move s and the change y of the
gradient over it (Nocedal and Wright, equation 7.20). Here bands of spatial frequencies, half an octave apart, have
numbers of their own for light and for two axes of hue: |s| / |y| there, by the last moves, which is the inverse of a
curvature that is diagonal by band and colour. Gilbert and Lemaréchal 1989, "Some numerical experiments with
variable-storage quasi-Newton algorithms", have a diagonal in place of γ, of the variables themselves.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxstyle.optimizers import fourier
from jaxstyle.optimizers.base import Image, inner

#: Axes of colour, orthonormal: light, red to blue, green to magenta.
AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])

#: Bands in an octave.
BANDS = 2

#: What the power of moves and changes so far weighs beside that of the next.
KEPT = 0.5

#: Part of the whole power that each band is given besides its own, as one may have none.
FLOOR = 1e-9


class FirstMatrix(NamedTuple):
    """The diagonal, and what it is made of: power of the moves and of the changes, the older the less it weighs."""

    moves: Float[Array, "3 bands"]
    changes: Float[Array, "3 bands"]
    diagonal: Float[Array, "3 bands"]


def init(image: Image) -> FirstMatrix:
    """The identity, of an image's shape."""
    shape = 3, _bands(image)
    nothing = jnp.zeros(shape, image.dtype)
    return FirstMatrix(nothing, nothing, jnp.ones_like(nothing))


def update(matrix: FirstMatrix, move: Image, change: Image) -> FirstMatrix:
    """With one more correction, whose length along `change` the diagonal gets right to a few per cent, γ exactly."""
    # Transformed together: XLA would keep what each frequency counts for in each band for the second one.
    seen = jnp.concatenate([_turn(move, AXES), _turn(change, AXES)], 2)
    both = fourier.powers(seen, _positions(move), _bands(move))
    moved, changed = both[:3], both[3:]
    moves, changes = KEPT * matrix.moves + moved, KEPT * matrix.changes + changed
    ratio = (moves + FLOOR * jnp.sum(moves)) / (changes + FLOOR * jnp.sum(changes))
    diagonal = jnp.sqrt(ratio)
    along = jnp.sum(diagonal * changed) / (move.shape[0] * move.shape[1])
    usable = jnp.isfinite(diagonal).all() & (along > 0)
    return FirstMatrix(moves, changes, jnp.where(usable, diagonal * inner(move, change) / along, 1))


def multiply(matrix: FirstMatrix, image: Image) -> Image:
    """The diagonal times an image; between the middles of two bands it is their geometric mean by distance."""
    positions, logarithms = _positions(image), jnp.log(matrix.diagonal)
    below = jnp.clip(jnp.floor(positions).astype(int), 0, logarithms.shape[1] - 2)
    part = (positions - below)[None]
    factors = jnp.exp((1 - part) * logarithms[:, below] + part * logarithms[:, below + 1])
    return _turn(fourier.multiply(_turn(image, AXES), factors), AXES.T)


def _turn(image: Image, axes: Float[np.ndarray, "3 3"]) -> Image:
    """The colours along axes: sums of planes, as a product of so narrow matrices takes longer."""
    planes = [image[..., k] for k in range(3)]
    turned = [sum(float(part) * plane for part, plane in zip(axis, planes, strict=True)) for axis in axes]
    return jnp.stack(turned, 2)


def _bands(image: Image) -> int:
    """From one cycle over the longer side to half a cycle per pixel along both."""
    return max(math.ceil(BANDS * math.log2(max(image.shape[:2]) / math.sqrt(2))) + 1, 2)


def _positions(image: Image) -> Float[Array, "half height"]:
    """Where the frequencies of an image lie among the bands, from 0 on."""
    height, width, _ = image.shape
    cycles = fourier.squares(height, width).T * max(height, width) ** 2
    return (BANDS / 2 * jnp.log2(jnp.maximum(cycles, 1))).astype(image.dtype)
