"""The flagfiles in configs/ are flags of the commands that they name."""

import pathlib
import re

import narrow
import pytest

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.flags"))
assert CONFIGS


def refusal(path):
    """What the flagfile's own command says to it and to a word that is no flag, which it reads last."""
    (command,) = re.findall(
        r"^# Command: python -m experiments\.(\w+) --flagfile=", path.read_text("utf-8"), re.M
    )
    told = narrow.refused(f"experiments.{command}", f"--flagfile={path}", "word")
    return told.removeprefix(f"{command}: ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_flagfile_is_taken_by_the_command_that_it_names(path):
    assert refusal(path) == "'word' is not a flag; flags are written --name=value\n"


@pytest.mark.parametrize("line", ["--seeds=3", "--style_loss=grams", "--style_weight=much"])
def test_what_the_command_does_not_have_is_refused(tmp_path, line):
    path = tmp_path / "wrong.flags"
    path.write_text(f"# Command: python -m experiments.stylize --flagfile=wrong.flags\n{line}\n")
    assert line[2:].partition("=")[0] in refusal(path)
