"""The style losses against NumPy and SciPy in float64, written out from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.extend.core import jaxprs_in_params

from jaxstyle.losses import base, cross, hypercolumns, mrf, nearest, sliced, wasserstein
from jaxstyle.losses.style import STYLE_LOSSES

#: What makes of one array the maps, or the guides, of a group of layers.
GIVEN = {
    "nearest": lambda array: (array,),
    "split": lambda array: (array,),
    "rot": lambda array: (array[..., :3] if array.ndim == 3 else array, array),
    "cross": lambda array: (array[..., :1], array[..., 1:]) if array.ndim == 3 else (array, array),
}


def alone(name):
    """A style loss as one of a single layer, of an image that is its own photo; compiled, for the tests' time."""
    loss, given = STYLE_LOSSES[name], GIVEN.get(name, lambda array: array)

    def wanted(target, photo, guides):
        return base.Chosen(target, loss.choose(target, photo, guides)) if loss.choose else target

    def guides(guide):
        return None if guide is None else given(guide)

    @jax.jit
    def distance(features, guide, target):
        photo = given(jax.lax.stop_gradient(features))
        return loss.loss(given(features), guides(guide), wanted(target, photo, guides(guide)))

    summarize = jax.jit(lambda features, guide, key: loss.summarize(given(features), guides(guide), key))
    return base.StyleLoss(summarize, loss.blend, distance)


STYLE_LOSSES = {name: alone(name) for name in STYLE_LOSSES}

RNG = np.random.default_rng(0)
CHANNELS = 4
IMAGE = np.maximum(RNG.normal(0.5, 1, (5, 6, CHANNELS)), 0)
STYLE = np.maximum(RNG.normal(1, 2, (7, 4, CHANNELS)), 0)
SAME_SIZE = np.maximum(RNG.normal(1, 2, (5, 6, CHANNELS)), 0)
GUIDE = RNG.uniform(0, 1, (5, 6))
HALF = np.float64(np.arange(6) < 3) * np.ones((5, 1))
KEY = jax.random.key(0)

every_loss = pytest.mark.parametrize("name", STYLE_LOSSES)


@functools.partial(jax.jit, static_argnums=0)
def both(name, image, style, guide=None, style_guide=None):
    """The loss of an image to a style, and its gradient, in the precision of the arrays."""
    loss = STYLE_LOSSES[name]
    target = loss.blend([(loss.summarize(style, style_guide, KEY), 1.0)])
    return jax.value_and_grad(lambda image: loss.loss(image, guide, target))(image)


def between(name, *arrays):
    return both(name, *arrays)[0]


def weighted(features, guide=None):
    """Features as rows, and their normalised weights."""
    weights = np.ones(features.shape[:2]) if guide is None else guide**2
    return features.reshape(-1, features.shape[-1]), weights.ravel() / weights.sum()


def gram_reference(image, style, guide=None):
    grams = []
    for rows, weights in (weighted(image, guide), weighted(style)):
        grams.append(sum(w * np.outer(row, row) for row, w in zip(rows, weights, strict=True)))
    return np.sum((grams[0] - grams[1]) ** 2) / (4 * CHANNELS**2)


def wasserstein_reference(image, style, guide=None):
    means, covariances = [], []
    for rows, weights in (weighted(image, guide), weighted(style)):
        means.append(weights @ rows)
        covariances.append(np.cov(rows.T, ddof=0, aweights=weights))
    root = scipy.linalg.sqrtm(covariances[1])
    cross = scipy.linalg.sqrtm(root @ covariances[0] @ root)
    return (np.sum((means[0] - means[1]) ** 2) + np.trace(sum(covariances) - 2 * cross)) / CHANNELS


def sliced_reference(image, style, guide=None):
    """Sorted projections one by one, or interpolated at the middles of the positions' sorted weights."""
    rows, weights = weighted(image, guide)
    squares = []
    for direction in np.float64(STYLE_LOSSES["sliced"].summarize(jnp.asarray(style), None, KEY).directions):
        own, goal = rows @ direction, np.sort(weighted(style)[0] @ direction)
        order = np.argsort(own)
        if guide is not None or image.shape != style.shape:
            levels = np.cumsum(weights[order]) - weights[order] / 2
            goal = np.interp(levels, (np.arange(goal.size) + 0.5) / goal.size, goal)
        squares.append(weights[order] @ (own[order] - goal) ** 2)
    return np.mean(squares)


def mrf_reference(image, style, guide=None):
    """Brute force, a patch at a time."""

    def patches(features):
        padded = np.pad(features, ((1, 1), (1, 1), (0, 0)), "edge")
        height, width = features.shape[:2]
        return [padded[i : i + 3, j : j + 3] for i in range(height) for j in range(width)]

    def distance(patch):
        correlation = [np.sum(patch * s) / np.linalg.norm(patch) / np.linalg.norm(s) for s in patches(style)]
        return np.mean((patch - patches(style)[np.argmax(correlation)]) ** 2)

    return weighted(image, guide)[1] @ [distance(patch) for patch in patches(image)]


def directions(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def nearest_reference(image, style, guide=None):
    """Half the squared distance of the directions of each position and its match, by cosines less the means."""
    (rows, weights), (others, _) = weighted(image, guide), weighted(style)
    matches = np.argmax(directions(rows - weights @ rows) @ directions(others - others.mean(0)).T, 1)
    return weights @ np.sum((directions(rows) - directions(others)[matches]) ** 2, 1) / 2


def rot_reference(image, style, guide=None):
    """Brute force, at the positions that are drawn."""
    starts = np.asarray(STYLE_LOSSES["rot"].summarize(jnp.asarray(style), None, KEY).offsets)
    at = hypercolumns.drawn(
        image.shape[:2], None if guide is None else jnp.asarray(guide), jnp.asarray(starts)
    )
    (rows, _), (others, _) = weighted(image), weighted(style)
    rows = rows[np.asarray(at)]

    def relaxed(a, b, cost):
        pairs = cost(((a[:, None] - b[None]) ** 2).sum(-1))
        return max(pairs.min(1).mean(), pairs.min(0).mean())

    def smooth(x):
        return np.sqrt(x**2 + 0.01**2) - 0.01

    def relative(a, b):
        return smooth((a - b) / np.abs(b).mean()).mean()

    both, goals = (np.concatenate([x / CHANNELS, x[:, :3] / 255], 1) for x in (rows, others))
    return (
        relaxed(directions(rows), directions(others), lambda squares: squares / 2)
        + relaxed(rows[:, :3] / 255, others[:, :3] / 255, lambda squares: smooth(np.sqrt(squares)))
        + relative(both.mean(0), goals.mean(0))
        + relative(np.cov(both.T, ddof=0), np.cov(goals.T, ddof=0))
    )


def cross_reference(image, style, guide=None):
    products = []
    for rows, weights in (weighted(image, guide), weighted(style)):
        products.append(sum(w * np.outer(row[:1], row[1:]) for row, w in zip(rows, weights, strict=True)))
    return np.sum((products[0] - products[1]) ** 2) / (4 * (CHANNELS - 1))


REFERENCES = {
    "gram": gram_reference,
    "wasserstein": wasserstein_reference,
    "sliced": sliced_reference,
    "mrf": mrf_reference,
    "nearest": nearest_reference,
    "split": nearest_reference,
    "rot": rot_reference,
    "cross": cross_reference,
}
#: Losses that do not depend on the features' size.
RELATIVE = ("nearest", "split", "rot")
#: The Wasserstein loss blurs; a direction of next to nothing is none.
TOLERANCES = {"wasserstein": 2e-5, "nearest": 1e-6, "split": 1e-6, "rot": 1e-6}


@every_loss
def test_losses_are_those_of_the_papers(name):
    tolerance = TOLERANCES.get(name, 1e-10)
    with jax.enable_x64(True):
        found = between(name, IMAGE, SAME_SIZE)
        np.testing.assert_allclose(found, REFERENCES[name](IMAGE, SAME_SIZE), rtol=tolerance)
    np.testing.assert_allclose(between(name, np.float32(IMAGE), np.float32(SAME_SIZE)), found, rtol=1e-4)


@every_loss
@pytest.mark.parametrize("guide", [None, GUIDE, HALF], ids=["whole", "soft", "hard"])
def test_losses_compare_pictures_of_two_sizes_and_weigh_positions_by_the_guide(name, guide):
    tolerance = TOLERANCES.get(name, 1e-10)
    with jax.enable_x64(True):
        found = between(name, IMAGE, STYLE, guide)
        np.testing.assert_allclose(found, REFERENCES[name](IMAGE, STYLE, guide), rtol=tolerance)


def test_of_many_positions_the_sliced_loss_orders_levels_and_is_that_of_an_exact_order():
    """Where a position and its level share 32 bits, so that few are left for the level."""
    image, style = (np.float32(np.maximum(RNG.normal(m, 1, (250, 260, 2)), 0)) for m in (0.5, 1))
    target = STYLE_LOSSES["sliced"].summarize(image, None, KEY)
    projections = np.asarray(target.directions @ image.reshape(-1, 2).T)
    levels = np.ptp(projections, axis=1) / (2**16 - 1)
    for projection, level in zip(projections, levels, strict=True):
        found = np.asarray(jax.jit(sliced._order)(projection))
        np.testing.assert_array_equal(np.sort(found), np.arange(projection.size))
        assert np.abs(projection[found] - np.sort(projection)).max() < 1.01 * level
    # At the style itself no position is drawn further than a level.
    assert between("sliced", image, image) < np.mean(levels**2)
    target = STYLE_LOSSES["sliced"].summarize(style, None, KEY)
    own, goal = (target.directions @ each.reshape(-1, 2).T for each in (image, style))
    expected = np.mean((np.sort(np.float64(own)) - np.sort(np.float64(goal))) ** 2)
    np.testing.assert_allclose(between("sliced", image, style), expected, rtol=1e-4)


def test_covariances_that_rounding_left_without_full_rank_are_blurred_more():
    """Of a million positions of stripes the least eigenvalue is some -1e-5 of the trace."""
    rng = np.random.default_rng(0)
    turn, samples = np.linalg.qr(rng.normal(size=(6, 6)))[0], rng.normal(size=(20, 6))
    striped, other = (turn * [1, 0.1, 0, 0, 0, -1e-5]) @ turn.T, np.cov(samples.T)
    way = np.outer(samples[0], samples[0]) * 1e-8
    with jax.enable_x64(True):
        bures = jax.jit(wasserstein.squared_bures)
        one, two = (each + 1e-4 * np.trace(each) * np.eye(6) for each in (striped, other))
        root = scipy.linalg.sqrtm(two)
        expected = np.trace(one + two) - 2 * np.trace(scipy.linalg.sqrtm(root @ one @ root))
        np.testing.assert_allclose(bures(striped, other), expected, rtol=1e-9)
        assert bures(striped, striped) < 1e-12
        for given in ((striped, other), (other, striped)):
            ends = [bures(given[0] + sign * way, given[1]) for sign in (1, -1)]
            slope = jax.jit(jax.grad(wasserstein.squared_bures))(*given)
            np.testing.assert_allclose(2 * np.sum(slope * way), ends[0] - ends[1], rtol=1e-5)
    assert np.isfinite(jax.jit(wasserstein.squared_bures)(np.float32(striped), np.float32(other)))


def test_the_mean_of_many_positions_within_a_guide_is_as_exact_as_that_of_all():
    """In one sum, in which each position is added to those before, it was off by 5e-5."""
    rng = np.random.default_rng(0)
    features = np.float32(rng.uniform(0, 1, (1024, 1024, 2)))
    guide = np.float32(rng.uniform(0.5, 1, (1024, 1024)))
    _, weights = weighted(features, np.float64(guide))
    expected = weights @ np.float64(features).reshape(-1, 2)
    part = jax.jit(wasserstein.part)(features, jnp.float32(weights.reshape(guide.shape)))
    for found in (jax.jit(wasserstein.gaussian)(features, guide), part.gaussian):
        np.testing.assert_allclose(found.mean, expected, rtol=1e-6)


def test_sliced_weights_are_multiplicities():
    counts = RNG.integers(1, 4, (5, 6))
    guided = STYLE_LOSSES["sliced"].summarize(jnp.float32(IMAGE), jnp.float32(np.sqrt(counts)), KEY)
    levels = (np.arange(30) + 0.5) / 30
    rows = np.repeat(IMAGE.reshape(-1, CHANNELS), counts.ravel(), axis=0)
    expected = np.quantile(rows @ guided.directions.T, levels, axis=0, method="inverted_cdf").T
    # A level at the step between two positions may fall to either.
    assert np.mean(np.isclose(guided.quantiles, expected, rtol=1e-5, atol=1e-6)) > 0.9


def test_slices_are_as_many_unit_vectors_as_channels_and_depend_on_the_key_alone():
    first = STYLE_LOSSES["sliced"].summarize(jnp.float32(IMAGE), None, KEY).directions
    assert first.shape == (CHANNELS, CHANNELS)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(
        first, STYLE_LOSSES["sliced"].summarize(jnp.float32(STYLE), None, KEY).directions
    )
    other = STYLE_LOSSES["sliced"].summarize(jnp.float32(IMAGE), None, jax.random.key(1)).directions
    assert np.all(first != other)


def test_large_styles_keep_a_bounded_number_of_quantiles_and_patches(monkeypatch):
    monkeypatch.setattr(sliced, "MAX_QUANTILES", 10)
    monkeypatch.setattr(mrf, "MAX_PATCHES", 10)
    found = sliced.slices(jnp.float32(IMAGE), None, KEY)
    ordered = np.sort(found.directions @ np.float32(IMAGE).reshape(-1, CHANNELS).T)
    np.testing.assert_allclose(found.quantiles, ordered[:, 1::3], rtol=1e-5)
    guided = sliced.slices(jnp.float32(IMAGE), jnp.ones((5, 6)), KEY)
    np.testing.assert_allclose(guided.quantiles, found.quantiles, rtol=1e-5)
    kept = mrf.patches(jnp.float32(IMAGE), None, KEY).patches
    np.testing.assert_array_equal(kept[4], np.float32(IMAGE)[::2, ::2].reshape(-1, CHANNELS))


@every_loss
@pytest.mark.parametrize("guide", [None, GUIDE, HALF], ids=["whole", "soft", "hard"])
def test_gradients_are_those_of_finite_differences(name, guide):
    with jax.enable_x64(True):
        loss = STYLE_LOSSES[name]
        target = loss.summarize(jnp.asarray(STYLE), None, KEY)
        guide = None if guide is None else jnp.asarray(guide)
        value = lambda image: loss.loss(image, guide, target)  # noqa: E731
        gradient = both(name, IMAGE, STYLE, guide)[1]
        # Not so far that the order of projections or a match changes.
        for _ in range(3):
            way = RNG.normal(size=IMAGE.shape) * 1e-7
            difference = value(IMAGE + way) - value(IMAGE - way)
            np.testing.assert_allclose(2 * jnp.sum(gradient * way), difference, rtol=1e-5)


@pytest.mark.parametrize("of", [0, 1])
def test_the_bures_distance_has_the_gradient_of_finite_differences_for_both_covariances(of):
    covariances = [np.cov(RNG.normal(size=(3, 9))) for _ in range(2)]
    way = RNG.normal(size=(3, 3)) * 1e-6
    way += way.T
    with jax.enable_x64(True):
        gradient = jax.grad(wasserstein.squared_bures, of)(*map(jnp.asarray, covariances))
        ends = []
        for sign in (1, -1):
            moved = [c + sign * way if i == of else c for i, c in enumerate(covariances)]
            ends.append(wasserstein.squared_bures(*map(jnp.asarray, moved)))
        np.testing.assert_allclose(2 * np.sum(gradient * way), ends[0] - ends[1], rtol=1e-6)


@pytest.mark.parametrize("smallest", [1e-6, 1e-3, 0.5, 1.0])
def test_the_orthogonal_factor_by_products_is_that_of_the_singular_value_decomposition(smallest):
    left, right = (np.linalg.qr(RNG.normal(size=(20, 20)))[0] for _ in range(2))
    matrix = left * np.geomspace(smallest, 1, 20) @ right
    with jax.enable_x64(True):
        for found in (
            wasserstein.by_products(jnp.asarray(matrix), min(smallest, 0.9)),
            wasserstein.by_decomposition(jnp.asarray(matrix)),
        ):
            np.testing.assert_allclose(found, left @ right, atol=1e-8)
    single = wasserstein.by_products(jnp.float32(matrix), min(smallest, 0.9))
    np.testing.assert_allclose(single.T @ single, np.eye(20), atol=1e-5)


@pytest.mark.parametrize("cores", [1, 64])
def test_the_bures_distance_is_the_same_on_few_cores_and_many(cores, monkeypatch):
    monkeypatch.setattr(wasserstein.machine, "cores", lambda: cores)
    one, other = (np.float32(each.reshape(-1, CHANNELS)) for each in (IMAGE, STYLE))
    given = [jnp.asarray(np.cov(each, rowvar=False), jnp.float32) for each in (one, other)]
    text = jax.jit(lambda *pair: wasserstein.squared_bures(*pair)).lower(*given).as_text()
    assert ("gesdd" in text) == (cores == 1)
    root = scipy.linalg.sqrtm(np.float64(given[1]))
    expected = np.trace(sum(given) - 2 * scipy.linalg.sqrtm(root @ given[0] @ root))
    np.testing.assert_allclose(wasserstein.squared_bures(*given), expected, rtol=1e-4)


@every_loss
def test_losses_and_gradients_are_zero_at_the_style_itself(name):
    style = np.float32(SAME_SIZE)
    scale = between(name, np.float32(IMAGE), style)
    value, gradient = both(name, style, style)
    assert 0 <= value < 1e-8 * scale
    np.testing.assert_allclose(gradient, 0, atol=1e-4 * scale / style.size)


@every_loss
def test_losses_are_zero_at_the_style_itself_within_one_hard_guide(name):
    image = np.float32(IMAGE)
    value = between(name, image, image, np.float32(HALF), np.float32(HALF))
    assert 0 <= value < 1e-6 * between(name, image, np.float32(SAME_SIZE))


@every_loss
def test_a_guide_of_ones_is_the_whole_picture(name):
    image, style = np.float32(IMAGE), np.float32(SAME_SIZE)
    whole = both(name, image, style)
    for level in (1, 0.5):
        guides = np.full((5, 6), level, np.float32), np.full((5, 6), level, np.float32)
        guided = both(name, image, style, *guides)
        np.testing.assert_allclose(guided[0], whole[0], rtol=1e-5)
        np.testing.assert_allclose(guided[1], whole[1], rtol=1e-3, atol=1e-6)


@every_loss
def test_what_is_outside_both_guides_plays_no_part(name):
    guide = np.float32(HALF)
    # The neighbours of a patch in the guide belong to it: only what is farther away may change.
    changed = np.float32(np.where((np.arange(6) < 4)[None, :, None], IMAGE, 100.0))
    style = np.float32(np.where((np.arange(6) < 4)[None, :, None], SAME_SIZE, -50.0))
    expected = between(name, np.float32(IMAGE), np.float32(SAME_SIZE), guide, guide)
    np.testing.assert_allclose(between(name, changed, style, guide, guide), expected, rtol=1e-5)
    gradient = both(name, changed, style, guide, guide)[1]
    np.testing.assert_array_equal(gradient[:, 4:], 0)
    assert np.any(gradient[:, :3] != 0)


@every_loss
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 6, CHANNELS)),
        np.full((5, 6, CHANNELS), 3.0),
        IMAGE * [1, 0, 1, 0],
        IMAGE[:1, :1],
        np.repeat(IMAGE[..., :1], CHANNELS, 2),
        IMAGE * 1e4,
        IMAGE * 1e-4,
    ],
    ids=["zero", "constant", "dead channels", "one position", "one rank", "large", "small"],
)
def test_degenerate_features_have_finite_losses_and_gradients(name, image):
    image, style = np.float32(image), np.float32(SAME_SIZE)
    for pair in ((image, style), (style, image), (image, image)):
        value, gradient = both(name, *pair)
        assert np.isfinite(value)
        assert value >= 0
        assert np.all(np.isfinite(gradient))
    # Of the image to itself. Less their means, rows of one rank have two directions alone.
    flat = name in ("nearest", "split") and np.linalg.matrix_rank(image.reshape(-1, CHANNELS)) == 1
    floor = 1e-12  # of the blur
    assert flat or value <= 1e-6 * (1 if name in RELATIVE else max(np.mean(image**2), floor))


@every_loss
def test_a_guide_of_zeros_pulls_nowhere(name):
    value, gradient = both(name, np.float32(IMAGE), np.float32(STYLE), np.float32(0 * GUIDE))
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, 0)


def test_regions_of_zeros_match_style_patches_of_zeros():
    image, style = np.zeros((3, 3, 2), np.float32), np.float32(RNG.uniform(1, 2, (12, 3, 2)))
    style[5:8] = 0
    assert between("mrf", image, style) == 0


@pytest.mark.parametrize("name", ["gram", "wasserstein", "sliced"])
def test_blends_are_means_by_share(name):
    loss = STYLE_LOSSES[name]
    one, two = (loss.summarize(jnp.float32(style), None, KEY) for style in (IMAGE, SAME_SIZE))
    blended = loss.blend([(one, 0.25), (two, 0.75)])
    expected = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, one, two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), blended, expected)


def test_slices_of_pictures_of_two_sizes_blend_at_the_levels_of_the_larger():
    few, many = (STYLE_LOSSES["sliced"].summarize(jnp.float32(s), None, KEY) for s in (STYLE, IMAGE))
    levels = (np.arange(30) + 0.5) / 30
    expected = [
        0.5 * np.interp(levels, (np.arange(28) + 0.5) / 28, a) + 0.5 * b
        for a, b in zip(few.quantiles, many.quantiles, strict=True)
    ]
    blended = sliced.blend_slices([(few, 0.5), (many, 0.5)])
    np.testing.assert_allclose(blended.quantiles, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(blended.directions, few.directions)


def test_patches_are_taken_from_all_styles():
    loss = STYLE_LOSSES["mrf"]
    targets = [(loss.summarize(jnp.float32(style), None, KEY), 0.5) for style in (IMAGE, STYLE)]
    for style in (IMAGE, STYLE):
        assert loss.loss(jnp.float32(style), None, loss.blend(targets)) == 0


@pytest.mark.parametrize("guide", [None, GUIDE], ids=["whole", "soft"])
def test_of_several_pictures_each_takes_its_share_of_the_photo_and_its_nearest_there(guide):
    photo, guides = (jnp.float32(IMAGE),), guide if guide is None else (jnp.float32(guide),)
    columns, match = jax.jit(nearest.columns), jax.jit(nearest.match)
    palettes = [columns((jnp.float32(each + 0.1),), None, KEY) for each in (STYLE, SAME_SIZE)]
    blends = {
        share: nearest.join_pictures([*zip(palettes, (share, 1 - share), strict=True)])
        for share in (1, 0.75, 0)
    }
    found = {share: match(blend, photo, guides) for share, blend in blends.items()}
    count = len(palettes[0].columns)
    np.testing.assert_array_equal(found[1], match(palettes[0], photo, guides))
    np.testing.assert_array_equal(found[0], match(palettes[1], photo, guides) + count)
    first = found[0.75].ravel() < count
    weights = weighted(IMAGE, guide)[1]
    assert abs(weights @ first - 0.75) < weights.max()


def test_large_styles_keep_a_bounded_number_of_hypercolumns_all_of_them_in_the_guide(monkeypatch):
    monkeypatch.setattr(nearest, "MAX_POSITIONS", 10)
    rows = [tuple(row) for row in np.float32(IMAGE / CHANNELS).reshape(-1, CHANNELS)]
    found = nearest.columns((jnp.float32(IMAGE),), None, KEY)
    places = [rows.index(tuple(column)) for column in np.asarray(found.columns)]
    assert np.all(np.diff(places) > 0)
    assert len(places) == 10
    other = nearest.columns((IMAGE,), None, jax.random.key(1)).columns
    assert places != [rows.index(tuple(column)) for column in other]
    guided = nearest.columns((jnp.float32(IMAGE),), (jnp.float32(HALF),), KEY)
    assert {rows.index(tuple(column)) % 6 for column in np.asarray(guided.columns)} == {0, 1, 2}


def test_no_position_is_drawn_beyond_the_guide_however_late_its_offset():
    left = jnp.zeros((64, 64)).at[:, :32].set(1)
    latest = jnp.full(2048, 1 - 2**-23)  # in the last of 2048 shares it rounds to their end
    assert jnp.all(left.ravel()[hypercolumns.drawn(left.shape, left, latest)] == 1)


@pytest.mark.parametrize("count", [7, 5000])
def test_positions_are_drawn_by_their_weights(count):
    starts = jax.random.uniform(KEY, (count,))
    found = np.bincount(np.asarray(hypercolumns.drawn((5, 6), jnp.asarray(GUIDE), starts)), minlength=30)
    expected = min(count, 30) * weighted(IMAGE, GUIDE)[1]
    assert found.sum() == min(count, 30)
    assert np.all(np.abs(found - expected) < 2)


def test_steps_draw_evenly_from_each_share_and_the_first_as_at_the_start():
    least, most = jnp.zeros(9), jnp.full(9, np.nextafter(np.float32(1), np.float32(0)))
    for starts in (least, most):  # float32 rounds the last share up
        at = np.asarray(hypercolumns.drawn((1000, 1000), None, starts))
        assert 0 <= at.min() <= at.max() < 10**6
    starts = jax.random.uniform(KEY, (20,))
    found = np.stack([hypercolumns.turned(starts, jnp.int32(step)) for step in range(100)])
    np.testing.assert_array_equal(found[0], starts)
    assert found.min() >= 0
    assert found.max() < 1
    # A tenth of the steps in each tenth, but for two.
    counts = np.stack([np.bincount(np.int64(10 * each), minlength=10) for each in found.T])
    assert np.all(np.abs(counts - 10) <= 2)
    late = hypercolumns.turned(starts, jnp.int32(10**6))
    np.testing.assert_allclose(late, np.modf(np.float64(starts) + 10**6 * (5**0.5 - 1) / 2)[0], atol=1e-3)


def test_hypercolumns_are_averages_and_interpolations_at_the_middle_layers_positions():
    small, fine, coarse = RNG.normal(size=(3, 2, 1)), RNG.normal(size=(7, 4, 2)), RNG.normal(size=(1, 1, 4))
    found = hypercolumns.hypercolumns([jnp.float32(each) for each in (fine, small, coarse)])
    np.testing.assert_allclose(found[..., :2], fine[:6].reshape(3, 2, 2, 2, 2).mean((1, 3)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found[..., 2:3], small, rtol=1e-5)
    np.testing.assert_allclose(found[..., 3:], np.broadcast_to(coarse / 4, (3, 2, 4)), rtol=1e-5)


def test_a_mixture_has_the_moments_of_all_its_pictures_by_their_shares():
    loss = STYLE_LOSSES["rot"]
    targets = [
        (loss.summarize(jnp.float32(each), None, KEY), share)
        for each, share in ((IMAGE, 0.25), (STYLE, 0.75))
    ]
    found = loss.blend(targets)
    rows = [
        np.concatenate([x / CHANNELS, x[:, :3] / 255], 1) for x in (weighted(IMAGE)[0], weighted(STYLE)[0])
    ]
    weights = np.concatenate([np.full(30, 0.25 / 30), np.full(28, 0.75 / 28)])
    np.testing.assert_allclose(found.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(found.mean, weights @ np.concatenate(rows), rtol=1e-5)
    covariance = np.cov(np.concatenate(rows).T, aweights=weights, ddof=0)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-4, atol=1e-7)


def test_neighbours_are_pairs_of_layers_in_the_networks_order():
    assert cross.neighbours(["b", "a", "c"]) == [("a", "b"), ("b", "c")]
    assert cross.neighbours(["a"]) == [("a",)]


def test_patches_outside_the_styles_guide_are_not_matched():
    guide = np.float32(HALF)
    loss = STYLE_LOSSES["mrf"]
    target = loss.summarize(jnp.float32(SAME_SIZE), jnp.asarray(guide), KEY)
    np.testing.assert_array_equal(target.used, guide.ravel() > 0.5)
    inside = mrf.Patches(target.patches[:, target.used], target.used[target.used])
    np.testing.assert_allclose(
        loss.loss(jnp.float32(IMAGE), None, target), loss.loss(jnp.float32(IMAGE), None, inside), rtol=1e-6
    )


def test_a_region_between_the_positions_of_the_patches_grid_is_not_missed(monkeypatch):
    monkeypatch.setattr(mrf, "MAX_PATCHES", 10)
    for place in [(1, 1), (3, 4), (4, 5)]:
        guide = np.zeros(IMAGE.shape[:2], np.float32)
        guide[place] = 1
        found = mrf.patches(jnp.float32(IMAGE), jnp.asarray(guide), KEY)
        assert found.used.sum() == 1
        np.testing.assert_array_equal(found.patches[4][found.used][0], np.float32(IMAGE)[place])


@every_loss
def test_losses_are_mapped_over_images_and_do_not_grow_with_the_picture(name):
    loss = STYLE_LOSSES[name]
    target = loss.summarize(jnp.float32(STYLE), None, KEY)
    images = jnp.stack([jnp.float32(IMAGE), jnp.float32(SAME_SIZE)])
    apart = [loss.loss(image, None, target) for image in images]
    mapped = jax.vmap(lambda image: loss.loss(image, None, target))(images)
    np.testing.assert_allclose(mapped, apart, rtol=1e-5)
    # Each position 4 times, and with it each patch's neighbours: roughly the same distribution.
    larger = loss.loss(jnp.repeat(jnp.repeat(images[0], 2, 0), 2, 1), None, target)
    np.testing.assert_allclose(larger, apart[0], rtol=0.3 if name == "mrf" else 0.1)


def test_vmapped_bures_distances_of_several_layers_end_and_are_those_of_single_ones():
    """Batches of LAPACK's kernels, of as many layers at once as XLA has threads, wait for each other for ever."""
    rng = np.random.default_rng(0)

    def covariance(lanes, channels):
        factors = rng.normal(size=(lanes, channels, channels)).astype(np.float32)
        return jnp.asarray(factors @ factors.transpose(0, 2, 1) / channels)

    firsts = [covariance(3, 128) for _ in range(5)]
    seconds = [covariance(1, 128)[0] for _ in firsts]
    total = jax.value_and_grad(
        lambda layers: sum(map(wasserstein.squared_bures, layers, seconds)),
    )
    many, one = jax.jit(jax.vmap(total)), jax.jit(total)
    for _ in range(3):
        totals, gradients = jax.block_until_ready(many(firsts))
    for lane in range(3):
        alone, slopes = one([each[lane] for each in firsts])
        np.testing.assert_allclose(totals[lane], alone, rtol=1e-6)
        for found, expected in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(found[lane], expected, atol=1e-5 * np.abs(expected).max())


def products(jaxpr):
    """The precisions of all products in a program, whatever it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize(
    "name", sorted({*STYLE_LOSSES} - {"mrf", "nearest", "split"})
)  # their products only choose
def test_products_of_statistics_have_all_bits_on_a_gpu_too(name):
    pictures = [jnp.float32(each) for each in (IMAGE, STYLE, GUIDE)]
    found = [*products(jax.make_jaxpr(both, static_argnums=0)(name, *pictures).jaxpr)]
    assert found
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
