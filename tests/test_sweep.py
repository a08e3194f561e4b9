"""The sweep command: many rates in one program, each as if it ran alone, and what it says of the best."""

import csv
import json
import os
import resource
import signal

import narrow
import numpy as np
import pytest
from PIL import Image

from experiments import lanes
from jaxstyle.lab import records


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)).save(path)
    given = f"--content={path}", "--style=sample:cat", "--size=32", "--steps=12", "--convolution=direct"
    return *given, *narrow.FEW


RATES = "--learning_rates=3,0.1,1e30,1,10"


@pytest.fixture(scope="module")
def sweep(flags, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    arms = ("--optimizer=adam", "--optimizer=gd")
    done = narrow.run("experiments.sweep", *flags, *arms, RATES, "--chunk=2", f"--workdir={directory}")
    assert done.returncode == 0, done.stderr
    with open(directory / "sweep.csv", newline="") as file:
        return directory, done.stdout, list(csv.DictReader(file))


def test_there_is_a_row_for_each_rate_and_lanes_that_diverge_leave_others_alone(sweep):
    directory, _, rows = sweep
    assert [(row["label"], float(row["learning_rate"])) for row in rows] == [
        (label, rate) for label in ("adam", "gd") for rate in (0.1, 1, 3, 10, 1e30)
    ]
    assert [row["status"] for row in rows[:5]] == ["finished"] * 4 + ["diverged"]
    assert all(float(row["best_total"]) <= float(row["final_total"]) for row in rows)
    with Image.open(directory / "sensitivity.png") as figure:
        assert figure.width > 600


def test_a_sweep_that_has_ended_says_what_it_ran_on_and_is_known_with_its_strips(flags, tmp_path):
    rates = ("--learning_rates=1,3", "--steps=2", f"--workdir={tmp_path}")
    narrow.run("experiments.sweep", *flags, *rates, "--strips=2", check=True)
    before = (tmp_path / "manifest.json").read_bytes()
    core = min(os.sched_getaffinity(0))
    done = narrow.run("experiments.sweep", *flags, *rates, cores=[core])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_lane_agrees_with_a_run_alone(sweep, flags, tmp_path):
    directory, _, _ = sweep
    alone = ("--optimizer=adam:learning_rate=3", f"--workdir={tmp_path}")
    narrow.run("experiments.stylize", *flags, *alone, check=True)
    expected = np.loadtxt(tmp_path / "metrics.csv", delimiter=",", skiprows=1)
    with open(directory / "curves.csv", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if (row["label"], row["learning_rate"]) == ("adam", "3.0")
        ]
    curve = np.array([[float(row[name]) for name in ("step", "evaluations", "total")] for row in rows])
    np.testing.assert_allclose(curve, expected[:, [0, 1, 3]], rtol=1e-3)


def test_a_sweep_names_the_best_rate(sweep):
    _, output, rows = sweep
    best = min((row for row in rows[:4]), key=lambda row: float(row["final_total"]))
    assert f"adam: best learning rate {float(best['learning_rate']):g}, loss" in output


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--optimizer=lbfgs", "no 'learning_rate'"),
        ("--optimizer=scipy-lbfgs", "scipy-lbfgs runs on the host"),
        ("--optimizer=adam:learning_rate=3", "leave out learning_rate"),
        ("--learning_rates=1,x", "--learning_rates"),
        ("--learning_rates=0", "--learning_rates"),
        ("--learning_rates=", "--learning_rates"),
        ("--strips=2 --devices=2 --learning_rates=1", "--strips=2: a picture that is spread over 2 devices"),
    ],
)
def test_a_mistake_is_one_line(flag, named, flags, tmp_path):
    assert named in narrow.refused(
        "experiments.sweep", *flags, *flag.split(), f"--workdir={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


def test_an_interrupted_sweep_goes_on_and_ends_as_one_that_was_not(flags, tmp_path):
    flags = (*flags, "--steps=100", "--learning_rates=1,10")
    often = "--checkpoint_seconds=0", f"--workdir={tmp_path / 'a'}"
    with narrow.Process("experiments.sweep", *flags, *often) as process:
        process.until(lambda: any((tmp_path / "a").glob("parts/*/checkpoints/[0-9]*")))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, process.stderr.read()
    assert not (tmp_path / "a/sweep.csv").exists()
    assert json.loads((tmp_path / "a/manifest.json").read_text())["status"] == "interrupted"
    for name in ("a", "b"):
        narrow.run("experiments.sweep", *flags, f"--workdir={tmp_path / name}", check=True)
    assert (tmp_path / "a/curves.csv").read_text() == (tmp_path / "b/curves.csv").read_text()


def test_a_start_without_a_finite_loss_is_a_rate_that_diverged(flags, tmp_path):
    huge = "--total=product", "--init=noise", "--content_weight=1e25", "--style_weight=1e25"
    done = narrow.run("experiments.sweep", *flags, *huge, "--learning_rates=1", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "every learning rate diverged" in done.stdout
    with open(tmp_path / "sweep.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["steps"], row["final_total"]) == ("diverged", "0", "inf")


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(flags, tmp_path):
    flags = (*flags, "--learning_rates=1,10", "--checkpoint_seconds=0", f"--workdir={tmp_path}")
    process = narrow.Process("experiments.sweep", *flags)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert f"sweep: --workdir={tmp_path}: cannot write there: File too large" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    narrow.run("experiments.sweep", *flags, check=True)
    whole = (*flags[:-1], f"--workdir={tmp_path / 'whole'}")
    narrow.run("experiments.sweep", *whole, check=True)
    assert (tmp_path / "curves.csv").read_bytes() == (tmp_path / "whole/curves.csv").read_bytes()


SIGNALLED = """
import os, signal
from experiments import lanes, launch, sweep

class Bar(lanes.tqdm):
    def update(self, n):
        if self.n + n == self.total:
            os.kill(os.getpid(), signal.SIGTERM)

lanes.tqdm = Bar
launch.run(sweep.main)
"""


def test_a_signal_in_the_last_step_of_a_chunk_ends_the_sweep_there(flags, tmp_path):
    flags = (*flags, "--learning_rates=1,10", "--chunk=1", f"--workdir={tmp_path}")
    done = narrow.run("-c", SIGNALLED, *flags)
    assert done.returncode == 143, done.stderr
    (ended,) = tmp_path.glob("parts/*/rows.npy")
    assert not list(tmp_path.glob("parts/*/checkpoints/*"))
    before = ended.stat().st_mtime_ns
    narrow.run("experiments.sweep", *flags, check=True)
    assert ended.stat().st_mtime_ns == before
    narrow.run("experiments.sweep", *flags[:-1], f"--workdir={tmp_path / 'whole'}", check=True)
    assert (tmp_path / "curves.csv").read_bytes() == (tmp_path / "whole/curves.csv").read_bytes()


def test_a_sweep_of_another_photo_is_refused_by_its_name(flags, tmp_path):
    photo = tmp_path / "photo.png"
    flags = (f"--content={photo}", *flags[1:], "--learning_rates=1", f"--workdir={tmp_path / 'run'}")
    for shade, status in ((0, 0), (0, 0), (9, 2)):
        Image.new("RGB", (40, 32), (shade, 100, 200)).save(photo)
        done = narrow.run("experiments.sweep", *flags)
        assert done.returncode == status, done.stderr
    assert f"{photo} changed since" in done.stderr


@pytest.mark.parametrize("flag", ["--keep=best", "--save_every=2", "--bits=16"])
def test_a_sweep_leaves_no_pictures(flag, tmp_path):
    told = narrow.refused("experiments.sweep", flag, f"--workdir={tmp_path / 'run'}")
    assert told == f"sweep: {flag}: a sweep leaves no pictures; leave it out\n"
    assert not (tmp_path / "run").exists()


def rates(*ends):
    """Rates 1, 10, 100 … with their final losses; None is one that diverged."""
    return [
        records.Rate(
            "adam",
            10.0**i,
            "diverged" if end is None else "finished",
            9,
            10,
            end or 1e-9,
            0,
            0,
            0,
            9,
            end or 1e-9,
        )
        for i, end in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("ends", "near"),
    [
        ((9, 5, 4.5, 4.9, 8), [1e1 * 10, 1e3]),
        ((4, 4.2, 4.3), [1, 10, 100]),
        ((4, 9, 4.1), [1]),  # not a neighbour
        ((9, 8, None), [10]),
        ((None,), None),
    ],
)
def test_the_best_rate_and_its_neighbours_within_a_tenth(ends, near):
    found = records.best_rates(rates(*ends))
    assert near == (found and [rate.learning_rate for rate in found])


def test_a_best_rate_at_the_edge_is_told():
    assert "no larger rate was tried" in records.describe_best(rates(9, 8, 7))
    assert "tried" not in records.describe_best(rates(9, 7, 8))
    assert "every learning rate diverged" in records.describe_best(rates(None, None))


@pytest.mark.parametrize("rate", ["10", "0.003", "0.12345678901", "1e-07"])
def test_an_optimizer_has_its_rate_in_all_digits(rate):
    text = lanes.at_rate("adam:b1=0.8@fourier", float(rate))
    assert text == f"adam:learning_rate={rate},b1=0.8@fourier"
