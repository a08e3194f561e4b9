"""--helpshort: every flag of a command once, by what people want."""

import ast
import dataclasses
import re

import narrow
import pytest

from experiments import usage
from experiments.settings import Settings


def run(command, *flags):
    return narrow.run(f"experiments.{command}", *flags)


def test_every_shared_flag_has_a_group_of_its_own():
    grouped = [name for names in usage.GROUPS.values() for name in names]
    assert {field.name for field in dataclasses.fields(Settings)} <= set(grouped)
    assert len(grouped) == len(set(grouped))


def test_the_help_begins_with_the_ten_that_matter_and_has_each_flag_once():
    done = run("stylize", "--helpshort")
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  --(?:\[no\])?(\w+):", done.stdout, re.M)
    assert listed[:10] == [
        *("content", "style", "size", "steps", "style_weight", "preserve_color", "style_scale", "init"),
        *("optimizer", "workdir"),
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) >= {field.name for field in dataclasses.fields(Settings)} | {"output", "overwrite"}
    assert "(default: sample:night)" in done.stdout
    assert "repeat this option" not in done.stdout


@pytest.mark.parametrize(("command", "own"), [("compare", "seeds"), ("sweep", "learning_rates")])
def test_a_laboratory_lists_its_own_flags_and_the_shared_ones(command, own):
    parts = {part.partition(":")[0]: part for part in run(command, "--help").stdout.split("\n\n")}
    assert f"  --{own}:" in parts["Of this command"]
    assert "  --size:" in parts["What matters first"]


def says(path):
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


COMMANDS = [
    path
    for path in sorted((narrow.ROOT / "experiments").glob("*.py"))
    if f"python -m experiments.{path.stem} " in says(path)
]


def test_there_are_commands():
    assert {path.stem for path in COMMANDS} >= {"stylize", "compare", "sweep", "study", "measure", "verify"}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_the_help_of_a_command_lists_each_flag_that_it_speaks_of(path):
    listed = re.findall(r"^  --(?:\[no\])?(\w+):", run(path.stem, "--helpshort").stdout, re.M)
    assert set(re.findall(r"--(\w+)", says(path))) - {"helpshort", "flagfile"} <= set(listed)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("benchmark", "size=600"), ("measure", "steps=3"), ("verify", "overwrite"), ("article", "seed=1")),
        ("studio", "style_weight=3"),
    ],
)
def test_a_flag_that_a_command_does_not_heed_is_refused(command, flag):
    name = flag.partition("=")[0]
    told = narrow.refused(f"experiments.{command}", f"--{flag}")
    assert told == f"{command}: --{name}: is no flag of this command; --helpshort lists those that are\n"


@pytest.mark.parametrize("command", ["sweep", "studio", "verify", "article"])
def test_a_folder_of_no_name_is_refused(command):
    told = narrow.refused(f"experiments.{command}", "--workdir=")
    assert told == f"{command}: --workdir=: must name a folder; . is this one\n"


def test_what_each_process_sets_up_is_a_flag_of_every_command():
    told = narrow.refused("experiments.article", "--processes=1", "--nodeterministic", "--compilation_cache=")
    assert "--comparison: nothing has ended" in told


def test_what_an_error_recommends_is_in_the_help():
    assert "  --[no]overwrite:" in run("article", "--helpshort").stdout


@pytest.mark.parametrize("typed", ["style_wieght", "style-weight", "stile_weight"])
def test_a_misspelt_flag_suggests_the_near_one(typed):
    told = narrow.refused("experiments.stylize", f"--{typed}=3")
    assert told == f"stylize: Unknown command line flag {typed!r}. Did you mean: style_weight ?\n"
