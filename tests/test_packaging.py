"""The wheel: what it has, and that its commands work outside a clone."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the working tree, built from a copy, as building leaves files behind."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("jaxstyle", "experiments"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=clone, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def jaxstyle(wheel, tmp_path_factory):
    """Runs the console command of the unpacked wheel in an empty folder."""
    site, home = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("home")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (entry,) = site.glob("*.dist-info/entry_points.txt")
    module, _, function = entry.read_text().partition("jaxstyle = ")[2].strip().partition(":")
    script = f"import sys; from {module} import {function} as run; sys.argv[0] = 'jaxstyle'; run()"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )

    return run


def test_the_wheel_has_every_source_sample_and_page_in_one_package(wheel):
    sources = [
        path
        for ending in ("py", "webp", "html", "css", "js")
        for path in ROOT.glob(f"jaxstyle/**/*.{ending}")
    ]
    wanted = {str(path.relative_to(ROOT)) for path in sources}
    wanted |= {f"jaxstyle/experiments/{path.name}" for path in ROOT.glob("experiments/*.py")}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted == {name for name in names if ".dist-info/" not in name}


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.py")), ids=lambda path: path.stem)
def test_commands_import_each_other_relatively(path):
    """In a wheel they are `jaxstyle.experiments`, and `experiments` may be another's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] != "experiments"
        if isinstance(node, ast.Import):
            assert "experiments" not in [alias.name.split(".")[0] for alias in node.names]


def test_outside_a_clone_a_picture_is_painted_and_verified(jaxstyle):
    layers = ("--content_layer=block1_conv1", "--style_layer=block1_conv1")
    painted = jaxstyle("stylize", *layers, "--size=32", "--steps=1", "--optimizer=adam", "--workdir=run")
    assert painted.returncode == 0, painted.stderr
    assert painted.stdout.endswith("picture: run/image.png\n")
    verified = jaxstyle("verify", "--workdir=run")
    assert verified.stdout.endswith("jaxstyle stylize --flagfile=run/run.flags --workdir=OTHER\n")


def test_the_code_of_a_clone_and_of_its_wheel_is_the_same(jaxstyle, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "from jaxstyle.runs import journal; print(journal._code_sha256())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
        ).stdout
        for cwd in (ROOT, tmp_path)
    }
    assert len(found) == 1


def test_jaxstyle_lists_its_commands_and_knows_a_misspelt_one(jaxstyle):
    listed = jaxstyle().stdout.splitlines()[:-1]
    assert listed
    assert all(line.startswith("jaxstyle ") for line in listed)
    misspelt = jaxstyle("stylise")
    assert misspelt.returncode == 2
    assert misspelt.stderr == "jaxstyle: 'stylise' is no command; is stylize meant?\n"
