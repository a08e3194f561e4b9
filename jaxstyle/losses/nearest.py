"""Nearest neighbours: the photo's hypercolumns, each replaced by that of the style picture which is most like it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses import hypercolumns, quotas
from jaxstyle.losses.base import Groups, Key, StyleLoss, position_weights
from jaxstyle.losses.hypercolumns import Columns
from jaxstyle.losses.terms import Features, Guide, Scalar

#: Positions that are kept of a style picture in each of its turns; of more, a subset is drawn.
MAX_POSITIONS = 4096

#: Positions of the photo that are matched at once.
_BLOCK = 256


class Palette(NamedTuple):
    """Hypercolumns of each style picture, in all its turns, and the share of the photo's positions that it takes."""

    pictures: Sequence[Columns]
    shares: Float[Array, " pictures"]


def columns(maps: Sequence[Features], guides: Sequence[Guide] | None, key: Key) -> Palette:
    """The style picture's hypercolumns at positions within its guide."""
    found, guide = hypercolumns.hypercolumns(maps), guides and hypercolumns.middle(guides)
    at = hypercolumns.drawn(found.shape[:2], guide, hypercolumns.offsets(key, MAX_POSITIONS))
    return Palette([hypercolumns.rows(found)[at]], jnp.ones(1))


def join_turns(turns: Sequence[Palette]) -> Palette:
    """The columns of all turns of a style picture, from which the photo takes what is nearest."""
    return Palette([jnp.concatenate([turn.pictures[0] for turn in turns])], jnp.ones(1))


def join_pictures(targets: Sequence[tuple[Palette, float]]) -> Palette:
    """Those of several style pictures, which take parts of the photo by their shares."""
    return Palette([target.pictures[0] for target, _ in targets], jnp.array([share for _, share in targets]))


def replace(target: Palette, photo: Sequence[Features], guides: Sequence[Guide] | None) -> Features:
    """The direction of the style's column that is nearest to each of the photo's: by cosines less the means.

    Kolkin et al. 2022, "Neural Neighbor Style Transfer". From its second size on their program matches a mixture of
    photo and image; here the photo alone decides, so that a problem does not depend on how far a run has come.
    Of several style pictures each takes the part of the photo that is its share, and is nearest there but for one
    number that its cosines get on top: see `quotas`.
    """
    found = hypercolumns.hypercolumns(photo)
    shape, found = found.shape, hypercolumns.rows(found)
    if guides is None:
        weights = jnp.full(len(found), 1 / len(found), found.dtype)
    else:
        weights = position_weights(hypercolumns.middle(guides)).ravel()
    own = hypercolumns.directions(found - (weights @ found)[None])
    mean = target.shares @ jnp.stack([jnp.mean(each, 0) for each in target.pictures])
    keys = [hypercolumns.directions(each - mean[None]) for each in target.pictures]

    def match(column: Float[Array, " channels"]) -> tuple[Float[Array, " pictures"], Int[Array, " pictures"]]:
        cosines = [each @ column for each in keys]
        best, at = [jnp.max(each) for each in cosines], [jnp.argmax(each) for each in cosines]
        return jnp.stack(best), jnp.stack(at)

    cosines, matches = jax.lax.map(match, own, batch_size=_BLOCK)
    taken = jnp.argmax(cosines + quotas.offsets(cosines, weights, target.shares)[None], 1)
    starts = np.cumsum([0, *(len(each) for each in keys[:-1])])
    columns = hypercolumns.directions(jnp.concatenate(target.pictures))
    return columns[jnp.take_along_axis(matches + starts[None], taken[:, None], 1)[:, 0]].reshape(shape)


def nearest(maps: Sequence[Features], guides: Sequence[Guide] | None, target: Features) -> Scalar:
    """Mean over positions of one minus the cosine of the image's hypercolumn and its target.

    Kolkin et al. 2022. The targets stay while the image changes, so it has a minimum that any optimizer
    may look for.
    """
    found = hypercolumns.directions(hypercolumns.hypercolumns(maps))
    losses = 0.5 * jnp.sum((found - target) ** 2, -1)
    if guides is None:
        return jnp.mean(losses)
    return jnp.sum(position_weights(hypercolumns.middle(guides)) * losses)


STYLE_LOSS = StyleLoss(
    columns,
    join_pictures,
    nearest,
    groups=Groups(lambda layers: [sorted(layers)], tuple),
    adapt=replace,
    turned=join_turns,
)
