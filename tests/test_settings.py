"""Settings: flags and the record of a run are two spellings of one frozen value."""

import dataclasses
import pathlib

import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments import inputs, settings
from experiments.settings import Settings
from jaxstyle.errors import UserError
from jaxstyle.losses import recipes

RECORDS = sorted(pathlib.Path(__file__).parent.glob("records/*.flags"))
assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_of_earlier_versions_are_read_and_written_byte_for_byte(path):
    text = path.read_text(encoding="utf-8")
    assert settings.record(settings.parse(text)) == text


def test_every_value_comes_back_from_its_record():
    odd = " a\nb \"'=1&#%é☃:2 "
    given = Settings(
        content=odd,
        style=(odd, "b.png:2"),
        content_mask=("", "m.png"),
        content_weight_mask="~/mask.png",
        init="file:x",
        clip=True,
        style_scale=(0.3, 2.0),
    )
    assert settings.parse(settings.record(given)) == given
    assert "=~/" not in settings.record(given)  # which a command would take for the user's folder
    assert all(line.startswith("--") and line.isprintable() for line in settings.record(given).splitlines())


def test_where_a_record_is_silent_it_has_the_defaults():
    assert settings.parse("# a comment\n\n--content=me.jpg\n") == Settings(content="me.jpg")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--steps=3\n", "no --content"),
        ("--content=a\n--steps=x\n", "--steps"),
        ("--content=a\n--bits=9\n", "--bits"),
        ("--content=a\n--style_scale=nan\n", "--style_scale"),
        ("--content=a\n--magic=1\n", "magic"),
        ("--content=a\nsteps=3\n", "steps=3"),
    ],
)
def test_what_a_record_cannot_say_is_named(text, named):
    with pytest.raises(UserError, match=named):
        settings.parse(text)


def test_the_flags_of_a_process_without_any_are_the_defaults():
    flags.FLAGS(["stylize"])
    assert settings.read() == Settings()


def test_a_command_adds_its_own_flags_to_the_record_and_leaves_others_out():
    text = settings.record(Settings(), optimizer=("adam", "gd"), content=None, seeds=2, against=None)
    assert "--optimizer=adam\n--optimizer=gd\n" in text
    assert "--seeds=2\n" in text
    assert "--content=" not in text
    assert "--against" not in text
    lines = text.splitlines()
    assert lines == sorted(lines, key=lambda line: line.lstrip("-").removeprefix("no").partition("=")[0])


def test_settings_cannot_be_changed_but_replaced():
    given = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.steps = 3
    assert dataclasses.replace(given, steps=3).steps == 3


@pytest.mark.parametrize(
    ("given", "name", "weight", "layers"),
    [
        ({}, "wasserstein", 1.25, recipes.RECIPES["gatys"].style_layers),
        ({"style_weight": 3.0}, "wasserstein", 3, recipes.RECIPES["gatys"].style_layers),
        ({"style_loss": "gram"}, "gram", 10, recipes.RECIPES["gatys"].style_layers),
        ({"style_loss": "sliced"}, "sliced", 4, recipes.RECIPES["gatys"].style_layers),
        ({"style_loss": "rot"}, "rot", 3, dict.fromkeys(recipes.RECIPES["gatys"].style_layers, 4)),
        ({"style_loss": "mrf"}, "mrf", 10, {"block3_conv1": 1, "block4_conv1": 1}),
        ({"loss": "ivanov2017"}, "gram", 1e6, recipes.RECIPES["ivanov2017"].style_layers),
    ],
)
def test_what_the_flags_leave_open_suits_the_style_loss_and_is_recorded(given, name, weight, layers):
    given = Settings(content="me.jpg", **given)
    recipe = inputs.read_recipe(given, list(layers))
    found = settings.parse(settings.record(inputs.with_recipe(given, recipe, (32, 32, 3))))
    assert (found.style_loss, found.style_weight) == (name, weight)
    assert dict(inputs.parse_layer("style_layer", each, list(layers)) for each in found.style_layer) == layers


@pytest.mark.parametrize(
    ("given", "scales", "steps"),
    [
        ({}, 1, 40),
        ({"size": "509x300"}, 1, 40),
        ({"steps": 60}, 1, 60),
        ({"scales": 3}, 3, 80),
        ({"scales": 1}, 1, 40),
        ({"optimizer": "optax-lbfgs:memory_size=5@pixels"}, 1, 40),
        ({"size": "359"}, 2, 80),
        ({"size": "510"}, 4, 80),
        ({"init": "noise"}, 3, 80),
        ({"style_loss": "gram"}, 3, 80),
        ({"content_loss": "self_similarity"}, 3, 80),
        ({"optimizer": "adam:learning_rate=3"}, 3, 80),
        ({"loss": "ivanov2017"}, 1, 80),
    ],
)
def test_a_photo_of_a_common_size_is_painted_at_once_by_default(given, scales, steps):
    found = inputs.with_schedule(Settings(**given))
    assert (found.scales, found.steps) == (scales, steps)
    assert inputs.with_schedule(settings.parse(settings.record(found))) == found


def painted(mode, color, ground):
    """A picture of 32×24 pixels whose left half is painted."""
    mask = Image.new(mode, (32, 24), ground)
    mask.paste(color, (0, 0, 16, 24))
    return mask


@pytest.mark.parametrize(
    ("mask", "left"),
    [
        (painted("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)), 255),
        (painted("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)), 255),
        (painted("LA", (255, 128), (0, 0)), 128),
        (painted("RGBA", (100, 100, 100, 255), (0, 0, 0, 255)), 100),
        (painted("L", 255, 0), 255),
    ],
    ids=["white on nothing", "white on clear white", "half clear", "grey on opaque black", "no alpha"],
)
def test_a_mask_is_what_is_painted_white_and_not_what_is_transparent(tmp_path, mask, left):
    mask.save(tmp_path / "mask.png")
    found = inputs.read_mask("content_mask", str(tmp_path / "mask.png"), (24, 32, 3))
    np.testing.assert_allclose(found[:, :16], left / 255, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 16:], 0)


def test_a_mask_painted_black_on_nothing_is_refused(tmp_path):
    painted("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="is black all over; what is white counts, not what is transparent"):
        inputs.read_mask("content_mask", str(tmp_path / "mask.png"), (24, 32, 3))


@pytest.mark.parametrize(
    ("scales", "longer_sides"),
    [((1.0,), [64, 64]), ((0.5,), [32, 32]), ((2.0, 0.5), [128, 32])],
)
def test_style_pictures_have_one_scale_or_each_its_own(scales, longer_sides):
    given = Settings(style=("sample:night", "sample:facets:2"), style_scale=scales)
    read = inputs.read_pictures(given, 64)
    assert [max(style.picture.shape) for style in read.styles] == longer_sides
    assert [style.share for style in read.styles] == [1, 2]


def test_scales_for_some_style_pictures_alone_are_refused():
    given = Settings(style=("sample:night",) * 3, style_scale=(2.0, 0.5))
    with pytest.raises(UserError, match="--style_scale: 2 given for 3 of --style"):
        inputs.read_pictures(given, 64)
