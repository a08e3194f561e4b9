"""Nearest neighbours: the photo's hypercolumns, each drawn to that of the style picture which is most like it.

And feature splitting, with which a picture made so may go on: the image's own features choose, at each layer alone.
Kolkin et al. 2022, "Neural Neighbor Style Transfer".
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses import hypercolumns, quotas
from jaxstyle.losses.base import ALONE, Chosen, Groups, Key, StyleLoss, position_weights
from jaxstyle.losses.hypercolumns import Columns
from jaxstyle.losses.terms import Features, Guide, Scalar, flat

#: Positions that are kept of a style picture in each of its turns; of more, a subset is drawn.
MAX_POSITIONS = 4096

#: Positions of the photo that are matched at once.
_BLOCK = 256


class Palette(NamedTuple):
    """Hypercolumns of style pictures in all their turns, of which picture each is, and the pictures' shares."""

    columns: Columns
    picture: Int[Array, " positions"]
    shares: Float[Array, " pictures"]


def columns(maps: Sequence[Features], guides: Sequence[Guide] | None, key: Key) -> Palette:
    """The style picture's hypercolumns at positions within its guide."""
    found, guide = hypercolumns.hypercolumns(maps), guides and hypercolumns.middle(guides)
    at = hypercolumns.drawn(found.shape[:2], guide, jax.random.uniform(key, (MAX_POSITIONS,)))
    return Palette(flat(found)[at], jnp.zeros(len(at), int), jnp.ones(1, found.dtype))


def join_turns(turns: Sequence[Palette]) -> Palette:
    """The columns of all turns of a style picture, from which the photo takes what is nearest."""
    found, picture, _ = zip(*turns, strict=True)
    return Palette(jnp.concatenate(found), jnp.concatenate(picture), turns[0].shares)


def join_pictures(targets: Sequence[tuple[Palette, float]]) -> Palette:
    """Those of several style pictures, which take parts of the photo by their shares."""
    found = [palette.columns for palette, _ in targets]
    picture = np.repeat(np.arange(len(found)), [len(each) for each in found])
    shares = jnp.array([share for _, share in targets], found[0].dtype)
    return Palette(jnp.concatenate(found), jnp.asarray(picture), shares)


def match(
    target: Palette, maps: Sequence[Features], guides: Sequence[Guide] | None
) -> Int[Array, "height width"]:
    """The number of the style's column that is nearest to each of a picture's: by cosines less the means.

    Kolkin et al. 2022, "Neural Neighbor Style Transfer". Of several style pictures each takes the part of the
    positions that is its share, and is nearest there but for one number that its cosines get on top: see `quotas`.
    """
    found = hypercolumns.hypercolumns(maps)
    shape, found = found.shape[:2], flat(found)
    if guides is None:
        weights = jnp.full(len(found), 1 / len(found), found.dtype)
    else:
        weights = position_weights(hypercolumns.middle(guides)).ravel()
    own = hypercolumns.directions(found - (weights @ found)[None])
    of = jnp.arange(len(target.shares))[:, None] == target.picture[None]
    mean = (target.shares / jnp.sum(of, 1)) @ of.astype(found.dtype) @ target.columns
    keys = hypercolumns.directions(target.columns - mean[None])

    numbers = jnp.arange(len(keys))[None]

    def best(column: Float[Array, " channels"]) -> tuple[Float[Array, " pictures"], Int[Array, " pictures"]]:
        cosines = jnp.where(of, (keys @ column)[None], -jnp.inf)
        largest = jnp.max(cosines, 1)
        # The first of the largest. XLA's argmax takes three times as long on a CPU as these two.
        return largest, jnp.min(jnp.where(cosines == largest[:, None], numbers, len(keys)), 1)

    cosines, matches = jax.lax.map(best, own, batch_size=_BLOCK)
    taken = jnp.argmax(cosines + quotas.offsets(cosines, weights, target.shares)[None], 1)
    return jnp.take_along_axis(matches, taken[:, None], 1).reshape(shape)


def nearest(maps: Sequence[Features], guides: Sequence[Guide] | None, target: Chosen) -> Scalar:
    """Mean over positions of one minus the cosine of the image's hypercolumn and its match.

    Kolkin et al. 2022. Matches stay while the image changes, so it has a minimum that any optimizer may look
    for. They are the photo's at the first size, and from then on those of the photo and the image together.

    NOTE: The authors' program splits features by cosines less the means here too, where `split` has them as they are.
    """
    found = hypercolumns.directions(hypercolumns.hypercolumns(maps))
    palette, matches = target
    losses = 0.5 * jnp.sum((found - hypercolumns.directions(palette.columns[matches])) ** 2, -1)
    if guides is None:
        return jnp.mean(losses)
    return jnp.sum(position_weights(hypercolumns.middle(guides)) * losses)


STYLE_LOSS = StyleLoss(
    columns,
    join_pictures,
    nearest,
    groups=Groups(lambda layers: [sorted(layers)], tuple),
    choose=match,
    own=0.25,  # as in the authors' program, which adds the photo's finest details to the image first
    turned=join_turns,
)

SPLIT = STYLE_LOSS._replace(groups=ALONE._replace(given=tuple), own=1.0)
