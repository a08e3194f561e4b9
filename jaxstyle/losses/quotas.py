"""Quotas: which of a few takes each position, so that each takes the part that is its share."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

#: Each offset is set so often: of more than two takers, one that is set moves the shares of all.
_SWEEPS = 30


def offsets(
    gains: Float[Array, "positions takers"],
    weights: Float[Array, " positions"],
    shares: Float[Array, " takers"],
) -> Float[Array, " takers"]:
    """What to add to the gains of each taker so that those who gain most take their shares of the positions.

    The sum of the gains is then the largest that any assignment with these shares has: the offsets are the
    multipliers of semi-discrete optimal transport (Peyré and Cuturi 2019, "Computational Optimal Transport", chapter
    5). They are set one after another, each to where its taker has its share against the others as they are (Oliker
    and Prussner 1988), until the shares hold to within a position or so. Positions whose gains are all alike go to
    one taker together.

    Args:
      gains: of a position by its taker.
      weights: of the positions; their sum is 1, or 0.
      shares: of the takers; their sum is 1.
    """
    count = gains.shape[1]

    def settle(number: Array, found: Float[Array, " takers"]) -> Float[Array, " takers"]:
        taker = number % count
        others = jnp.max(jnp.where(jnp.arange(count)[None] == taker, -jnp.inf, gains + found[None]), 1)
        needed = others - gains[:, taker]  # for the taker to gain most there
        order = jnp.argsort(needed)
        needed, own = needed[order], weights[order]
        # A position is taken where its middle is below the share; the offset is halfway to the next.
        taken = jnp.sum(jnp.cumsum(own) - own / 2 < shares[taker])
        padded = jnp.concatenate([needed[:1] - 2, needed, needed[-1:] + 2])
        return found.at[taker].set((padded[taken] + padded[taken + 1]) / 2)

    return jax.lax.fori_loop(0, _SWEEPS * count, settle, jnp.zeros(count, gains.dtype))
