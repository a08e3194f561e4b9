"""The total loss and its gradient against finite differences, and the study's printed values."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstyle
from jaxstyle import training
from jaxstyle.images import pictures, start
from jaxstyle.losses import base, objective, recipes
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.losses.terms import TOTALS
from jaxstyle.network import convolution, vgg, weights
from jaxstyle.optimizers import catalogue

evaluate = jax.jit(objective.evaluate, static_argnums=0)


def terms(form, problem, image):
    """The weighted terms of the loss, from the first layer to the last."""
    maps, found, known = image, [], {base.IMAGE: image}
    for name in problem.network.filters:
        earlier = {member: known[member] for member in problem.style_groups.get(name, ())[:-1]}
        maps, own = objective.layer_terms(form, problem, name, maps, earlier)
        known[name] = maps
        found.append(own)
    content, style = map(sum, zip(*found, strict=True))
    return content, style, problem.tv_weight * form.variation(image)


@jax.jit(static_argnums=0)
def of_terms(form, problem, image):
    """The total and its gradient, by JAX alone."""
    return jax.value_and_grad(lambda image: sum(terms(form, problem, image)))(image)


@pytest.mark.parametrize("name", objective.FORMS)
def test_gradients_agree_with_finite_differences_in_float64(name, random_network, content, style):
    form = objective.FORMS[name]
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_network)
        problem = jaxstyle.pose(
            form,
            vgg.prepare(double, "block2_conv1", "direct"),
            np.float64(content[:12, :10]),
            [objective.Style(np.float64(style))],
            recipes.Weighting({"block1_conv2": 1.0}, {"block1_conv1": 1.0, "block2_conv1": 2.0}, 0.01),
        )
        rng = np.random.default_rng(3)
        image = jnp.asarray(rng.uniform(0, 255, (12, 10, 3)))
        assert image.dtype == jnp.float64
        direction = jnp.asarray(rng.normal(size=image.shape))
        total = jax.jit(lambda x: sum(terms(form, problem, x)))
        slope = jnp.vdot(evaluate(form, problem, image).gradient, direction)
        h = 1e-6
        difference = (total(image + h * direction) - total(image - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", objective.FORMS)
def test_the_gradient_by_layers_is_that_of_the_terms(name, remat, make_problem, content):
    form = objective.FORMS[name]
    problem, image = make_problem(form), jnp.asarray(content[::-1])
    expected = of_terms(form, problem, image)
    found = convolution.jit(functools.partial(objective.evaluate, form._replace(remat=remat)))(problem, image)
    np.testing.assert_allclose(found.total, expected[0], rtol=1e-6)
    np.testing.assert_allclose(found.gradient, expected[1], atol=1e-6 * np.abs(expected[1]).max())


@pytest.mark.parametrize("name", objective.FORMS)
def test_the_total_is_the_sum_of_its_terms_and_vanishes_at_the_targets(name, make_problem, content):
    form = objective.FORMS[name]
    evaluation = evaluate(form, make_problem(form), jnp.asarray(content))
    np.testing.assert_allclose(evaluation.total, sum(evaluation.terms), rtol=1e-6)
    assert evaluation.terms.content < 1e-6 * evaluation.total
    assert evaluation.terms.style > 0
    assert jnp.isfinite(evaluation.gradient).all()


@pytest.mark.parametrize("remat", [False, True])
def test_a_product_of_content_and_style_has_the_gradient_of_a_product(remat, make_problem, content):
    form = objective.GATYS._replace(remat=remat)
    problem, image = make_problem(form), jnp.asarray(content[::-1])

    def product(image):
        content, style, tv = terms(form, problem, image)
        return content * style + tv

    total, gradient = jax.jit(jax.value_and_grad(product))(image)
    found = evaluate(form._replace(total=TOTALS["product"]), problem, image)
    np.testing.assert_allclose(found.total, total, rtol=1e-6)
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-5 * np.abs(gradient).max())
    np.testing.assert_array_equal(found.terms, evaluate(form, problem, image).terms)


def means(arrays, guides, target):
    """Of the image and two layers, the squares of their means against those of a style less the photo's."""
    return sum(
        jnp.sum((jnp.mean(maps, (0, 1)) - (mean - photo)) ** 2)
        for maps, mean, photo in zip(arrays, *target, strict=True)
    )


TOGETHER = base.StyleLoss(
    lambda arrays, guides, key: [jnp.mean(maps, (0, 1)) for maps in arrays],
    base.mean_by_share,
    means,
    groups=base.Groups(lambda layers: [(base.IMAGE, *layers)], tuple),
    choose=lambda target, photo, guides: [jnp.mean(maps, (0, 1)) for maps in photo],
    turned=lambda turns: jax.tree.map(lambda *each: sum(each) / 4, *turns),
)


@pytest.mark.parametrize("remat", [False, True])
def test_a_style_loss_may_see_the_image_and_all_layers_at_once(remat, make_problem, content, style):
    form = objective.GATYS._replace(style=TOGETHER, remat=remat)
    problem, image = make_problem(form), jnp.asarray(content[::-1])
    expected = of_terms(form, problem, image)
    found = convolution.jit(functools.partial(objective.evaluate, form))(problem, image)
    np.testing.assert_allclose(found.total, expected[0], rtol=1e-6)
    np.testing.assert_allclose(found.gradient, expected[1], atol=1e-6 * np.abs(expected[1]).max())
    layers = ["block1_conv1", "block3_conv1"]
    features = jax.jit(lambda picture: [picture, *vgg.features(problem.network, picture, layers).values()])
    seen = map(features, (image, *(np.rot90(style, turn) for turn in range(4)), content))
    own, *turns, photo = ([np.mean(maps, (0, 1)) for maps in arrays] for arrays in seen)
    away = [a - (np.mean(t, 0) - b) for a, b, *t in zip(own, photo, *turns, strict=True)]
    # A group weighs the mean of its layers' weights, 10 and 5.
    np.testing.assert_allclose(found.terms.style, 7.5 * sum(np.sum(each**2) for each in away), rtol=1e-4)


def test_what_an_image_chooses_of_a_style_is_taken_in_place_of_what_the_photo_chose(make_problem, content):
    form = objective.GATYS._replace(style=STYLE_LOSSES["nearest"])
    problem, other = make_problem(form), jnp.asarray(content[::-1])
    layers = ["block1_conv1", "block3_conv1"]
    choose = jax.jit(functools.partial(objective.choices, form, layers, problem.network))
    evaluate = convolution.jit(functools.partial(objective.evaluate, form))

    def style_term(problem):
        return evaluate(problem, jnp.asarray(content)).terms.style

    own = style_term(problem)
    assert style_term(objective.taking(problem, ())) == own
    assert style_term(objective.taking(problem, choose(content, problem.regions))) == own
    # What suits the other side of the photo suits this one less.
    assert style_term(objective.taking(problem, choose(other, problem.regions))) > 1.01 * own


def test_a_picture_has_no_style_loss_against_itself(random_network, content):
    form = objective.GATYS
    problem = jaxstyle.pose(
        form,
        vgg.prepare(random_network, "block3_conv1"),
        content,
        [objective.Style(content)],
        recipes.Weighting({"block2_conv1": 1.0}, {"block3_conv1": 1.0}, 0.0),
    )
    away = evaluate(form, problem, jnp.asarray(content + 1)).total
    assert evaluate(form, problem, jnp.asarray(content)).total < 1e-6 * away


def test_styles_are_blended_by_their_shares(random_network, content, style):
    network = vgg.prepare(random_network, "block1_conv1")
    weighting = recipes.Weighting({"block1_conv1": 1.0}, {"block1_conv1": 1.0}, 0.0)

    def target(*styles):
        (region,) = jaxstyle.pose(objective.GATYS, network, content, styles, weighting).regions
        return region.targets["block1_conv1"]

    targets = [
        target(objective.Style(content)),
        target(objective.Style(style)),
        target(objective.Style(content, 3.0), objective.Style(style)),
    ]
    np.testing.assert_allclose(targets[2], 0.75 * targets[0] + 0.25 * targets[1], rtol=1e-5)


@pytest.fixture(scope="module")
def adadelta(study):
    """The study's optimizer on its problem: its step, its first state, and what was printed of that."""
    pytest.importorskip("onnx", reason="the extra keras-weights is not installed")
    published = json.loads((study / "published.json").read_text())
    content, style = (
        pictures.read(study / published[name], (300, 300), "nearest") for name in ("content", "style")
    )
    weighting = recipes.Weighting(
        {"block4_conv2": published["weights"]["content"]},
        {f"block{b}_conv1": published["weights"]["style"] for b in range(1, 6)},
        published["weights"]["tv"],
    )
    network = vgg.prepare(weights.load("vgg16-keras").network, "block5_conv1")
    problem = jaxstyle.pose(objective.IVANOV2017, network, content, [objective.Style(style)], weighting)
    image = start.image("ivanov2017", 0, jnp.asarray(content), [])
    # Of 300 pixels and 64 channels, a step that is compiled as commands do it takes a third of the time.
    optimized = {
        "xla_backend_optimization_level": 3,
        "xla_cpu_use_fusion_emitters": True,
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    spec = catalogue.parse("adadelta-tf1gpu", loss="ivanov2017")
    program = training.program(objective.IVANOV2017, spec.name, spec.static)
    step = functools.partial(jax.jit(program.step, compiler_options=optimized), problem)
    seen, _ = step(program.unseen(image, jax.tree.map(jnp.float32, dict(spec.traced))))
    return step, program.settle(seen), published["iteration_0"]


def test_the_studys_iteration_0_is_what_it_printed(adadelta):
    _, state, printed = adadelta
    found = training.metrics(state)
    np.testing.assert_allclose(found.content, printed["content"], rtol=1e-3)
    np.testing.assert_allclose(found.style, printed["style"], rtol=1e-3)
    np.testing.assert_allclose(found.tv, printed["tv"], rtol=5e-3)
    np.testing.assert_allclose(found.total, printed["total"], rtol=1e-3)


def test_the_studys_adadelta_was_tensorflows_gpu_kernel(adadelta):
    """Iteration 20 as printed: content 93 730, style 4.35895e6, TV 74 433, total 4.52711e6."""
    step, state, _ = adadelta
    for _ in range(20):
        state, metrics = step(state)
    np.testing.assert_allclose(metrics.total, 4.52711e6, rtol=5e-3)
    np.testing.assert_allclose(metrics.content, 93_730, rtol=5e-3)
    np.testing.assert_allclose(metrics.style, 4.35895e6, rtol=5e-3)
    np.testing.assert_allclose(metrics.tv, 74_433, rtol=5e-3)


def half(shape, axis=1):
    """A mask of the first half of a picture, along an axis."""
    mask = np.zeros(shape[:2], np.float32)
    mask[(slice(None),) * axis + (slice(0, shape[axis] // 2),)] = 1
    return mask


@pytest.mark.parametrize("name", STYLE_LOSSES)
def test_a_style_is_wanted_in_its_region_alone(name, random_network, content, style):
    form = objective.GATYS._replace(style=STYLE_LOSSES[name])
    network = vgg.prepare(random_network, "block1_conv1")
    weighting = recipes.Weighting({"block1_conv1": 0.0}, {"block1_conv1": 1.0}, 0.0)
    styles = [objective.Style(style, 1.0, half(content.shape))]
    problem = jaxstyle.pose(form, network, content, styles, weighting)
    gradient = np.asarray(evaluate(form, problem, jnp.asarray(content)).gradient)
    middle = content.shape[1] // 2
    reach = {"mrf": 2}.get(name, 1)  # of the convolution, and of a patch
    assert np.abs(gradient[:, : middle - reach]).mean() > 0
    np.testing.assert_array_equal(gradient[:, middle + reach :], 0)


def test_masks_that_make_up_the_whole_weigh_as_much_as_none(random_network, content, style):
    network = vgg.prepare(random_network, "block1_conv1")
    weighting = recipes.Weighting({"block1_conv1": 0.0}, {"block1_conv1": 1.0}, 0.0)
    left = half(content.shape)
    styles = [objective.Style(style, 1.0, mask) for mask in (left, 1 - left)]
    regions = jaxstyle.pose(objective.GATYS, network, content, styles, weighting).regions
    np.testing.assert_allclose(sum(region.weight for region in regions), 1, rtol=1e-6)


def test_a_masked_style_picture_gives_the_style_of_the_part_that_is_not_masked(random_network, style):
    form, weighting = objective.GATYS, recipes.Weighting({"block1_conv1": 0.0}, {"block1_conv1": 1.0}, 0.0)
    network = vgg.prepare(random_network, "block1_conv1", padding="edge")
    doubled = np.concatenate([style, 255 - style], 1)
    whole, part = (
        jaxstyle.pose(form, network, style, [given], weighting).regions[0].targets["block1_conv1"]
        for given in (objective.Style(style), objective.Style(doubled, 1.0, None, half(doubled.shape)))
    )
    np.testing.assert_allclose(part, whole, rtol=0.05, atol=0.02 * np.abs(whole).max())  # but for the seam


@pytest.mark.parametrize(
    "edge", [(slice(-7, None),), (slice(None), slice(-5, None))], ids=["rows", "columns"]
)
def test_a_part_of_a_style_picture_that_deep_layers_have_no_position_for_is_in_the_last_they_have(
    edge, random_network, style
):
    """135 = 8 · 16 + 7 rows and 21 = 16 + 5 columns."""
    picture = jnp.asarray(jax.image.resize(style, (135, 21, 3), "linear"))
    network = vgg.prepare(random_network, "block5_conv1")
    weighting = recipes.Weighting({"block1_conv1": 0.0}, {"block5_conv1": 1.0}, 0.0)
    mask = np.zeros((135, 21), np.float32)
    mask[edge] = 1
    wanted = [objective.Style(picture, style_mask=mask)]
    region, *_ = jaxstyle.pose(objective.GATYS, network, picture, wanted, weighting).regions
    assert np.linalg.norm(region.targets["block5_conv1"]) > 0


@pytest.mark.parametrize("name", ["gram", "rot"])
def test_bytes_and_booleans_are_the_numbers_that_they_stand_for(name, random_network, content, style):
    form = objective.GATYS._replace(style=STYLE_LOSSES[name])
    network = vgg.prepare(random_network, "block3_conv1")
    weighting = recipes.Weighting({"block2_conv1": 1.0}, {"block1_conv1": 1.0, "block3_conv1": 1.0}, 0.0)
    mask = half(content.shape)
    mask[:, :3] = 0  # and not in whole windows
    photo, picture = content.astype(np.uint8), style.astype(np.uint8)
    problems = [
        jaxstyle.pose(form, network, one, [objective.Style(other, 1.0, guide)], weighting)
        for one, other, guide in (
            (photo, picture, mask > 0),
            (photo.astype(np.float32), picture.astype(np.float32), mask),
        )
    ]
    given, wanted = (evaluate(form, each, jnp.float32(photo)) for each in problems)
    assert given.total == wanted.total
    np.testing.assert_array_equal(given.gradient, wanted.gradient)


def test_a_mask_of_16_bits_has_more_positions_than_its_largest_number(random_network, style):
    form, weighting = objective.GATYS, recipes.Weighting({}, {"block1_conv1": 1.0}, 0.0)
    network = vgg.prepare(random_network, "block1_conv1")
    picture = np.tile(style, (12, 12, 1))
    mask = np.ones(picture.shape[:2], np.float16)
    assert mask.size > float(np.finfo(np.float16).max)
    found, wanted = (
        jaxstyle.pose(form, network, style, [objective.Style(picture, 1.0, None, each)], weighting).regions[0]
        for each in (mask, None)
    )
    np.testing.assert_allclose(found.targets["block1_conv1"], wanted.targets["block1_conv1"], rtol=1e-4)


def test_a_content_mask_of_nothing_asks_for_no_content(random_network, content, style):
    network = vgg.prepare(random_network, "block1_conv1")
    weighting = recipes.Weighting({"block1_conv1": 1.0}, {"block1_conv1": 0.0}, 0.0)
    nothing = np.zeros(content.shape[:2], np.float32)
    problem = jaxstyle.pose(
        objective.GATYS, network, content, [objective.Style(style)], weighting, content_mask=nothing
    )
    assert evaluate(objective.GATYS, problem, jnp.asarray(content / 2)).total == 0


def test_the_content_counts_where_its_mask_says(random_network, content, style):
    network = vgg.prepare(random_network, "block2_conv1")
    weighting = recipes.Weighting({"block2_conv1": 1.0}, {"block1_conv1": 0.0}, 0.0)
    posed = [
        jaxstyle.pose(objective.GATYS, network, content, [objective.Style(style)], weighting, mask)
        for mask in (None, np.ones(content.shape[:2], np.float32), half(content.shape))
    ]
    image = jnp.asarray(content[::-1])
    unmasked, ones, left = (evaluate(objective.GATYS, problem, image) for problem in posed)
    np.testing.assert_allclose(ones.total, unmasked.total, rtol=1e-6)
    np.testing.assert_array_equal(left.gradient[:, content.shape[1] // 2 + 4 :], 0)
    assert jnp.abs(left.gradient).max() > 0
