"""The library's face: its names, and the lines that the README shows, as they stand there, on small pictures."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

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


def test_the_page_of_the_library_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", LIBRARY, re.S):
        exec(code.replace("400", "40").replace("steps=200", "steps=2"), scope)
    assert jaxstyle.read_picture("photo.png").shape == scope["image"].shape
    assert scope["metrics"].total.shape == (3,)
    assert "adamant" in capsys.readouterr().out


@pytest.mark.parametrize("name", jaxstyle.EXPORTS)
def test_the_page_of_the_library_has_every_name(name):
    assert re.search(rf"`{name}\b", LIBRARY) or re.search(rf"jaxstyle\.{name}\b", LIBRARY)


@pytest.mark.parametrize("name", jaxstyle.EXPORTS)
def test_every_exported_name_is_there_and_says_what_it_is(name):
    value = getattr(jaxstyle, name)
    assert isinstance(value, dict) or value.__doc__


def test_what_is_not_exported_is_named():
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = jaxstyle.magic
    assert set(jaxstyle.EXPORTS) <= set(dir(jaxstyle))


def test_importing_the_library_imports_nothing_else():
    code = "import jaxstyle, sys; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
