"""The total loss and its gradient against finite differences, and the study's printed values."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle import convolution, objective, optimizers, pictures, start, training, vgg, weights


@pytest.mark.parametrize("name", objective.FORMS)
def test_gradients_agree_with_finite_differences_in_float64(name, random_network, content, style):
    form = objective.FORMS[name]
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_network)
        problem = objective.pose(
            form,
            vgg.prepare(double, "block2_conv1", "direct"),
            np.float64(content[:12, :10]),
            [(np.float64(style), 1.0)],
            objective.Weighting({"block1_conv2": 1.0}, {"block1_conv1": 1.0, "block2_conv1": 2.0}, 0.01),
        )
        rng = np.random.default_rng(3)
        image = jnp.asarray(rng.uniform(0, 255, (12, 10, 3)))
        assert image.dtype == jnp.float64
        direction = jnp.asarray(rng.normal(size=image.shape))
        total = jax.jit(lambda x: sum(objective.terms(form, problem, x)))
        slope = jnp.vdot(objective.evaluate(form, problem, image).gradient, direction)
        h = 1e-6
        difference = (total(image + h * direction) - total(image - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", objective.FORMS)
def test_the_gradient_by_layers_is_that_of_the_terms(name, remat, make_problem, content):
    form = objective.FORMS[name]
    problem, image = make_problem(form), jnp.asarray(content[::-1])
    expected = jax.value_and_grad(lambda image: sum(objective.terms(form, problem, image)))(image)
    found = convolution.jit(functools.partial(objective.evaluate, form._replace(remat=remat)))(problem, image)
    np.testing.assert_allclose(found.total, expected[0], rtol=1e-6)
    np.testing.assert_allclose(found.gradient, expected[1], atol=1e-6 * np.abs(expected[1]).max())


@pytest.mark.parametrize("name", objective.FORMS)
def test_the_total_is_the_sum_of_its_terms_and_vanishes_at_the_targets(name, make_problem, content):
    form = objective.FORMS[name]
    evaluation = objective.evaluate(form, make_problem(form), jnp.asarray(content))
    np.testing.assert_allclose(evaluation.total, sum(evaluation.terms), rtol=1e-6)
    assert evaluation.terms.content < 1e-6 * evaluation.total
    assert evaluation.terms.style > 0
    assert jnp.isfinite(evaluation.gradient).all()


def test_a_picture_has_no_style_loss_against_itself(random_network, content):
    form = objective.GATYS
    problem = objective.pose(
        form,
        vgg.prepare(random_network, "block3_conv1"),
        content,
        [(content, 1.0)],
        objective.Weighting({"block2_conv1": 1.0}, {"block3_conv1": 1.0}, 0.0),
    )
    away = objective.evaluate(form, problem, jnp.asarray(content + 1)).total
    assert objective.evaluate(form, problem, jnp.asarray(content)).total < 1e-6 * away


def test_styles_are_blended_by_their_shares(random_network, content, style):
    network = vgg.prepare(random_network, "block1_conv1")
    targets = [
        objective.style_targets(objective.GATYS, network, styles, ["block1_conv1"])["block1_conv1"]
        for styles in ([(content, 1.0)], [(style, 1.0)], [(content, 3.0), (style, 1.0)])
    ]
    np.testing.assert_allclose(targets[2], 0.75 * targets[0] + 0.25 * targets[1], rtol=1e-5)


@pytest.fixture(scope="module")
def study_problem(study):
    pytest.importorskip("onnx", reason="the extra keras-weights is not installed")
    published = json.loads((study / "published.json").read_text())
    content, style = (
        pictures.read(study / published[name], (300, 300), "nearest") for name in ("content", "style")
    )
    problem = objective.pose(
        objective.IVANOV2017,
        vgg.prepare(weights.load("vgg16-keras").network, "block5_conv1"),
        content,
        [(style, 1.0)],
        objective.Weighting(
            {"block4_conv2": published["weights"]["content"]},
            {f"block{b}_conv1": published["weights"]["style"] for b in range(1, 6)},
            published["weights"]["tv"],
        ),
    )
    return problem, start.image("ivanov2017", 0, jnp.asarray(content)), published["iteration_0"]


def test_the_studys_iteration_0_is_what_it_printed(study_problem):
    problem, image, printed = study_problem
    found = jax.jit(lambda p, x: objective.terms(objective.IVANOV2017, p, x))(problem, image)
    np.testing.assert_allclose(found.content, printed["content"], rtol=1e-3)
    np.testing.assert_allclose(found.style, printed["style"], rtol=1e-3)
    np.testing.assert_allclose(found.tv, printed["tv"], rtol=5e-3)
    np.testing.assert_allclose(sum(found), printed["total"], rtol=1e-3)


def test_the_studys_adadelta_was_tensorflows_gpu_kernel(study_problem):
    """Iteration 20 as printed: content 93 730, style 4.35895e6, TV 74 433, total 4.52711e6."""
    problem, image, _ = study_problem
    spec = optimizers.parse("adadelta-tf1gpu", loss="ivanov2017")
    program = training.program(objective.IVANOV2017, spec.name, spec.static)
    state = jax.jit(program.init)(problem, image, jax.tree.map(jnp.float32, dict(spec.traced)))
    step = jax.jit(program.step, donate_argnums=1)
    for _ in range(20):
        state, metrics = step(problem, state)
    np.testing.assert_allclose(metrics.total, 4.52711e6, rtol=5e-3)
    np.testing.assert_allclose(metrics.content, 93_730, rtol=5e-3)
    np.testing.assert_allclose(metrics.style, 4.35895e6, rtol=5e-3)
    np.testing.assert_allclose(metrics.tv, 74_433, rtol=5e-3)
