"""The sample style pictures: the same each time, unlike each other, and rich at every scale."""

import time
from functools import cache

import numpy as np
import pytest
from drawing.facets import facets
from drawing.night import night
from skimage.feature import canny
from skimage.transform import probabilistic_hough_line

from jaxstyle.images import samples

SIZE = (384, 512)
STYLES = samples.NAMES
PAINTERS = {"night": night, "facets": facets}


def draw(name: str, height: int = 768, width: int = 1024) -> np.ndarray:
    return PAINTERS[name](height, width)


@cache
def picture(name: str) -> np.ndarray:
    return draw(name, *SIZE)


def luminance(image: np.ndarray) -> np.ndarray:
    return image.astype(float) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("name", STYLES)
def test_drawing_gives_rgb_bytes_of_the_size_asked_for(name):
    for height, width in (SIZE, (50, 41)):
        image = picture(name) if (height, width) == SIZE else draw(name, height, width)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8


@pytest.mark.parametrize("name", STYLES)
def test_drawing_again_gives_the_same_bytes_whatever_the_global_seed(name):
    first = draw(name, 60, 80)
    np.random.seed(1)
    np.testing.assert_array_equal(draw(name, 60, 80), first)


@pytest.mark.parametrize("name", STYLES)
def test_the_native_size_is_drawn_in_seconds(name):
    start = time.process_time()
    image = draw(name)
    assert image.shape == (768, 1024, 3)
    np.testing.assert_array_equal(samples.picture(name), image)  # what comes along is what is drawn
    assert time.process_time() - start < 15  # 3 s on an idle core


def test_the_composition_does_not_depend_on_the_size():
    def blocks(image, side):
        height, width, _ = image.shape
        return image.reshape(height // side, side, width // side, side, 3).mean((1, 3))

    for name in STYLES:
        large, small = blocks(picture(name), 32), blocks(draw(name, 192, 256), 16)
        assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.9


def test_the_night_is_blue_with_yellow_lights():
    red, green, blue = np.moveaxis(picture("night").astype(float), -1, 0)
    sky = np.s_[: SIZE[0] // 2]
    assert np.mean(blue[sky] > red[sky] + 20) > 0.6
    yellow = (red > 180) & (green > 140) & (blue < red - 50)
    assert 0.01 < yellow.mean() < 0.15


def test_the_facets_are_ochre_with_few_blue_greens():
    red, green, blue = np.moveaxis(picture("facets").astype(float), -1, 0)
    assert red.mean() > green.mean() > blue.mean() + 15
    assert np.mean(red > blue) > 0.7
    assert 0.01 < np.mean(blue > red) < 0.2


def structure_tensor_coherence(image: np.ndarray, side: int) -> np.ndarray:
    """How much the edges of each square of the picture agree in direction: 0 not at all, 1 wholly."""
    gy, gx = np.gradient(luminance(image))
    squared = (gx + 1j * gy) ** 2  # doubled angles: opposite gradients are one direction
    rows, columns = image.shape[0] // side, image.shape[1] // side
    tiles = squared[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.abs(tiles.sum((1, 3))) / np.abs(tiles).sum((1, 3))


def circular_share(image: np.ndarray, centre: tuple[float, float], radius: float) -> float:
    """Share of the gradient energy around a centre (x, y in heights) that points from or to it; 0.5 for noise."""
    gy, gx = np.gradient(luminance(image))
    y, x = (np.mgrid[: image.shape[0], : image.shape[1]] + 0.5) / image.shape[0]
    x, y = x - centre[0], y - centre[1]
    distance = np.hypot(x, y)
    near = (distance > 0.2 * radius) & (distance < 0.8 * radius)
    radial = ((gx * x + gy * y) / distance)[near] ** 2
    return radial.sum() / (gx[near] ** 2 + gy[near] ** 2).sum()


def test_the_strokes_of_the_night_run_around_its_stars_and_eddies():
    for centre, radius in (((1.18, 0.16), 0.155), ((0.10, 0.13), 0.075), ((0.62, 0.34), 0.19)):
        assert circular_share(picture("night"), centre, radius) > 0.65
        assert circular_share(picture("facets"), centre, radius) < 0.6


def long_straight_lines(image: np.ndarray) -> int:
    edges = canny(luminance(image) / 255, sigma=1.5)
    return len(probabilistic_hough_line(edges, threshold=10, line_length=30, line_gap=1, rng=0))


def test_the_facets_have_more_long_straight_edges_than_the_night():
    assert long_straight_lines(picture("facets")) > 1.5 * long_straight_lines(picture("night")) > 0


@pytest.mark.parametrize("name", STYLES)
def test_there_is_texture_at_every_scale(name):
    image = luminance(picture(name))
    spreads = []
    for _ in range(6):  # details of 1, 2, ... 32 pixels
        coarse = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean((1, 3))
        spreads.append(np.std(image - np.kron(coarse, np.ones((2, 2)))))
        image = coarse
    assert min(spreads) > 6


@pytest.mark.parametrize("name", STYLES)
def test_brush_strokes_give_the_texture_a_direction_that_noise_has_not(name):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3))
    assert np.median(structure_tensor_coherence(picture(name), 16)) > 0.3
    assert np.median(structure_tensor_coherence(noise, 16)) < 0.15
