"""What other systems lack: nothing that Unix alone has is needed to import the commands or to run one."""

import ast
import os
import subprocess
import sys

import pytest
from narrow import ROOT, command
from PIL import Image

UNIX = {"fcntl", "resource", "pwd", "grp", "termios"}

#: Takes away what Windows does not have, and then runs narrow.py with the arguments.
WITHOUT_UNIX = """
import asyncio  # that of Python for Unix takes them itself
import os, runpy, signal, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("sysconf", "sched_getaffinity"):
    vars(os).pop(name, None)
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_unix(*arguments, **environment):
    given = command(*arguments, **environment)
    given["args"] = [sys.executable, "-c", WITHOUT_UNIX, *given["args"]]
    del given["args"][3]  # Python's own name
    return given


def test_no_module_imports_what_unix_alone_has_when_it_is_imported():
    for path in (*ROOT.glob("jaxstyle/**/*.py"), *ROOT.glob("experiments/*.py")):
        found = set()
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found |= {getattr(node, "module", None)} | {alias.name for alias in node.names}
        if path.stem != "torch_peer":  # PyTorch's process, which benchmark starts
            assert not found & UNIX, path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_works_without_what_unix_alone_has(tmp_path):
    Image.new("RGB", (40, 32), (200, 90, 30)).save(tmp_path / "photo.png")
    flags = (
        *(
            "--size=40",
            "--steps=2",
            "--optimizer=adam",
            f"--content={tmp_path / 'photo.png'}",
            f"--style={tmp_path / 'photo.png'}",
        ),
        *("--content_layer=block1_conv1", "--style_layer=block1_conv1", f"--workdir={tmp_path / 'run'}"),
    )
    done = subprocess.run(**without_unix("experiments.stylize", *flags), check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "image.png").exists()
    assert not (tmp_path / "run" / ".jaxstyle.lock").exists()
    assert os.path.getsize(tmp_path / "run" / "metrics.csv")
