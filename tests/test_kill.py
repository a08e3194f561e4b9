"""A killed process loses nothing: the short form of `tests/kill.py`, on a small network."""

import sys

import pytest
from kill import OPTIMIZERS, check, make_pictures


@pytest.mark.parametrize(
    ("command", "optimizers", "kills"),
    [("stylize", ("lbfgs",), 2), ("compare", OPTIMIZERS, 2)],
)
def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(tmp_path, command, optimizers, kills):
    flags = (
        *("--size=32", "--steps=10", "--convolution=direct", "--checkpoint_seconds=0"),
        *(f"--optimizer={optimizer}" for optimizer in optimizers),
        *(f"--compilation_cache={tmp_path / 'cache'}", *make_pictures(tmp_path)),
    )
    counts = check((sys.executable, "tests/narrow.py", f"experiments.{command}", *flags), tmp_path, kills)
    assert sum(counts.values()) == kills + counts["runs"]
    # Between its arms a comparison has none.
    assert command == "compare" or set(counts) & {"between checkpoints", "while a checkpoint was written"}
