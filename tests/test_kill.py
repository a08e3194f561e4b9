"""A killed process loses nothing: the short form of `tests/kill.py`, on a small network."""

import narrow
from kill import OPTIMIZERS, check, make_pictures


def test_a_comparison_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path):
    flags = (
        *("--size=32", "--steps=8", "--convolution=direct", "--checkpoint_seconds=0", *narrow.FEW),
        *(f"--optimizer={optimizer}" for optimizer in OPTIMIZERS),
        *make_pictures(tmp_path),
    )

    def launch(flag, **how):
        process = narrow.Process("experiments.compare", *flags, flag, **how)
        process.stdout.close()
        return process

    check(launch, tmp_path, kills=2)  # which asserts it of each run
