"""Preserving colour: against NumPy's statistics, sorting, colorsys, and published values."""

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


@pytest.mark.parametrize("name", color.PRESERVE)
def test_pictures_of_one_pixel_have_a_mean_and_no_covariance(name):
    pixel, way = np.float32([[[200, 90, 30]]]), color.PRESERVE[name]
    for content, style in ((pixel, STYLE), (CONTENT, pixel), (pixel, pixel)):
        prepared = way.prepare_style(style, content)
        result = way.finish(content, [(prepared, 1.0)])(way.prepare_content(content))
        assert np.isfinite(prepared).all()
        assert np.isfinite(result).all()


def test_a_photo_of_one_pixel_gives_a_style_picture_its_colour():
    pixel = np.float32([[[200, 90, 30]]])
    np.testing.assert_allclose(
        color.match_linear(STYLE, pixel), np.broadcast_to(pixel, STYLE.shape), rtol=1e-5
    )


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
    found = color.recolor(CONTENT, [])(result)
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


def test_oklab_has_the_published_values_of_the_primaries():
    colours = np.float32([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]])
    expected = [
        [1, 0, 0],
        [0.6280, 0.2249, 0.1258],
        [0.8664, -0.2339, 0.1795],
        [0.4520, -0.0325, -0.3115],
        [0, 0, 0],
    ]
    np.testing.assert_allclose(color.oklab(colours)[0], expected, atol=1e-4)


def test_oklab_goes_back_to_the_bytes_that_it_is_of():
    colours = np.random.default_rng(4).integers(0, 256, (40, 50, 3)).astype(np.float32)
    found = color.from_oklab(color.oklab(colours))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, colours, atol=0.05)


def gradient(seed, shape):
    """Smooth, so that means over neighbours change little, and of no colour that sRGB lacks."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]] / max(shape)
    mixed = np.stack([rows, columns, rows * columns], 2) @ np.random.default_rng(seed).uniform(
        -60, 60, (3, 3)
    )
    return np.float32(mixed + 128)


def test_in_a_palette_the_result_keeps_its_lightness_and_the_photos_hues_have_the_styles_moments():
    result, content = gradient(3, (80, 96)), gradient(4, (80, 96))
    styles = [(gradient(5, (60, 60)), 3.0), (gradient(6, (40, 70)), 1.0)]
    found = color.oklab(color.to_palette(content, styles)(result)).astype(float)
    each = [color.oklab(picture).astype(float).reshape(-1, 3) for picture, _ in styles]
    drawn = np.concatenate(each)
    # Of a mixture: of the first in three cases of four.
    chances = np.repeat([0.75 / len(each[0]), 0.25 / len(each[1])], list(map(len, each)))
    lightness = np.clip(color.oklab(result)[..., 0], drawn[:, 0].min(), drawn[:, 0].max())
    np.testing.assert_allclose(found[..., 0], lightness, atol=2e-3)
    hues, wanted = found[..., 1:].reshape(-1, 2), drawn[:, 1:]
    np.testing.assert_allclose(hues.mean(0), chances @ wanted, atol=2e-3)
    covariance = np.cov(wanted, rowvar=False, aweights=chances)
    np.testing.assert_allclose(np.cov(hues, rowvar=False), covariance, atol=0.1 * covariance.max())


def test_a_grey_photo_has_no_hues_that_a_palette_could_take():
    grey = color.luminance(gradient(4, (80, 96)))
    hues = color.oklab(color.to_palette(grey, [(gradient(5, (60, 60)), 1.0)])(grey))[..., 1:]
    np.testing.assert_allclose(hues, np.broadcast_to(hues.mean((0, 1)), hues.shape), atol=2e-3)


def test_in_a_grey_palette_all_is_grey():
    found = color.to_palette(CONTENT, [(color.luminance(STYLE), 1.0)])(CONTENT)
    assert np.ptp(found, axis=2).max() < 0.5


def test_hues_end_where_lightness_does():
    """The photo's edge, two pixels away, is blurred up to there and not beyond."""
    result, content = np.full((2, 20, 20, 3), 60, np.float32)
    result[:, 10:], content[:, 8:] = 220, (90, 20, 160)
    hues = color.oklab(color.to_palette(content, [(CONTENT, 1.0)])(result))[..., 1:]
    steps = np.abs(np.diff(hues[5, :, 0]))
    assert steps[9] > 2 * steps[6]
    np.testing.assert_allclose(hues, np.broadcast_to(hues[:1], hues.shape), atol=1e-5)


def test_none_leaves_everything_as_it_is():
    prepare_content, prepare_style, finish = color.PRESERVE["none"]
    assert prepare_content(CONTENT) is CONTENT
    assert prepare_style(STYLE, CONTENT) is STYLE
    assert finish(CONTENT, [(STYLE, 1.0)])(STYLE) is STYLE
