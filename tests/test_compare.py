"""The compare command: arms that are whole runs, that go on where they stopped, and that diverge alone."""

import csv
import json
import shutil
import signal

import narrow
import numpy as np
import pytest
from PIL import Image

from experiments import prefix, task
from experiments.settings import Settings, record
from jaxstyle.runs import journal, workdir


def start(*arguments, **environment):
    return narrow.run("experiments.compare", *arguments, **environment)


def metrics(directory):
    """All columns but the seconds."""
    return np.delete(np.loadtxt(directory / "metrics.csv", delimiter=",", skiprows=1, ndmin=2), 2, 1)


def times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.glob("*/*")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder of noise under the names of the study's pictures."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for name in ("slav.jpg", "picasso.jpg", "friends.jpg", "scream.jpg"):
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(folder / name)
    return folder


FLAGS = (
    *("--size=32", "--steps=22", "--init=noise", "--convolution=direct", *narrow.FEW),
    *("--claims=experiment6", "--pair=A", "--pair=B2"),
)
ARMS = ("--optimizer=gd:learning_rate=1e30", "--optimizer=adam:learning_rate=1", "--optimizer=lbfgs")
SUFFIXES = ("", "-B2")


@pytest.fixture(scope="module")
def comparison(study, tmp_path_factory):
    """A finished comparison: its directory."""
    directory = tmp_path_factory.mktemp("compare") / "run"
    done = start(*FLAGS, *ARMS, f"--workdir={directory}", JAXSTYLE_IVANOV2017=str(study))
    assert done.returncode == 0, done.stderr
    return directory


def test_each_arm_is_a_whole_run_of_its_pair_and_seed(comparison, study):
    labels = ("gd-learning_rate=1e30", "adam-learning_rate=1", "lbfgs")
    assert {path.name for path in (comparison / "arms").iterdir()} == {
        label + suffix for label in labels for suffix in SUFFIXES
    }
    for path in (comparison / "arms").iterdir():
        assert {file.name for file in path.iterdir()} >= {
            "run.flags",
            "manifest.json",
            "metrics.csv",
            "image.png",
        }
        manifest = json.loads((path / "manifest.json").read_text())
        assert manifest["seed"] == 0
        pair = ("friends.jpg", "scream.jpg") if "B2" in path.name else ("slav.jpg", "picasso.jpg")
        assert list(manifest["pictures"]) == [str(study / name) for name in pair]
        assert manifest["status"] == ("diverged" if path.name.startswith("gd") else "finished")


def test_arms_start_from_the_same_image_and_settings_do_not(comparison):
    starts = {
        suffix: {
            tuple(metrics(comparison / "arms" / (label + suffix))[0])
            for label in ("adam-learning_rate=1", "lbfgs")
        }
        for suffix in SUFFIXES
    }
    assert all(len(rows) == 1 for rows in starts.values())
    assert len(set.union(*starts.values())) == len(SUFFIXES)


def test_the_summary_and_the_claims_have_their_rows(comparison):
    with open(comparison / "summary.csv", newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert len(rows) == 3 * len(SUFFIXES)
    row, last = rows["lbfgs-B2"], metrics(comparison / "arms/lbfgs-B2")[-1]
    assert [float(row[name]) for name in ("steps", "evaluations", "final_total")] == pytest.approx(last[:3])
    assert rows["gd-learning_rate=1e30"]["status"] == "diverged"
    claims = {row["id"]: row for row in json.loads((comparison / "claims.json").read_text())}
    assert claims["6a"]["verdict"] in ("holds", "fails")
    assert len(claims["6a"]["runs"]) == len(SUFFIXES)
    for name in ("losses.png", "pictures.png"):
        with Image.open(comparison / name) as figure:
            assert figure.width > 600


def test_only_arms_that_were_added_run(comparison, study):
    before = times(comparison / "arms")
    more = ("--optimizer=adam:learning_rate=2", "--seeds=2")
    flags = [flag for flag in FLAGS if flag != "--pair=B2"]
    done = start(*flags, *ARMS, *more, f"--workdir={comparison}", JAXSTYLE_IVANOV2017=str(study))
    assert done.returncode == 0, done.stderr
    after = times(comparison / "arms")
    assert {path: after[path] for path in before} == before
    added = {path.parent.name for path in after.keys() - before.keys()}
    labels = ("gd-learning_rate=1e30", "adam-learning_rate=1", "lbfgs", "adam-learning_rate=2")
    assert added == {"adam-learning_rate=2", *(f"{label}-seed1" for label in labels)}
    assert len((comparison / "summary.csv").read_text().splitlines()) == 1 + 2 * 4
    assert "--optimizer=adam:learning_rate=2" in (comparison / "run.flags").read_text()
    assert metrics(comparison / "arms/lbfgs-seed1")[0, 2] != metrics(comparison / "arms/lbfgs")[0, 2]


def test_an_arm_that_is_put_before_others_has_the_strips_of_those(study, tmp_path):
    pictures = f"--content={study / 'slav.jpg'}", f"--style={study / 'picasso.jpg'}"
    flags = (*pictures, "--size=32", "--steps=1", *narrow.FEW, f"--workdir={tmp_path}")
    start(*flags, "--optimizer=adam", check=True)
    record = tmp_path / "arms/adam/run.flags"  # as if begun where less memory was free
    record.write_text(record.read_text().replace("--strips=1\n", "--strips=2\n"))
    done = start(*flags, "--optimizer=gd:learning_rate=1", "--optimizer=adam")
    assert done.returncode == 0, done.stderr
    assert "--strips=2\n" in (tmp_path / "arms/gd-learning_rate=1/run.flags").read_text()


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--steps=23", "differ in steps)"),
        ("--optimizer=adm", "no optimizer 'adm'"),
        ("--pair=C", "--pair"),
        ("--pair=B2 --pair=A", "--pair=B2: the first pair of the comparison"),
        ("--seeds=4294967297", "--seeds"),
        ("--seeds=1000000000", "--seeds"),
        ("--seed=4294967295 --seeds=2", "leaves 1 seeds below"),
        ("--content=absent.jpg", "absent.jpg"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(flag, named, comparison, study):
    before = times(comparison), times(comparison / "arms")
    flags = [each for each in FLAGS if not (each.startswith("--pair=") and flag.startswith("--pair=B2"))]
    given = (*flags, *ARMS, *flag.split(), f"--workdir={comparison}")
    assert named in narrow.refused("experiments.compare", *given, JAXSTYLE_IVANOV2017=str(study))
    assert (times(comparison), times(comparison / "arms")) == before


def test_verdicts_go_where_claims_are_not_judged_any_more(comparison, study, tmp_path):
    copy = shutil.copytree(comparison, tmp_path / "copy")
    flags = [flag for flag in FLAGS if not flag.startswith("--claims")]
    done = start(*flags, ARMS[1], f"--workdir={copy}", JAXSTYLE_IVANOV2017=str(study))
    assert done.returncode == 0, done.stderr
    assert not (copy / "claims.json").exists()


def test_a_comparison_of_its_own_picture_overwrites_nothing(comparison):
    picture = comparison / "arms/lbfgs/image.png"
    flags = (*narrow.FEW, "--size=32", "--steps=2", f"--content={picture}", f"--workdir={comparison}")
    assert str(picture) in narrow.refused("experiments.compare", *flags, "--overwrite")
    again = *narrow.FEW, "--size=32", "--steps=2", f"--prefix_of={comparison}", f"--workdir={comparison}"
    assert str(comparison / "arms") in narrow.refused("experiments.compare", *again, "--overwrite")
    assert picture.exists()


def test_pairs_that_pictures_of_a_flagfile_take_the_place_of_are_told(study, tmp_path):
    (tmp_path / "own.flags").write_text(f"--content={study / 'slav.jpg'}\n--style={study / 'scream.jpg'}\n")
    flags = f"--flagfile={tmp_path / 'own.flags'}", *narrow.FEW, "--size=32", "--steps=1", ARMS[2]
    done = start(*flags, "--pair=B2", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (
        0,
        "--pair: --content or --style take the place of the pairs B2\n",
    )
    assert "slav.jpg + scream.jpg" in (tmp_path / "run/summary.csv").read_text()
    assert start(*flags, f"--workdir={tmp_path / 'run'}").stderr == ""


def test_a_folder_that_another_command_has_just_taken_is_looked_at_again(tmp_path):
    there = tmp_path / "runs/compare-portrait-night"
    flags = "--size=32", "--steps=1", "--optimizer=adam", *narrow.FEW
    with narrow.holding(there, 4):  # and has not yet recorded what it makes
        done = start(*flags, cwd=tmp_path)
    assert done.stdout.endswith(f"report: {there.relative_to(tmp_path)}/report.html\n"), done.stderr


def test_an_interrupted_comparison_goes_on_at_its_arm_and_ends_as_stylize_does(study, tmp_path):
    flags = (
        *(f"--content={study / 'slav.jpg'}", f"--style={study / 'picasso.jpg'}", "--size=32"),
        *("--steps=60", "--convolution=direct", *narrow.FEW, "--optimizer=adam", "--optimizer=lbfgs"),
    )
    directory = tmp_path / "run"
    often = "--checkpoint_seconds=0", f"--workdir={directory}"
    with narrow.Process("experiments.compare", *flags, *often) as process:
        process.until(lambda: any((directory / "arms/lbfgs/checkpoints").glob("[0-9]*")))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143, process.stderr.read()
    before = times(directory / "arms")
    finished = {path: changed for path, changed in before.items() if path.parent.name == "adam"}
    rows = journal.read_metrics(directory / "arms/lbfgs/metrics.csv")
    assert len(rows) < 61
    assert "lbfgs,slav.jpg + picasso.jpg,0,interrupted" in (directory / "summary.csv").read_text()

    done = start(*flags, f"--workdir={directory}")
    assert done.returncode == 0, done.stderr
    after = times(directory / "arms")
    assert {path: after[path] for path in finished} == finished
    ended = journal.read_metrics(directory / "arms/lbfgs/metrics.csv")
    np.testing.assert_array_equal(ended[: len(rows)], rows)  # their seconds too: they were not made again

    again = tmp_path / "again"
    record = directory / "arms/lbfgs/run.flags"
    narrow.run("experiments.stylize", f"--flagfile={record}", f"--workdir={again}", check=True)
    assert (again / "run.flags").read_text() == record.read_text()
    np.testing.assert_array_equal(metrics(again), metrics(directory / "arms/lbfgs"))
    assert (again / "image.png").read_bytes() == (directory / "arms/lbfgs/image.png").read_bytes()


def test_each_seed_has_its_own_directions(tmp_path, study):
    """The sliced loss draws them: an arm of the second seed is what `stylize` gives with that seed."""
    flags = (
        *("--size=32", "--steps=2", "--style_loss=sliced", "--convolution=direct", *narrow.FEW),
        *(f"--content={study / 'slav.jpg'}", f"--style={study / 'picasso.jpg'}"),
    )
    done = start(*flags, "--optimizer=lbfgs", "--seeds=2", f"--workdir={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    pixels = ("--optimizer=lbfgs", "--parametrization=pixels", "--seed=1")
    alone = (*flags, *pixels, f"--workdir={tmp_path / 'alone'}")
    narrow.run("experiments.stylize", *alone, check=True)
    first, second = (metrics(tmp_path / "both/arms" / name) for name in ("lbfgs", "lbfgs-seed1"))
    np.testing.assert_array_equal(second, metrics(tmp_path / "alone"))
    assert not np.array_equal(first, second)


def test_first_steps_of_a_longer_arm_are_taken_over_and_are_those_of_a_run(study, tmp_path):
    flags = ("--size=32", "--init=noise", "--convolution=direct", "--pair=A", *narrow.FEW)
    arms = ("--optimizer=adam:learning_rate=2", "--optimizer=lbfgs")
    environment = {"JAXSTYLE_IVANOV2017": str(study)}
    long, taken, run = (tmp_path / name for name in ("long", "taken", "run"))
    for where, *more in (
        (long, "--steps=9", "--save_every=3", arms[1]),
        (run, "--steps=6", *arms),
        (taken, "--steps=6", *arms, f"--prefix_of={long}"),
    ):
        done = start(*flags, *more, f"--workdir={where}", **environment)
        assert done.returncode == 0, done.stderr
    assert "lbfgs: 6 steps that another comparison has" in done.stdout
    for name in ("lbfgs", "adam-learning_rate=2"):
        here, there = taken / "arms" / name, run / "arms" / name
        np.testing.assert_array_equal(metrics(here), metrics(there))
        with Image.open(here / "image.png") as image, Image.open(there / "image.png") as other:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
            assert image.info["Comment"] == (here / "run.flags").read_text()
    manifest = json.loads((taken / "arms/lbfgs/manifest.json").read_text())
    assert manifest["steps"] == manifest["steps_done"] == 6
    assert manifest["prefix_of"] == str(long / "arms/lbfgs")
    assert "prefix_of" not in json.loads((taken / "arms/adam-learning_rate=2/manifest.json").read_text())
    done = start(
        *flags, "--steps=5", arms[1], f"--prefix_of={long}", f"--workdir={tmp_path / 'no'}", **environment
    )
    assert "another comparison" not in done.stdout  # no picture of step 5 was kept


def test_what_a_kill_leaves_of_an_arm_that_is_taken_over_begins_anew(tmp_path, monkeypatch):
    there, here = tmp_path / "first/arms/lbfgs", tmp_path / "second/arms/lbfgs"
    there.mkdir(parents=True)
    given, facts = Settings(optimizer="lbfgs", steps=4, scales=1), {"pictures": {}, "weights": {}}
    (there / "run.flags").write_text(record(given))
    journal.write_manifest(there, {"status": "finished", **facts})

    def kill(source, directory, **_):
        (directory / "image.png").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(prefix.shutil, "copytree", kill)
    posed = task.Task(given, *[None] * 6, facts)
    with pytest.raises(KeyboardInterrupt):
        prefix.take(posed, "lbfgs", here, [tmp_path / "first"])
    assert workdir.begin(here, record(given), overwrite=False) == "unfinished"


def test_an_arm_of_the_same_flags_is_taken_over_whole(study, tmp_path):
    flags = ("--size=32", "--steps=4", "--save_every=2", "--convolution=direct", *narrow.FEW)
    flags = (
        *flags,
        f"--content={study / 'slav.jpg'}",
        f"--style={study / 'picasso.jpg'}",
        "--optimizer=lbfgs",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    assert start(*flags, f"--workdir={first}").returncode == 0
    done = start(*flags, f"--workdir={second}", f"--prefix_of={first}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lbfgs: 4 steps that another comparison has" in done.stdout
    here, there = second / "arms/lbfgs", first / "arms/lbfgs"
    for name in ("image.png", "metrics.csv", "run.flags", "snapshots/000002.png"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    manifests = [json.loads((each / "manifest.json").read_text()) for each in (here, there)]
    assert manifests[0] == manifests[1] | {"prefix_of": str(there)}
    none = f"--against={tmp_path / 'none'}"
    other = start(*flags, "--seed=1", f"--workdir={tmp_path / 'other'}", f"--prefix_of={first}", none)
    assert "another comparison" not in other.stdout
    assert other.stderr == f"{none}: no comparison is there; this one goes on without\n"
