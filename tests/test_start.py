"""Start images: reproducible from the seed, and what their names say."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle.images import start

CONTENT = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (64, 48, 3)), jnp.float32)
STYLES = [jnp.full((20, 30, 3), 200.0), jnp.full((20, 30, 3), 100.0)]


@pytest.mark.parametrize("kind", start.KINDS)
def test_the_seed_alone_decides_the_start_image(kind):
    first, again, other = (start.image(kind, seed, CONTENT, STYLES) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert kind == "content" or not np.array_equal(first, other)
    assert first.dtype == jnp.float32


def test_streams_of_one_seed_are_independent():
    assert start.stream(0, "init") != start.stream(0, "optimizer")


def test_content_starts_from_the_photo():
    np.testing.assert_array_equal(start.image("content", 0, CONTENT, STYLES), CONTENT)


def test_noise_has_the_photos_colours():
    noise = start.image("noise", 0, CONTENT, STYLES)
    np.testing.assert_allclose(noise.mean((0, 1)), CONTENT.mean((0, 1)), rtol=0.05)
    np.testing.assert_allclose(noise.std((0, 1)), CONTENT.std((0, 1)), rtol=0.05)


def test_style_statistics_have_the_style_pictures_colours():
    noise = start.image("style_statistics", 0, CONTENT, STYLES)
    assert noise.shape == CONTENT.shape
    np.testing.assert_allclose(noise.mean((0, 1)), 150, rtol=0.05)
    np.testing.assert_allclose(noise.std((0, 1)), 50, rtol=0.05)


def test_the_studys_start_is_the_clipped_centred_photo_with_one_percent_of_grain():
    centred = np.asarray(CONTENT) - np.float32(start.IMAGENET_MEAN)
    found = np.asarray(start.image("ivanov2017", 0, CONTENT, STYLES)) - np.float32(start.IMAGENET_MEAN)
    assert found.min() >= -1e-4
    np.testing.assert_allclose(found[centred < 0], 0, atol=1e-4)
    bright = centred > 20
    grain = found[bright] / centred[bright]
    np.testing.assert_allclose(grain.mean(), 1, atol=1e-3)
    np.testing.assert_allclose(grain.std(), 0.01, rtol=0.1)
