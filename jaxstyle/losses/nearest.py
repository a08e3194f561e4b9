"""Nearest neighbours: the photo's hypercolumns, each replaced by that of the style picture which is most like it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxstyle.losses import hypercolumns
from jaxstyle.losses.base import Groups, Key, StyleLoss, position_weights
from jaxstyle.losses.hypercolumns import Columns
from jaxstyle.losses.terms import Features, Guide, Scalar

#: Positions that are kept of a style picture in each of its turns; of more, a subset is drawn.
MAX_POSITIONS = 4096

#: Positions of the photo that are matched at once.
_BLOCK = 256


def columns(maps: Sequence[Features], guides: Sequence[Guide] | None, key: Key) -> Columns:
    """The style picture's hypercolumns at positions within its guide."""
    found, guide = hypercolumns.hypercolumns(maps), guides and hypercolumns.middle(guides)
    at = hypercolumns.drawn(found.shape[:2], guide, hypercolumns.offsets(key, MAX_POSITIONS))
    return hypercolumns.rows(found)[at]


def join_columns(targets: Sequence[tuple[Columns, float]]) -> Columns:
    """Those of all style pictures and turns, from which the photo takes what is nearest; shares are ignored."""
    return jnp.concatenate([target for target, _ in targets])


def replace(target: Columns, photo: Sequence[Features], guides: Sequence[Guide] | None) -> Features:
    """The direction of the style's column that is nearest to each of the photo's: by cosines less the means.

    Kolkin et al. 2022, "Neural Neighbor Style Transfer". From its second size on their program matches a mixture of
    photo and image; here the photo alone decides, so that a problem does not depend on how far a run has come.
    """
    found = hypercolumns.hypercolumns(photo)
    if guides is None:
        mean = jnp.mean(found, (0, 1))
    else:
        mean = jnp.tensordot(position_weights(hypercolumns.middle(guides)), found, 2)
    keys = hypercolumns.directions(target - jnp.mean(target, 0)[None])

    def match(column: Float[Array, " channels"]) -> Int[Array, ""]:
        return jnp.argmax(keys @ (column - mean))

    matches = jax.lax.map(match, hypercolumns.rows(found), batch_size=_BLOCK)
    return hypercolumns.directions(target)[matches].reshape(found.shape)


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
    join_columns,
    nearest,
    groups=Groups(lambda layers: [sorted(layers)], tuple),
    adapt=replace,
    turns=4,
)
