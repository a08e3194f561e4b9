"""The plane of style against photo: what it runs, what of it is a mean, and what it says of a mistake."""

import math

import narrow
import pytest

from jaxstyle.lab import plane

FLAGS = (
    *("--size=32x24", "--scales=2", "--steps=4", "--test_pairs=1", "--optimizer=adam"),
    *("--style_layer=block1_conv1", "--content_layer=block1_conv1", "--arm=gram:3,30", "--arm=wasserstein:1"),
)


def row(arm, pair, value, milliseconds=9.0):
    return {"arm": arm, "pair": pair, "milliseconds": milliseconds} | dict.fromkeys(plane.COLUMNS, value)


def test_a_mean_is_over_the_pairs_that_all_arms_have_and_a_time_the_least():
    rows = [row("gram 3", "A", 1), row("gram 3", "B", 3, 5.0), row("gram 3", "C", 99, 1.0)]
    rows += [row("cross 3", "A", 2), row("cross 3", "B", 5)]
    found = plane.means(rows, ["gram 3", "cross 3"])
    assert [found[arm]["lpips"] for arm in ("gram 3", "cross 3")] == [2, 3.5]
    assert [found[arm]["milliseconds"] for arm in ("gram 3", "cross 3")] == [5, 9]
    for times in ((math.nan, 5.0), (5.0, math.nan)):  # of a run that diverged at once
        rows = [row("gram 3", pair, 1, each) for pair, each in zip("AB", times, strict=True)]
        assert plane.means(rows, ["gram 3"])["gram 3"]["milliseconds"] == 5
    assert "| gram 3 | 2 |" in plane.table(found)


def test_a_plane_has_every_arm_and_runs_nothing_again(tmp_path):
    folder = tmp_path / "run"
    done = narrow.run("experiments.plane", *FLAGS, f"--workdir={folder}", JAXSTYLE_PICTURES="")
    assert done.returncode == 0, done.stderr
    lines = (folder / "tables.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| gram 3", "| gram 30", "| wasserstein 1"]
    assert all(math.isfinite(float(cell)) for line in lines[2:] for cell in line.strip("| ").split(" | ")[1:])
    assert (folder / "plane.png").stat().st_size > 10_000
    settings = {path.parent.name: path.read_text() for path in folder.glob("arms/*/run.flags")}
    assert "--style_weight=30.0\n" in settings["gram_30_portrait_+_night"]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/metrics.csv")}
    assert len(before) == 3
    record = folder / "arms/gram_30_portrait_+_night/run.flags"  # as if begun where less memory was free
    record.write_text(record.read_text().replace("--strips=1\n", "--strips=2\n"))
    more = narrow.run(
        "experiments.plane", *FLAGS, "--arm=cross:3", f"--workdir={folder}", JAXSTYLE_PICTURES=""
    )
    assert more.returncode == 0, more.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "| cross 3 |" in (folder / "tables.md").read_text()
    start = next(folder.glob("arms/gram_3_*/image.png"))
    again = (*FLAGS, f"--init={start}", "--overwrite", f"--workdir={folder}")
    done = narrow.run("experiments.plane", *again, JAXSTYLE_PICTURES="")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "--overwrite: would delete" in done.stderr
    assert start.is_file()


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--arm=grams:3", "--arm=grams:3"),
        ("--arm=gram:much", "--arm=gram:much"),
        ("--arm=gram", "--arm=gram"),
        ("--style_weight=3", "--style_weight: the plane has its own"),
        ("--style_layer=foo", "--style_layer=foo"),
        ("--optimizer=foo", "no optimizer 'foo'"),
        ("--strips=2 --devices=2", "--strips=2: a picture that is spread over 2 devices"),
    ],
)
def test_mistakes_are_one_line_that_names_the_flag(flag, named, tmp_path):
    done = narrow.run(
        "experiments.plane", *flag.split(), f"--workdir={tmp_path / 'run'}", JAXSTYLE_PICTURES=""
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert named in done.stderr
    assert not (tmp_path / "run").exists()
