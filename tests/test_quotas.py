"""Quotas against SciPy's assignment."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxstyle.losses import quotas

RNG = np.random.default_rng(0)


def taken(gains, weights, shares):
    """The number of the taker of each position."""
    found = quotas.offsets(*map(jnp.float32, (gains, weights, shares)))
    return np.argmax(gains + np.asarray(found), 1)


@pytest.mark.parametrize("counts", [(45, 15), (10, 50), (10, 20, 30), (1, 20, 9, 30)])
def test_each_takes_its_share_and_no_other_assignment_gains_more(counts):
    count = sum(counts)
    # What positions have in common says nothing of who takes them, nor does what one taker gains everywhere.
    gains = RNG.normal(size=(count, len(counts))) + RNG.normal(size=(count, 1)) + RNG.normal(size=len(counts))
    found = taken(gains, np.full(count, 1 / count), np.divide(counts, count))
    assert np.all(np.abs(np.bincount(found, minlength=len(counts)) - counts) <= 1)
    slots = np.repeat(gains, counts, axis=1)
    best = slots[scipy.optimize.linear_sum_assignment(slots, maximize=True)].sum()
    spread = np.ptp(gains, axis=1).max()
    assert best - spread < gains[np.arange(count), found].sum() < best + spread


def test_of_two_takers_the_assignment_is_exact():
    gains = RNG.normal(size=(40, 2))
    first = np.argsort(gains[:, 0] - gains[:, 1])[-10:]
    assert set(np.flatnonzero(taken(gains, np.full(40, 1 / 40), (0.25, 0.75)) == 0)) == set(first)


def test_positions_count_by_their_weights():
    weights = RNG.uniform(size=500) ** 4
    weights /= weights.sum()
    found = taken(RNG.normal(size=(500, 3)), weights, (0.2, 0.7, 0.1))
    parts = np.bincount(found, weights, minlength=3)
    np.testing.assert_allclose(parts, (0.2, 0.7, 0.1), atol=2 * weights.max())


@pytest.mark.parametrize("shares", [(1, 0), (0, 1), (0, 1, 0), (1,)])
def test_who_has_all_takes_all(shares):
    found = taken(RNG.normal(size=(30, len(shares))), np.full(30, 1 / 30), shares)
    assert np.all(found == np.argmax(shares))


def test_a_guide_of_zeros_has_offsets_too():
    found = quotas.offsets(jnp.float32(RNG.normal(size=(30, 2))), jnp.zeros(30), jnp.float32([0.5, 0.5]))
    assert np.all(np.isfinite(found))
