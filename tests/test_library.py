"""The library's face: its names, and the lines that the README shows, as they stand there, on small pictures."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxstyle

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", CODE, ids=["three lines", "six lines"])
def test_the_readmes_lines_make_a_picture(narrow_weights, tmp_path, monkeypatch, code):
    rng = np.random.default_rng(0)
    for name in ("me.jpg", "painting.jpg"):
        jaxstyle.write_picture(tmp_path / name, rng.uniform(0, 255, (24, 32, 3)))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code.replace("400", "32").replace("steps=100", "steps=3").replace("steps=200", "steps=3"), scope)
    assert scope["image"].shape == (24, 32, 3)
    assert scope["metrics"].total.shape == (4,)
    assert scope["metrics"].total[-1] < scope["metrics"].total[0]


def test_the_page_of_the_library_runs_from_top_to_bottom(narrow_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", LIBRARY, re.S):
        small = code.replace("400", "40").replace("steps=200", "steps=2").replace(", 512)", ", 16)")
        exec(small, scope)
    assert jaxstyle.read_picture("photo.png").shape == scope["image"].shape
    assert scope["metrics"].total.shape == (3,)
    assert "adamant" in capsys.readouterr().out


@pytest.mark.parametrize("name", jaxstyle.EXPORTS)
def test_the_page_of_the_library_has_every_name(name):
    assert re.search(rf"`{name}\b", LIBRARY) or re.search(rf"jaxstyle\.{name}\b", LIBRARY)


@pytest.mark.parametrize("name", jaxstyle.EXPORTS)
def test_every_exported_name_is_there_and_says_what_it_is(name):
    value = getattr(jaxstyle, name)
    # A tuple with names has a text of its own, which begins with its name.
    assert isinstance(value, dict) or not value.__doc__.startswith(f"{name}(")


def test_what_is_not_exported_is_named():
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = jaxstyle.magic
    assert set(jaxstyle.EXPORTS) <= set(dir(jaxstyle))


def test_importing_the_library_imports_nothing_else():
    code = "import jaxstyle, sys; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_command_begins_without_what_only_some_of_its_runs_need():
    few = "{'jaxopt', 'matplotlib', 'scipy.ndimage', 'scipy.optimize', 'scipy.stats', 'tensorboardX'}"
    code = f"import sys, experiments.stylize; print({few} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 4), (24, 20, 1), (1, 24, 20, 3)])
def test_what_is_no_picture_is_told_by_its_shape(narrow_weights, shape):
    picture, other = np.zeros((24, 20, 3), np.float32), np.zeros(shape, np.float32)
    for given in ((other, picture), (picture, other)):
        with pytest.raises(jaxstyle.UserError, match=re.escape(f"[height, width, 3], not {[*shape]}")):
            jaxstyle.stylize(*given)


@pytest.mark.parametrize("other", ["me.jpg", Image.new("RGB", (20, 24)), [[[0.0, 0.0, 0.0]]]])
def test_what_is_no_array_is_told_how_to_be_one(narrow_weights, other):
    picture = np.zeros((24, 20, 3), np.float32)
    for given in ((other, picture), (picture, other)):
        with pytest.raises(
            jaxstyle.UserError, match=f"not of type {type(other).__name__}; read_picture makes"
        ):
            jaxstyle.stylize(*given)


@pytest.mark.parametrize("layer", ["block9_conv1", "relu3_1", "conv"])
def test_a_layer_that_there_is_not_is_told_by_its_name(narrow_weights, layer):
    picture = np.zeros((32, 32, 3), np.float32)
    for layers in ({"style_layers": {layer: 1.0}}, {"content_layers": {layer: 1.0}}):
        with pytest.raises(KeyError, match=layer):
            jaxstyle.stylize(picture, picture, recipe=jaxstyle.RECIPES["gatys"]._replace(**layers))


@pytest.mark.parametrize("name", ["content_mask", "style_mask"])
@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.full((24, 20), 255, np.uint8), "has values from 255 to 255; a mask is in [0, 1]"),
        (np.full((24, 20), -0.5), "has values from -0.5 to -0.5; a mask is in [0, 1]"),
        (np.full((24, 20), np.nan), "has values from nan to nan"),
        (np.ones((24, 20, 3)), "is [24, 20, 3]; its picture needs one of [24, 20]"),
        (np.ones((20, 24), bool), "is [20, 24]; its picture needs one of [24, 20]"),
    ],
)
def test_a_mask_that_is_none_is_refused_by_its_name(random_network, name, mask, told):
    picture = np.zeros((24, 20, 3), np.float32)
    recipe = jaxstyle.Recipe({}, {"block1_conv1": 1.0}, None, 1.0, 0.0)
    network = jaxstyle.prepare_network(random_network, "block1_conv1")
    styles = [jaxstyle.Style(picture, **{name: mask})]
    with pytest.raises(jaxstyle.UserError, match=re.escape(f"{name}: {told}")):
        jaxstyle.pose(
            jaxstyle.FORMS["gatys"], network, picture, styles, jaxstyle.weighting(recipe, picture.shape)
        )


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.ones((25, 21)), "is [25, 21]; its picture needs one of [24, 20]"),
        (np.full((24, 20), -1.0), "has values from -1 to -1; a mask is in [0, inf]"),
    ],
    ids=["another size, the same at a layer", "negative"],
)
def test_a_mask_of_the_content_is_of_the_photos_size_and_not_negative(random_network, mask, told):
    picture = np.zeros((24, 20, 3), np.float32)
    recipe = jaxstyle.Recipe({"block2_conv1": 1.0}, {"block1_conv1": 1.0}, None, 1.0, 0.0)
    network = jaxstyle.prepare_network(random_network, "block2_conv1")
    given = network, picture, [jaxstyle.Style(picture)], jaxstyle.weighting(recipe, picture.shape)
    with pytest.raises(jaxstyle.UserError, match=re.escape(f"content_mask: {told}")):
        jaxstyle.pose(jaxstyle.FORMS["gatys"], *given, mask)


def test_a_texture_is_made_without_content_and_of_bytes(narrow_weights):
    rng = np.random.default_rng(0)
    start, style = rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    recipe = jaxstyle.Recipe({}, {"block2_conv1": 1.0}, None, 1.0, 0.0)
    image, metrics = jaxstyle.stylize(start, style, steps=3, recipe=recipe)
    assert image.dtype == np.float32
    assert metrics.content.tolist() == [0, 0, 0, 0]
    assert metrics.total[-1] < metrics.total[0]


def test_pictures_of_which_a_layer_has_nothing_are_refused(narrow_weights):
    with pytest.raises(jaxstyle.UserError, match="block5_conv1 shrinks a picture of 20x8 to nothing"):
        jaxstyle.stylize(np.zeros((32, 32, 3), np.float32), np.zeros((8, 20, 3), np.float32))


@pytest.mark.parametrize(
    ("content", "style"),
    [((8, 20), (32, 32)), ((32, 32), (8, 20))],
    ids=["a small photo", "a small style picture"],
)
def test_a_problem_of_pictures_of_which_a_layer_has_nothing_is_refused(random_network, content, style):
    content, style = (np.zeros((*sides, 3), np.float32) for sides in (content, style))
    network = jaxstyle.prepare_network(random_network, "block5_conv1")
    recipe = jaxstyle.Recipe({"block1_conv1": 1.0}, {"block5_conv1": 1.0}, None, 1.0, 0.0)
    weighting = jaxstyle.weighting(recipe, content.shape)
    with pytest.raises(jaxstyle.UserError, match="block5_conv1 shrinks a picture of 20x8 to nothing"):
        jaxstyle.pose(jaxstyle.FORMS["gatys"], network, content, [jaxstyle.Style(style)], weighting)


def test_a_style_picture_needs_no_pixels_for_layers_of_the_content(random_network):
    content, style = (np.zeros((*sides, 3), np.float32) for sides in ((32, 32), (8, 20)))
    network = jaxstyle.prepare_network(random_network, "block5_conv1")
    recipe = jaxstyle.Recipe({"block5_conv1": 1.0}, {"block1_conv1": 1.0}, None, 1.0, 0.0)
    weighting = jaxstyle.weighting(recipe, content.shape)
    problem = jaxstyle.pose(
        jaxstyle.FORMS["gatys"], network, content, [jaxstyle.Style(style)], weighting=weighting
    )
    assert np.isfinite(jaxstyle.evaluate(jaxstyle.FORMS["gatys"], problem, content).total)


def test_negative_steps_are_refused(narrow_weights):
    picture = np.zeros((32, 32, 3), np.float32)
    with pytest.raises(jaxstyle.UserError, match="steps=-1: must be 0 or more"):
        jaxstyle.stylize(picture, picture, steps=-1)


def test_an_optimizer_that_draws_random_numbers_is_refused(narrow_weights):
    picture = np.zeros((32, 32, 3), np.float32)
    with pytest.raises(jaxstyle.UserError, match="--optimizer=noisy_sgd: draws random numbers"):
        jaxstyle.stylize(picture, picture, optimizer="noisy_sgd:learning_rate=1")


# Drawn, and from a file.
@pytest.mark.parametrize("sample", ["night", "portrait"])
@pytest.mark.parametrize("size", [0, -5, (0, 5), (5,), 400.0])
def test_a_size_below_one_pixel_is_refused(size, sample):
    with pytest.raises(jaxstyle.UserError, match=re.escape(f"{size} pixels are no size")):
        jaxstyle.read_picture(f"sample:{sample}", size)


@pytest.mark.parametrize("number", [np.int64, np.int8])
@pytest.mark.parametrize(("sample", "height"), [("night", 18), ("portrait", 24)])
def test_a_size_may_be_numpys(sample, height, number):
    assert jaxstyle.read_picture(f"sample:{sample}", number(24)).shape == (height, 24, 3)


def test_a_padding_or_pooling_that_there_is_not_is_refused(random_network):
    for choice in ({"padding": "reflect"}, {"pooling": "min"}):
        with pytest.raises(ValueError, match="there is not"):
            jaxstyle.prepare_network(random_network, "block1_conv1", **choice)


def test_a_picture_wider_than_its_format_or_of_other_bits_is_refused(tmp_path):
    with pytest.raises(jaxstyle.UserError, match=r"wide\.jpg'?: cannot be written"):
        jaxstyle.write_picture(tmp_path / "wide.jpg", np.zeros((1, 70_000, 3)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="bits are 8 or 16, not 12"):
        jaxstyle.write_picture(tmp_path / "deep.png", np.zeros((1, 1, 3)), bits=12)
