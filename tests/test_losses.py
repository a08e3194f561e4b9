"""The formulas against NumPy in float64, written out from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.losses import content, terms

RNG = np.random.default_rng(0)
F = RNG.normal(size=(5, 7, 4))
P = RNG.normal(size=(5, 7, 4))
IMAGE = RNG.uniform(0, 255, (6, 5, 3))
G = RNG.uniform(0, 2, (5, 7))


def gram(features):
    n = features.shape[-1]
    return np.array([[np.mean(features[..., i] * features[..., j]) for j in range(n)] for i in range(n)])


def test_gram_matrix_is_the_mean_product_of_channels():
    np.testing.assert_allclose(terms.gram_matrix(jnp.float32(F)), gram(F), rtol=1e-5, atol=1e-6)


def test_gatys_content_is_equation_1():
    np.testing.assert_allclose(
        terms.gatys_content(jnp.float32(F), jnp.float32(P)), 0.5 * np.sum((F - P) ** 2), rtol=1e-5
    )


def test_gatys_style_is_equation_4_for_pictures_of_one_size():
    n, m = 4, 35
    sums, targets = gram(F) * m, gram(P) * m
    np.testing.assert_allclose(
        terms.gatys_style(jnp.float32(gram(F)), jnp.float32(gram(P))),
        np.sum((sums - targets) ** 2) / (4 * n**2 * m**2),
        rtol=1e-5,
    )


def test_the_studys_losses_are_its_notebooks():
    size, n = F.size, 4
    np.testing.assert_allclose(
        terms.ivanov2017_content(jnp.float32(F), jnp.float32(P)),
        np.sqrt(0.5 * np.sum((F - P) ** 2) / size),
        rtol=1e-5,
    )
    notebook_gram = lambda f: f.reshape(-1, n).T @ f.reshape(-1, n) / f.size  # noqa: E731
    np.testing.assert_allclose(
        terms.ivanov2017_style(jnp.float32(gram(F)), jnp.float32(gram(P))),
        np.sqrt(np.sum(((notebook_gram(F) - notebook_gram(P)) / n**2) ** 2)),
        rtol=1e-5,
    )


@pytest.mark.parametrize(("loss", "power"), [(terms.total_variation, 1), (terms.squared_variation, 2)])
def test_variation_sums_over_both_directions(loss, power):
    expected = 0.0
    for i in range(6):
        for j in range(5):
            if i:
                expected += np.sum(np.abs(IMAGE[i, j] - IMAGE[i - 1, j]) ** power)
            if j:
                expected += np.sum(np.abs(IMAGE[i, j] - IMAGE[i, j - 1]) ** power)
    np.testing.assert_allclose(loss(jnp.float32(IMAGE)), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [terms.ivanov2017_content, terms.ivanov2017_style])
def test_roots_have_finite_gradients_where_the_loss_is_zero(loss):
    square = jnp.ones((4, 4))
    value, gradient = jax.value_and_grad(loss)(square, square)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_the_gradient_of_the_gram_matrix_is_that_of_its_formula():
    weights = jnp.float32(RNG.normal(size=(4, 4)))
    flat = lambda f: f.reshape(-1, 4)  # noqa: E731
    expected = jax.grad(lambda f: jnp.sum(weights * (flat(f).T @ flat(f)) / 35))(jnp.float32(F))
    found = jax.grad(lambda f: jnp.sum(weights * terms.gram_matrix(f)))(jnp.float32(F))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("guide", [None, G])
def test_self_similarity_compares_distances_of_all_pairs(guide):
    def distances(features):
        rows = features.reshape(-1, features.shape[-1])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        found = 1 - rows @ rows.T
        return found / found.mean(0)

    weights = 1 if guide is None else np.outer(guide, guide)
    expected = 0.5 * F.size * np.mean(weights * (distances(F) - distances(P)) ** 2)
    found = content.self_similarity(
        jnp.float32(F), jnp.float32(P), None if guide is None else jnp.float32(guide)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_self_similarity_knows_no_turn_of_all_features_and_keeps_to_a_grid(monkeypatch):
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(F.shape[-1],) * 2))[0]
    loss = jax.jit(content.self_similarity)
    own, away = (float(loss(jnp.float32(F), jnp.float32(x))) for x in (3 * F @ turn, P))
    assert own < 1e-6 * away
    monkeypatch.setattr(content, "MAX_POSITIONS", 4)
    gradient = jax.jit(jax.grad(content.self_similarity))(jnp.float32(F), jnp.float32(P))
    assert 0 < np.count_nonzero(np.any(gradient != 0, -1)) <= 4


def test_self_similarity_of_a_strip_that_its_grid_is_coarser_than_is_of_positions_in_it():
    one, other = (jnp.float32(np.tile(each[:1], (2, 1200, 1))) for each in (F, P))  # 2×8400 positions
    value, gradient = jax.jit(jax.value_and_grad(content.self_similarity))(one, other)
    assert value > 0
    assert 0 < np.count_nonzero(np.any(gradient != 0, -1)) <= content.MAX_POSITIONS
