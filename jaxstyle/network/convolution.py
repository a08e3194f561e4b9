"""The layers of a VGG: 3×3 convolution with fixed weights and its ReLU, and 2×2 max pooling.

Feature maps are float32 `[height, width, channels]`, of one picture: no batch axis, use `jax.vmap`.

A convolution whose weights do not change needs a quarter of the multiplications on filters that were
transformed beforehand. F(4×4, 3×3) makes a tile of 4×4 outputs Y from 6×6 inputs d and filters g:

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Sources: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016, section 4.1. Their points 0, ±1, ±2, ∞ are 0, ±1/√2, ±√2, ∞ here, which
halve the rounding error. And they are in pairs p and 1/p: a flipped filter, as the gradient needs it, is at p what
the filter is at 1/p, times p², so that the same transformed filters serve both.

A CPU that multiplies matrices of bfloat16 into float32 (AMX) does so five times as fast as float32: nine products of
shifted maps then take less than Winograd's. What is multiplied has 8 bits there, sums and maps have 24.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float

Maps = Float[Array, "height width channels"]


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for functions that evaluate these layers.

    XLA's CPU backend drops optimization barriers before it fuses operations, by a pass that is left out here. What
    a step at 1024×1024 holds in between then needs 1.4 GB of memory, where it needed 2.3.
    """
    left_out = {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=left_out, **options)


def parts() -> int | None:
    """On how many devices the rows of images lie, where a program is traced for several (`runs/mesh.py`)."""
    return jax.sharding.get_abstract_mesh().shape.get("rows")


_ROOT = 2**0.5
#: A flipped filter at a point is what the filter is at another, times a factor: p² and what G's rows differ in.
_RECIPROCAL, _FACTOR = (5, 3, 4, 1, 2, 0), (1.0, -2.0, -2.0, -0.5, -0.5, 1.0)
# G. The row of a point p is (1, p, p²) over the product of its differences from the other points.
_FILTER_TRANSFORM = np.array(
    [
        [1, 0, 0],
        [-2 / 3, -_ROOT / 3, -1 / 3],
        [-2 / 3, _ROOT / 3, -1 / 3],
        [1 / 6, _ROOT / 6, 1 / 3],
        [1 / 6, -_ROOT / 6, 1 / 3],
        [0, 0, 1],
    ]
)


class Filters(NamedTuple):
    """What a convolution with fixed weights needs, a pytree of arrays: an argument of jitted functions.

    The kernel correlates: it is not flipped. The tile is 3×3 for the direct method, and 6×6, transformed, for
    Winograd's: the shape tells the method, and the dtype in what precision maps and kernel are multiplied.
    """

    kernel: Float[Array, "tile tile in out"]
    bias: Float[Array, " out"]


def prepare(
    kernel: Float[Array, "3 3 in out"],
    bias: Float[Array, " out"],
    method: str = "auto",
    precision: str = "float32",
) -> Filters:
    """Prepares a 3×3 convolution of stride 1, zero-padded to the same size.

    Args:
      kernel: correlates: it is not flipped.
      bias: added to the convolution.
      method: "direct", "winograd", or "auto": on a CPU the faster for these numbers of channels; on any other
        backend direct, as the library there chooses for itself.
      precision: "float32", or "bfloat16" in layers of 128 channels to 256 and more, which are direct then.

    Raises:
      ValueError: `method` or `precision` is none of these, or Winograd's is to be bfloat16.
    """
    if method not in ("auto", "direct", "winograd"):
        raise ValueError(f"method {method!r} is not auto, direct or winograd")
    if precision not in ("float32", "bfloat16") or (method, precision) == ("winograd", "bfloat16"):
        raise ValueError(
            f"precision {precision!r} is not float32, or bfloat16 by another method than winograd"
        )
    fewer, more = sorted(kernel.shape[2:])
    kernel = np.asarray(kernel)
    if precision == "bfloat16" and fewer >= 128 and more >= 256:
        method, kernel = "direct", kernel.astype(jnp.bfloat16)
    if method == "auto":
        small = fewer < 64 or more < 128
        method = "direct" if small or jax.default_backend() != "cpu" else "winograd"
    # Waited for, as each is copied: those of all layers beside their copies are twice as much.
    return jax.block_until_ready(
        jax.device_put(Filters(kernel if method == "direct" else _transform_filters(kernel), bias))
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve_relu(
    maps: Float[Array, "height width in"],
    filters: Filters,
    known: Float[Array, "height width out"] | None = None,
    rows: int | None = None,
) -> Float[Array, "height width out"]:
    """max(0, 3×3 convolution + bias), zero-padded to the same size.

    Differentiable once, with respect to `maps` alone: the filters are constants, their gradient is zero.

    Args:
      maps: what is convolved.
      filters: see `prepare`.
      known: taken for the result, which is then not computed; the gradient needs only where it is positive.
      rows: below so many the result is 0.
    """
    if known is not None:
        return known
    result = jnp.maximum(_convolve(maps, filters.kernel) + filters.bias[None, None], 0)
    # Without the barrier each reader of the result computes it anew, and what it comes from is kept as well.
    return lax.optimization_barrier(first_rows(result, rows))


def first_rows(maps: Maps, rows: int | None, below: Maps | int = 0) -> Maps:
    """Maps with something else below so many rows; None are all."""
    return maps if rows is None else jnp.where((jnp.arange(len(maps)) < rows)[:, None, None], maps, below)


def _convolve_relu_forward(maps, filters, known, rows):
    result = convolve_relu(maps, filters, known, rows)
    return result, (result, filters.kernel)


def _convolve_relu_backward(rows, residuals, gradient):
    result, kernel = residuals
    return _convolve(jnp.where(result > 0, gradient, 0), kernel, True), None, None


convolve_relu.defvjp(_convolve_relu_forward, _convolve_relu_backward)


@jax.custom_vjp
def max_pool(maps: Maps) -> Float[Array, "height//2 width//2 channels"]:
    """The maximum of each 2×2 window; an odd last row or column is left out.

    The gradient goes to the first maximum of a window in reading order, as that of `lax.reduce_window`
    does, whose scatter is several times slower on a CPU.
    """
    a, b, c, d = _window(maps)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_pool_forward(maps):
    result = max_pool(maps)
    return result, (maps, result)


def _max_pool_backward(residuals, gradient):
    maps, result = residuals
    height, width, channels = maps.shape
    free, shares = True, []
    for part in _window(maps):
        shares.append(jnp.where(free & (part == result), gradient, 0))
        free = free & (part != result)
    a, b, c, d = shares
    interleaved = jnp.stack([jnp.stack([a, b], 2), jnp.stack([c, d], 2)], 1)
    even = interleaved.reshape(height // 2 * 2, width // 2 * 2, channels)
    return (jnp.pad(even, ((0, height % 2), (0, width % 2), (0, 0))),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(maps: Maps) -> Float[Array, "height//2 width//2 channels"]:
    """The mean of each 2×2 window; an odd last row or column is left out. Gatys et al. 2016, section 2."""
    a, b, c, d = _window(maps)
    return 0.25 * ((a + b) + (c + d))


def l2_pool(maps: Maps) -> Float[Array, "height//2 width//2 channels"]:
    """The root of the mean square of each 2×2 window; an odd last row or column is left out.

    Its gradient is 0 where a window is 0. Hénaff and Simoncelli 2016, "Geodesics of Learned Representations", put it
    in place of a VGG's maxima; `pystiche` and others offer it for style transfer.
    """
    a, b, c, d = _window(maps)
    square = 0.25 * ((a * a + b * b) + (c * c + d * d))
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


POOLING = {"max": max_pool, "average": average_pool, "l2": l2_pool}


def _window(maps: Maps) -> list[Maps]:
    """The four pixels of each 2×2 window, in reading order."""
    height, width = maps.shape[0] // 2 * 2, maps.shape[1] // 2 * 2
    return [maps[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]


def _convolve(maps: Maps, kernel: Float[Array, "tile tile in out"], transposed: bool = False) -> Maps:
    """The convolution, or its transpose: filters flipped, in and out exchanged."""
    if kernel.shape[0] == 6:
        return _in_parts(functools.partial(_winograd, transposed=transposed), maps, kernel)
    if transposed:
        kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    if kernel.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        return _in_parts(_products, maps, kernel)
    return lax.conv_general_dilated(
        maps[None].astype(kernel.dtype),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=maps.dtype,
    )[0]


def _in_parts(convolve: Callable[..., Maps], maps: Maps, kernel: Array) -> Maps:
    """The convolution of maps, where their rows lie on several devices by each of its own: XLA would gather them."""
    if (count := parts() or 1) == 1:
        return convolve(maps, kernel)

    def part(maps: Maps, kernel: Array) -> Maps:
        # What nobody sends is zero, as what lies around the maps.
        above = lax.ppermute(maps[-1:], "rows", [(i, i + 1) for i in range(count - 1)])
        below = lax.ppermute(maps[:1], "rows", [(i + 1, i) for i in range(count - 1)])
        return convolve(jnp.concatenate([above, maps, below]), kernel, halo=1)

    rows = PartitionSpec("rows")
    apart = jax.shard_map(part, in_specs=(rows, PartitionSpec()), out_specs=rows)
    return apart(jnp.pad(maps, ((0, -len(maps) % count), (0, 0), (0, 0))), kernel)[: len(maps)]


def _products(maps: Maps, kernel: Float[Array, "3 3 in out"], halo: int = 0) -> Maps:
    """The convolution as nine products of shifted maps in the kernel's precision; their sums are float32.

    Maps have `halo` rows more above and below than the result: 0, or 1 of the neighbours'.
    """
    height, width = len(maps) - 2 * halo, maps.shape[1]
    # Held, or each shift would be rounded anew.
    padded = lax.optimization_barrier(
        jnp.pad(maps.astype(kernel.dtype), ((1 - halo, 1 - halo), (1, 1), (0, 0)))
    )
    product = functools.partial(jnp.matmul, preferred_element_type=maps.dtype)
    shifts = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    flat = [shift.reshape(height * width, -1) for shift in shifts]
    return sum(map(product, flat, kernel.reshape(9, *kernel.shape[2:]))).reshape(height, width, -1)


@functools.partial(jax.jit, static_argnames=("transposed", "halo"))
def _winograd(maps: Maps, kernel: Float[Array, "6 6 in out"], transposed: bool, halo: int = 0) -> Maps:
    """The convolution by tiles, with transformed filters; `halo` as in `_products`."""
    # Barriers keep XLA from computing an intermediate again for each of its uses.
    height, width, depth = len(maps) - 2 * halo, *maps.shape[1:]
    rows, columns = -(-height // 4), -(-width // 4)
    around = (1 - halo, 4 * rows + 1 - halo - height), (1, 4 * columns + 1 - width), (0, 0)
    padded = lax.optimization_barrier(jnp.pad(maps, around))
    half = _transform_input([padded[i : i + 4 * rows - 3 : 4] for i in range(6)], transposed)
    half = lax.optimization_barrier(jnp.stack(half))
    columnwise = [half[:, :, j : j + 4 * columns - 3 : 4] for j in range(6)]
    tiles = jnp.stack(_transform_input(columnwise, transposed), axis=1).reshape(36, rows * columns, depth)
    products = (_multiply_transposed if transposed else jnp.matmul)(
        tiles, kernel.reshape(36, *kernel.shape[2:])
    )
    products = products.reshape(6, 6, rows, columns, -1)
    half = lax.optimization_barrier(jnp.stack(_transform_output(products, transposed), axis=2))
    result = jnp.stack(_transform_output(half, transposed), axis=3)
    result = result.reshape(4 * rows, 4 * columns, -1)
    return result[:height, :width]


#: Up to so many tiles, products with transposed filters have the filters on the left: XLA's products on a CPU first
#: bring what is on the right into another order, which does not pay for few tiles.
_FEW = 64


@jax.custom_batching.custom_vmap
def _multiply_transposed(
    tiles: Float[Array, "36 tiles out"], kernel: Float[Array, "36 in out"]
) -> Float[Array, "36 tiles in"]:
    if tiles.shape[1] > _FEW:
        return _dot(tiles, kernel)
    # Without the barrier XLA would exchange the two.
    return lax.optimization_barrier(_dot(kernel, tiles)).swapaxes(1, 2)


def _dot(one: Float[Array, "36 m k"], other: Float[Array, "36 n k"]) -> Float[Array, "36 m n"]:
    return lax.dot_general(one, other, (((2,), (2,)), ((0,), (0,))))


@_multiply_transposed.def_vmap
def _multiply_transposed_lanes(lanes: int, batched: list[bool], tiles: Array, kernel: Array):
    """The tiles of all lanes count together."""
    if batched[1]:
        return jax.vmap(_dot, [0 if each else None for each in batched])(tiles, kernel), True
    together = tiles.swapaxes(0, 1).reshape(36, -1, tiles.shape[3])
    products = _multiply_transposed(together, kernel)
    return products.reshape(36, lanes, -1, products.shape[2]).swapaxes(0, 1), True


#: Filters that are transformed at once, which a core's cache holds.
_PART = 2**14


def _transform_filters(kernel) -> Float[np.ndarray, "6 6 in out"]:
    """G g Gᵀ. In float64, as it is done once."""
    both, flat = np.kron(_FILTER_TRANSFORM, _FILTER_TRANSFORM), kernel.reshape(9, -1)
    transformed = np.empty((36, flat.shape[1]), np.float32)
    for begin in range(0, flat.shape[1], _PART):
        part = slice(begin, begin + _PART)
        transformed[:, part] = both @ np.float64(flat[:, part])
    return transformed.reshape(6, 6, *kernel.shape[2:])


def _transform_input(d, transposed: bool) -> list[Maps]:
    """Bᵀ d. The row of a point p is the product of (x − q) over the other points q, as coefficients of x.

    Transposed, each is where the filters of its point are, times their factor.
    """
    a, b = d[4] - 2 * d[2], (d[3] - 2 * d[1]) * (_ROOT / 2)
    c, e = d[4] - 0.5 * d[2], (d[3] - 0.5 * d[1]) * _ROOT
    found = [d[0] - 2.5 * d[2] + d[4], a + b, a - b, c + e, c - e, d[1] - 2.5 * d[3] + d[5]]
    return [_FACTOR[i] * found[i] for i in _RECIPROCAL] if transposed else found


def _transform_output(m, transposed: bool) -> list[Maps]:
    """Aᵀ m. The column of a point p is (1, p, p², p³)."""
    m = [m[i] for i in _RECIPROCAL] if transposed else m
    s, t, u, v = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + s + u,
        (t + 2 * v) * (_ROOT / 2),
        0.5 * s + 2 * u,
        (t + 8 * v) * (_ROOT / 4) + m[5],
    ]
