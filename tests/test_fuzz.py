"""Malformed files and flags do no harm, valid ones do what they say: short forms of `fuzz.py` and `pairwise.py`."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def passes(script, *flags, timeout):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / script, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_malformed_files_and_flags_are_refused_in_one_line_or_are_harmless():
    passes("fuzz.py", "--files=60", "--flagsets=15", "--seed=1", timeout=120)


def test_two_sets_of_valid_flags_keep_every_promise_of_a_run():
    passes("pairwise.py", "--sets=2", "--seed=3", timeout=240)
