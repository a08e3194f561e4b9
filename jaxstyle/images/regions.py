"""Regions that two pictures have in common, found by their features: pure functions of arrays.

Feature maps are float32 `[height, width, channels]`, and of several layers of one picture with the same channels as
those of the other. Labels are integers `[height, width]`, masks uint8 `[regions, height, width]`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

Maps = Float[Array, "height width channels"]
Labels = Int[Array, "height width"]
Points = Float[Array, "points dimensions"]

#: How much the place in the picture counts: the other side of it is so far away, where unlike features are √2 apart.
PLACE = 0.4

#: A region has at least this part of a picture, or it is not present there.
LEAST = 0.02

#: Rounds of Lloyd's algorithm, and starts of which the best is taken.
ROUNDS, STARTS = 30, 8


def find(
    photo: Sequence[Maps], style: Sequence[Maps], count: int, key: Key[Array, ""]
) -> tuple[Labels, Labels]:
    """The region of each position of both pictures, at most `count`, numbered from 0; each is in both.

    k-means (Lloyd 1982, with the starts of Arthur and Vassilvitskii 2007) of the positions of both pictures together.
    Each picture's channels are first brought to mean 0 and variance 1 over its own positions, so that what is told
    apart is what differs within a picture and not the photo from the painting. What is present in one of them only
    goes to the nearest region of those in both; without one such all is one region.
    """
    grids = [_points(maps) for maps in (photo, style)]
    points = [grid.reshape(-1, grid.shape[-1]) for grid in grids]
    centres = _k_means(jnp.concatenate(points), count, key)
    labels = [jnp.argmin(_squares(each, centres), 1) for each in points]
    parts = [jnp.mean(jax.nn.one_hot(each, count), 0) for each in labels]
    shared = jnp.minimum(*parts) >= LEAST
    nearest = jnp.argmin(jnp.where(shared[None], _squares(centres, centres), jnp.inf), 1)
    number = jnp.where(jnp.any(shared), (jnp.cumsum(shared) - 1)[nearest], 0)
    return tuple(number[each].reshape(grid.shape[:2]) for each, grid in zip(labels, grids, strict=True))


def _points(layers: Sequence[Maps]) -> Float[Array, "height width dimensions"]:
    """All layers at the size of the first, by position of norm 1, and the place of each."""
    height, width, _ = layers[0].shape
    each = []
    for maps in layers:
        normal = (maps - jnp.mean(maps, (0, 1), keepdims=True)) / (
            jnp.std(maps, (0, 1), keepdims=True) + 1e-6
        )
        brought = jax.image.resize(normal, (height, width, maps.shape[-1]), "linear")
        each.append(brought / jnp.sqrt(maps.shape[-1]))
    features = jnp.concatenate(each, -1)
    features /= jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-6
    rows, columns = jnp.meshgrid(jnp.linspace(0, PLACE, height), jnp.linspace(0, PLACE, width), indexing="ij")
    return jnp.concatenate([features, rows[..., None], columns[..., None]], -1)


def _k_means(points: Points, count: int, key: Key[Array, ""]) -> Points:
    """Centres of the least spread that some starts come to."""

    def cluster(key: Key[Array, ""]) -> tuple[Points, Float[Array, ""]]:
        keys = jax.random.split(key, count)
        first = points[jax.random.randint(keys[0], (), 0, len(points))]

        def seed(k: int, centres: Points) -> Points:
            """Sets centre k to a point that is drawn by its squared distance to those before."""
            near = jnp.min(jnp.where(jnp.arange(count)[None] < k, _squares(points, centres), jnp.inf), 1)
            return centres.at[k].set(points[jax.random.categorical(keys[k], jnp.log(near + 1e-12))])

        def improve(_: int, centres: Points) -> Points:
            mine = jax.nn.one_hot(jnp.argmin(_squares(points, centres), 1), count)
            total = jnp.sum(mine, 0)[:, None]
            return jnp.where(total > 0, mine.T @ points / jnp.maximum(total, 1), centres)

        centres = jax.lax.fori_loop(1, count, seed, jnp.tile(first, (count, 1)))
        centres = jax.lax.fori_loop(0, ROUNDS, improve, centres)
        return centres, jnp.sum(jnp.min(_squares(points, centres), 1))

    centres, spread = jax.lax.map(cluster, jax.random.split(key, STARTS))
    return centres[jnp.argmin(spread)]


def _squares(points: Points, centres: Points) -> Float[Array, "points centres"]:
    """Squared distances."""
    products = jnp.matmul(
        2 * points, centres.T, precision="highest"
    )  # a GPU would round them, and much cancels
    return jnp.maximum(jnp.sum(points**2, 1)[:, None] - products + jnp.sum(centres**2, 1)[None], 0)


def masks(labels: Labels, count: int, shape: Sequence[int]) -> UInt8[np.ndarray, "regions height width"]:
    """A mask of each region at the size of a picture, 255 inside, with borders as soft as the labels are coarse."""
    one_hot = jax.nn.one_hot(labels, count, axis=0)
    return np.asarray(jnp.round(255 * jax.image.resize(one_hot, (count, *shape[:2]), "linear")), np.uint8)
