"""The six lines that the README shows, as they stand there, on pictures of the test's own."""

import pathlib
import re

import numpy as np

from jaxstyle.images import pictures


def test_the_readmes_six_lines_make_a_picture(tmp_path, monkeypatch):
    readme = pathlib.Path(__file__).parent.parent / "README.md"
    code = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)[1]
    rng = np.random.default_rng(0)
    for name in ("me.jpg", "painting.jpg"):
        pictures.write(tmp_path / name, rng.uniform(0, 255, (24, 32, 3)))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code.replace("400", "32").replace("steps=200", "steps=3"), scope)
    assert scope["image"].shape == (24, 32, 3)
    assert scope["metrics"].total.shape == (4,)
    assert scope["metrics"].total[-1] < scope["metrics"].total[0]
    assert pictures.read("painted.png", 32).shape == (24, 32, 3)
