"""The objective in strips of rows is the objective of the whole image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstyle
from jaxstyle.losses import objective, recipes, strips, wasserstein
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.network import convolution, vgg

FORM = objective.GATYS
WEIGHTING = recipes.Weighting(
    {"block4_conv2": 1.0, "block2_conv2": 0.1},
    {"block1_conv1": 10.0, "block3_conv1": 5.0, "block5_conv1": 2.0},
    1e-3,
)


def smooth(height, width, seed):
    coarse = np.random.default_rng(seed).uniform(0, 255, (8, 5, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (height, width, 3), "cubic"))


def mask(height, width):
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


def problem(random_network, height=301, width=37, pooling="max", padding="zero", form=FORM, **masks):
    styles = [objective.Style(smooth(60, 50, 1), **masks)]
    if masks:
        styles.append(objective.Style(smooth(50, 60, 2), 2.0, 1 - masks["content_mask"]))
    network = vgg.prepare(random_network, "block5_conv1", "direct", pooling, padding)
    content_mask = masks.get("content_mask")
    return jaxstyle.pose(form, network, smooth(height, width, 0), styles, WEIGHTING, content_mask)


def both(posed, image, count, form=FORM):
    form = form._replace(strips=count)
    whole = convolution.jit(functools.partial(objective.evaluate, form))(posed, image)
    return whole, convolution.jit(functools.partial(strips.evaluate, form))(posed, image)


def assert_same(whole, found, rtol=2e-6):
    for expected, term in zip((whole.total, *whole.terms), (found.total, *found.terms), strict=True):
        np.testing.assert_allclose(term, expected, rtol=rtol)
    largest = np.abs(whole.gradient).max()
    np.testing.assert_allclose(found.gradient, whole.gradient, atol=1e-5 * largest)


@pytest.mark.parametrize("padding", ["zero", "edge"])
@pytest.mark.parametrize("pooling", list(convolution.POOLING))
def test_loss_and_gradient_are_those_of_the_whole(pooling, padding, random_network):
    posed = problem(random_network, pooling=pooling, padding=padding)
    assert_same(*both(posed, jnp.asarray(smooth(301, 37, 3)), 3))


@pytest.mark.parametrize(("height", "count"), [(335, 5), (288, 1), (31, 9)])
def test_any_height_in_any_number_of_strips(height, count, random_network):
    assert_same(*both(problem(random_network, height), jnp.asarray(smooth(height, 37, 3)), count))


def test_regions_and_a_weighted_content(random_network):
    posed = problem(random_network, content_mask=mask(301, 37), style_mask=mask(60, 50))
    assert_same(*both(posed, jnp.asarray(smooth(301, 37, 3)), 3))


def test_maps_that_are_computed_again_are_the_same(random_network):
    posed = problem(random_network, padding="edge")
    assert_same(*both(posed, jnp.asarray(smooth(301, 37, 3)), 4, FORM._replace(remat=True)))


def test_mean_and_covariance_of_parts_are_those_of_the_whole(random_network):
    """Of regions too, one of which has no extent in the first strip."""
    form = FORM._replace(style=STYLE_LOSSES["wasserstein"])
    below = np.zeros((301, 37), np.float32)
    below[200:] = 1
    posed = problem(random_network, form=form, content_mask=below, style_mask=mask(60, 50))
    # Covariances that differ in their last bits, through the iteration for their optimal transport.
    assert_same(*both(posed, jnp.asarray(smooth(301, 37, 3)), 3, form), rtol=1e-5)


def test_a_flat_picture_far_from_zero_has_no_covariance_in_parts_either():
    """From the means of squares, float32 would leave an error of 1e-7 of a million."""
    maps = jnp.float32(1000 + np.random.default_rng(0).normal(0, 0.01, (8, 5, 3)))
    parts = [wasserstein.part(maps[rows], jnp.full((4, 5), 1 / 40)) for rows in (slice(4), slice(4, 8))]
    found = wasserstein.join(jax.tree.map(lambda *each: jnp.stack(each), *parts))
    expected = np.cov(np.float64(maps).reshape(-1, 3).T, bias=True)
    np.testing.assert_allclose(found.covariance, expected, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("height", [3, 17, 150, 777, 1024, 4096])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("layers", [2, 4])
def test_a_window_has_all_that_its_strip_sees(height, count, layers):
    plan = strips.windows(height, count, layers)
    assert (plan.bounds[0], plan.bounds[-1]) == (0, height)
    assert len(plan.starts) <= count
    for start, begin, end in zip(plan.starts, plan.bounds[:-1], plan.bounds[1:], strict=True):
        assert start % 4 == begin % 4 == 0
        assert begin < end
        assert start <= max(0, begin - layers)
        assert start + plan.height >= min(height, end + layers)
        assert start + plan.height == height or (height - plan.height) % 4 == 0


def test_memory_is_that_of_a_window(random_network):
    posed, image = problem(random_network, 1600, 48), jnp.asarray(smooth(1600, 48, 3))

    def temporary(evaluate, count, remat):
        form = FORM._replace(strips=count, remat=remat)
        compiled = convolution.jit(functools.partial(evaluate, form)).lower(posed, image)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    whole = temporary(objective.evaluate, 1, False)
    assert temporary(strips.evaluate, 10, False) < 0.6 * whole
    assert temporary(strips.evaluate, 10, True) < 0.45 * whole


def test_what_is_no_sum_over_positions_has_no_strips(random_network):
    posed, image = problem(random_network), jnp.asarray(smooth(301, 37, 3))
    for form in (FORM._replace(style=STYLE_LOSSES["mrf"]), objective.IVANOV2017):
        with pytest.raises(ValueError, match="no strips"):
            strips.evaluate(form._replace(strips=2), posed, image)


def test_as_few_strips_as_fit():
    layers, shape = vgg.layer_names("vgg16")[:11], (1024, 1024)
    whole = strips.estimate(FORM, layers, shape)

    def fitting(share, form=FORM):
        found = strips.fitting(form, layers, shape, int(share * whole))
        return found.strips, found.remat

    assert [fitting(share) for share in (1, 0.9, 0.6, 0.2, 0)] == [
        *((1, False), (2, False), (4, False), (8, True), (64, True))
    ]
    assert fitting(0.9, FORM._replace(remat=True)) == (1, True)
    assert fitting(0, FORM._replace(style=STYLE_LOSSES["mrf"])) == (1, False)


@pytest.mark.parametrize("masks", [False, True])
def test_a_problem_posed_in_strips_is_that_of_the_whole(masks, random_network):
    """Targets of content and style, of pictures with odd heights and with regions."""
    height, width = 301, 37
    given = {"content_mask": mask(height, width), "style_mask": mask(133, 50)} if masks else {}
    styles = [objective.Style(smooth(133, 50, 1), **given), objective.Style(smooth(97, 64, 2), 2.0)]
    network = vgg.prepare(random_network, "block5_conv1", "direct", padding="edge")
    arguments = FORM, network, smooth(height, width, 0), styles, WEIGHTING, given.get("content_mask")
    whole = jaxstyle.pose(*arguments)
    in_strips = functools.partial(objective.pose, read=strips.reading(4))
    found = jax.jit(in_strips, static_argnums=0)(*arguments)
    assert jax.tree.structure(whole) == jax.tree.structure(found)
    for expected, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
