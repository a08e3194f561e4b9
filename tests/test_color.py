"""Preserving colour: against NumPy's statistics, sorting, and colorsys."""

import colorsys

import numpy as np
import pytest

from jaxstyle.images import color


def picture(seed, shape=(24, 30, 3)):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=shape) @ rng.normal(0, 30, (3, 3)) + rng.uniform(80, 170, 3)
    return np.clip(mixed, 0, 255).astype(np.float32)


STYLE, CONTENT = picture(0), picture(1, (20, 40, 3))


def colours(image):
    return np.float64(image).reshape(-1, 3)


def test_a_linear_match_has_the_photos_mean_and_covariance():
    matched = color.match_linear(STYLE, CONTENT)
    assert matched.dtype == np.float32
    np.testing.assert_allclose(colours(matched).mean(0), colours(CONTENT).mean(0), rtol=1e-4)
    expected = np.cov(colours(CONTENT), rowvar=False)
    np.testing.assert_allclose(np.cov(colours(matched), rowvar=False), expected, atol=1e-3 * expected.max())


def test_a_linear_match_of_a_picture_with_itself_changes_nothing():
    np.testing.assert_allclose(color.match_linear(STYLE, STYLE), STYLE, atol=1e-2)


@pytest.mark.parametrize("style", [color.luminance(STYLE), np.full_like(STYLE, 90)], ids=["grey", "flat"])
def test_a_picture_without_colours_can_be_matched_linearly(style):
    matched = color.match_linear(style, CONTENT)
    assert np.isfinite(matched).all()
    np.testing.assert_allclose(colours(matched).mean(0), colours(CONTENT).mean(0), rtol=1e-4)


def test_a_histogram_match_of_as_many_pixels_has_exactly_the_photos_values():
    rng = np.random.default_rng(2)
    style, content = (rng.uniform(0, 255, (10, 12, 3)).astype(np.float32) for _ in range(2))
    matched = color.match_histogram(style, content)
    for channel in range(3):
        np.testing.assert_allclose(
            np.sort(matched[..., channel], axis=None), np.sort(content[..., channel], axis=None), rtol=1e-6
        )
        order = np.argsort(style[..., channel], axis=None)
        assert (np.diff(matched[..., channel].ravel()[order]) >= 0).all()


def test_equal_values_stay_equal_in_a_histogram_match():
    matched = color.match_histogram(np.full_like(STYLE, 7), CONTENT)
    for channel in range(3):
        np.testing.assert_allclose(matched[..., channel], np.median(CONTENT[..., channel]), rtol=1e-3)


def test_recoloring_takes_luminance_from_the_result_and_chroma_from_the_photo():
    result = picture(3, CONTENT.shape)
    found = color.recolor(result, CONTENT)
    for place in [(0, 0), (7, 11), (19, 39)]:
        y, i, q = colorsys.rgb_to_yiq(*(found[place] / 255))
        luma, _, _ = colorsys.rgb_to_yiq(*(result[place] / 255))
        _, chroma_i, chroma_q = colorsys.rgb_to_yiq(*(CONTENT[place] / 255))
        # colorsys rounds its coefficients to two digits.
        np.testing.assert_allclose((y, i, q), (luma, chroma_i, chroma_q), atol=0.02)


def test_luminance_of_a_style_picture_is_matched_to_the_photos():
    matched = color.match_luminance(STYLE, CONTENT)
    assert np.ptp(matched, axis=2).max() == 0
    wanted = color.luminance(CONTENT)
    np.testing.assert_allclose((matched.mean(), matched.std()), (wanted.mean(), wanted.std()), rtol=1e-4)


def test_none_leaves_everything_as_it_is():
    prepare_content, prepare_style, finish = color.PRESERVE["none"]
    assert prepare_content(CONTENT) is CONTENT
    assert prepare_style(STYLE, CONTENT) is STYLE
    assert finish(STYLE, CONTENT) is STYLE
