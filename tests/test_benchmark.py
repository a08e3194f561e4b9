"""The benchmark's rows at a tiny size, each a whole measurement."""

import json

import narrow
import pytest


def rows(*flags):
    done = narrow.run("experiments.benchmark", "--sizes=32", "--repeats=1", *flags, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_row_is_a_line_of_json_that_says_what_was_measured():
    found = rows("--convolutions=direct", "--batches=2", "--strips=2", "--layers", "--optimizers=adam")
    steps = [row for row in found if row["row"] == "step"]
    assert [(row["batch"], row["strips"], row["remat"]) for row in steps] == [(2, 2, False)]
    for row in steps:
        assert 0 < row["min_s"] <= row["median_s"] < 60
        assert row["compile_s"] > 0
        assert row["estimated_bytes"] < row["peak_bytes"]
    layers = {row["layer"] for row in found if row["row"] == "layer"}
    assert {"block1_conv1", "block5_conv1", "block2_pool", "block3_gram"} <= layers
    (adam,) = (row for row in found if row["row"] == "optimizer")
    assert adam["evaluations_a_step"] == 1


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--sizes=8", "--sizes=8: must be 16 or more"),
        ("--sizes=a", "--sizes=a: must be whole numbers"),
        ("--convolutions=fft", "--convolutions=fft: must be auto, direct or winograd"),
        ("--batches=0", "--batches=0: must be whole numbers of 1 or more"),
        ("--optimizers=adam:lr=1", "adam has no 'lr'"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flag, words):
    done = narrow.run("experiments.benchmark", flag)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
