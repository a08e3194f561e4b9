"""The objective in strips of rows is the objective of the whole image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.losses import objective, recipes, strips
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


def problem(random_network, height=301, width=37, pooling="max", padding="zero", **masks):
    styles = [objective.Style(smooth(60, 50, 1), **masks)]
    if masks:
        styles.append(objective.Style(smooth(50, 60, 2), 2.0, 1 - masks["content_mask"]))
    network = vgg.prepare(random_network, "block5_conv1", "direct", pooling, padding)
    content_mask = masks.get("content_mask")
    return objective.pose(FORM, network, smooth(height, width, 0), styles, WEIGHTING, content_mask)


def both(posed, image, count):
    form = FORM._replace(strips=count)
    whole = convolution.jit(functools.partial(objective.evaluate, form))(posed, image)
    return whole, convolution.jit(functools.partial(strips.evaluate, form))(posed, image)


def assert_same(whole, found):
    for expected, term in zip((whole.total, *whole.terms), (found.total, *found.terms), strict=True):
        np.testing.assert_allclose(term, expected, rtol=2e-6)
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


@pytest.mark.parametrize("height", [600, 777, 1024, 4096])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_a_window_has_all_that_its_strip_sees(height, count):
    layers = vgg.layer_names("vgg16")[:13]
    plan = strips.windows(height, layers, count)
    assert (plan.bounds[0], plan.bounds[-1]) == (0, height)
    for start, begin, end in zip(plan.starts, plan.bounds[:-1], plan.bounds[1:], strict=True):
        assert start % 16 == begin % 16 == 0
        assert begin < end
        assert start <= max(0, begin - strips.halo(layers))
        assert start + plan.height >= min(height, end + strips.halo(layers))
        assert start + plan.height == height or (height - plan.height) % 16 == 0


def test_memory_is_that_of_a_window(random_network):
    posed, image = problem(random_network, 1600, 48), jnp.asarray(smooth(1600, 48, 3))

    def temporary(evaluate, count):
        compiled = convolution.jit(functools.partial(evaluate, FORM._replace(strips=count))).lower(
            posed, image
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert temporary(strips.evaluate, 10) < 0.4 * temporary(objective.evaluate, 1)


def test_what_is_no_sum_over_positions_has_no_strips(random_network):
    posed, image = problem(random_network), jnp.asarray(smooth(301, 37, 3))
    for form in (FORM._replace(style=STYLE_LOSSES["mrf"]), objective.IVANOV2017):
        with pytest.raises(ValueError, match="no strips"):
            strips.evaluate(form._replace(strips=2), posed, image)


@pytest.mark.parametrize("masks", [False, True])
def test_a_problem_posed_in_strips_is_that_of_the_whole(masks, random_network):
    """Targets of content and style, of pictures with odd heights and with regions."""
    height, width = 301, 37
    given = {"content_mask": mask(height, width), "style_mask": mask(133, 50)} if masks else {}
    styles = [objective.Style(smooth(133, 50, 1), **given), objective.Style(smooth(97, 64, 2), 2.0)]
    network = vgg.prepare(random_network, "block5_conv1", "direct", padding="edge")
    arguments = FORM, network, smooth(height, width, 0), styles, WEIGHTING, given.get("content_mask")
    whole = objective.pose(*arguments)
    found = objective.pose(*arguments, read=strips.reading(4))
    assert jax.tree.structure(whole) == jax.tree.structure(found)
    for expected, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
