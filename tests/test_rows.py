"""The objective of rows that divide among devices is the objective of the image as it is."""

import functools

import jax.numpy as jnp
import pytest
from test_strips import FORM, assert_same, mask, problem, smooth

from jaxstyle.losses import objective, rows
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.network import convolution


def both(posed, image, devices):
    form = FORM._replace(devices=devices)
    laid = rows.lay(form, posed, image.shape)
    whole = convolution.jit(functools.partial(objective.evaluate, FORM))(posed, image)
    return whole, convolution.jit(functools.partial(rows.evaluate, form))(laid, image)


@pytest.mark.parametrize(
    ("height", "pooling", "padding"), [(301, "max", "zero"), (111, "average", "edge"), (34, "l2", "edge")]
)
def test_rows_below_an_image_change_nothing(height, pooling, padding, random_network):
    posed = problem(random_network, height, pooling=pooling, padding=padding)
    assert_same(*both(posed, jnp.asarray(smooth(height, 37, 3)), 4))


def test_rows_below_an_image_change_nothing_with_regions_and_a_weighted_content(random_network):
    posed = problem(random_network, 111, content_mask=mask(111, 37), style_mask=mask(60, 50))
    assert_same(*both(posed, jnp.asarray(smooth(111, 37, 3)), 3))


def test_rows_divide_at_every_layer(random_network):
    network = problem(random_network).network
    assert rows.tall(FORM._replace(devices=4), network, 301) == 320
    assert rows.tall(FORM._replace(devices=4), network, 320) == 320
    assert rows.tall(FORM._replace(devices=1), network, 301) == 301


def test_a_loss_that_is_no_sum_over_positions_keeps_its_rows(random_network):
    form, posed = FORM._replace(style=STYLE_LOSSES["mrf"], devices=4), problem(random_network)
    assert rows.tall(form, posed.network, 301) == 301
    assert rows.lay(form, posed, (301, 37, 3)) is posed
    assert rows.tall(objective.IVANOV2017._replace(devices=2), posed.network, 33) == 33
