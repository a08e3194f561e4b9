"""Malformed files and flags do no harm, valid ones do what they say: short forms of `fuzz.py` and `pairwise.py`."""

import narrow


def passes(script, *flags):
    done = narrow.run(script, *flags)
    assert done.returncode == 0, done.stdout + done.stderr


def test_malformed_files_and_flags_are_refused_in_one_line_or_are_harmless():
    passes("fuzz", "--files=60", "--flagsets=15", "--seed=1")


def test_two_sets_of_valid_flags_keep_every_promise_of_a_run():
    passes("pairwise", "--sets=2", "--seed=3")
