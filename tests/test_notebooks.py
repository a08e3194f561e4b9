"""The notebooks: their cells run from top to bottom, in short form, and what they show is there."""

import json
import pathlib
import re

import matplotlib.pyplot
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS


def cells(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, narrow_weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    matplotlib.pyplot.switch_backend("agg")
    shown = []
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda: shown.append(matplotlib.pyplot.gcf()))
    scope, code = {}, "\n".join("".join(cell["source"]) for cell in cells(path))
    short, count = re.subn(r"^SIZE, STEPS = \d+, \d+", "SIZE, STEPS = 32, 4", code, flags=re.M)
    assert count == 1
    exec(short, scope)
    assert len(shown) == sum("show(" in "".join(cell["source"]) for cell in cells(path))
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_its_cells_made(path):
    assert path.stat().st_size < 500_000
    for cell in cells(path):
        assert cell["outputs"]
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
