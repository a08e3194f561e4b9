"""Settings: flags and the record of a run are two spellings of one frozen value."""

import dataclasses
import pathlib

import pytest
from absl import flags

from experiments import settings
from experiments.settings import Settings
from jaxstyle.errors import UserError

RECORDS = sorted(pathlib.Path(__file__).parent.glob("records/*.flags"))


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
        init="file:x",
        clip=True,
        style_scale=0.3,
    )
    assert settings.parse(settings.record(given)) == given
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
