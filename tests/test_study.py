"""The analysis of a study, on curves whose answers are known; and a whole study on a narrow network."""

import functools
import itertools
import json
import math
import pathlib
import shutil
import signal

import narrow
import numpy as np
import pytest
import test_tensorboard as event_files
from PIL import Image

from jaxstyle.errors import UserError
from jaxstyle.lab import records, study, study_report
from jaxstyle.runs import workdir

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)


def run(arm, pair, total, status="finished", rate=math.nan, evaluations=None, **measures):
    total = np.array(total, float)
    spent = np.arange(1, len(total) + 1) if evaluations is None else np.array(evaluations)
    given = {"seconds": 0.1, "lpips": 0.5, "style": 0.2, "palette": 5.0} | measures
    return study.Run("photo", arm, pair, rate, status, spent, total, **given)


def tuning(arm, pair, rate, **best):
    return study.Tuning("photo", arm, pair, rate, {int(k[1:]): v for k, v in best.items()})


# --- losses of a run ----------------------------------------------------------------------------------------------


def test_the_best_and_the_last_are_those_that_a_budget_pays_for():
    search = run("lbfgs", "A", [9, 5, 7, 1], evaluations=[1, 3, 4, 6])
    assert [study.best_within(search, n) for n in (0, 1, 2, 3, 5, 6, 100)] == [math.inf, 9, 9, 5, 5, 1, 1]
    assert [study.last_within(search, n) for n in (1, 4, 5, 100)] == [9, 7, 7, 1]
    assert [study.evaluations_to(search, loss) for loss in (9, 6, 5, 1, 0.5)] == [1, 3, 3, 6, math.inf]


def test_a_run_that_diverged_keeps_its_best_but_has_no_last():
    ended = run("gd", "A", [9, 5, 20], status="diverged")
    assert study.best_within(ended, 50) == 5
    assert study.last_within(ended, 3) == 20
    assert study.last_within(ended, 4) == math.inf


# --- tuning -------------------------------------------------------------------------------------------------------

TUNINGS = (
    *(tuning("adam", "A", rate, b25=a, b50=b) for rate, a, b in ((1, 8, 6), (3, 4, 3), (10, 2, 3.2))),
    *(tuning("adam", "B", rate, b25=a, b50=b) for rate, a, b in ((1, 8, 2), (3, 1, 3), (10, 2, 3))),
    tuning("gd", "A", 1, b25=1, b50=math.inf),
    tuning("gd", "B", 1, b25=1, b50=1),
)


def test_a_rate_is_chosen_by_the_geometric_mean_at_each_budget():
    scores = study.rate_scores(TUNINGS, "photo", "adam", 25)
    assert scores == pytest.approx({1: 8, 3: 2, 10: 2})
    assert study.chosen_rate(study.rate_scores(TUNINGS, "photo", "adam", 50)) == 3
    assert study.chosen_rate(study.rate_scores(TUNINGS, "photo", "gd", 25)) == 1
    assert study.chosen_rate(study.rate_scores(TUNINGS, "photo", "gd", 50)) is None


def test_a_wide_rate_is_one_whose_neighbours_are_within_a_tenth():
    assert study.decades({0.1: 9, 1: 1.09, 10: 1, 100: 1.11, 1000: 1}) == pytest.approx(1)
    assert study.decades({0.1: math.inf, 1: 1, 10: 1.2}) == 0


def test_each_budget_has_the_runs_of_its_own_rate():
    runs = [run("adam", pair, [9, 5, k], rate=rate) for pair in "AB" for k, rate in ((3, 3), (2, 10))]
    tunings = [
        *TUNINGS[:6],
        tuning("adam", "A", 30, b25=0.1, b50=99),
        tuning("adam", "B", 30, b25=0.1, b50=99),
    ]
    tunings = [each._replace(best={25: each.best[50], 50: each.best[25]}) for each in tunings]
    found = study.Study((25, 50), tuple(tunings), tuple(runs))
    assert study.field(found, "photo", 25).runs["adam"][0].learning_rate == 3
    assert study.field(found, "photo", 50).runs == {}  # the best rate there, 30, has not run


# --- scores -------------------------------------------------------------------------------------------------------


def test_a_budget_at_which_no_arm_has_run_on_all_pairs_has_no_rows():
    runs = [run("a", "A", [8, 4, 2]), run("b", "B", [8, 2, 4])]
    field = study.field(study.Study((2, 3), (), tuple(runs)), "photo", 2)
    for found in (study.ratios(field), study.ratios(field, study.last_within), study.costs(field, 1.5)):
        assert found == {}


def test_losses_are_over_the_best_that_any_arm_found_for_the_pair():
    runs = [
        run("a", "A", [8, 4, 2]),
        run("a", "B", [8, 8, 6]),
        run("b", "A", [8, 2, 4]),
        run("b", "B", [8, 3, 3]),
    ]
    found = study.Study((2, 3), (), tuple(runs))
    within_2, within_3 = (study.field(found, "photo", budget) for budget in (2, 3))
    for scores, a, b in (
        (study.ratios(within_2), [2, 8 / 3], [1, 1]),
        (study.ratios(within_3, study.last_within), [1, 2], [2, 1]),
        (study.costs(within_3, 1.5), [3, np.inf], [2, 2]),
    ):
        assert [*scores] == ["a", "b"]
        np.testing.assert_allclose([*scores.values()], [a, b])


def test_arms_are_told_against_the_best():
    """By hand: b has half of a's loss on A after 3 and a third on B; what a has after 3, b has after 2 and never."""
    runs = [
        run("a", "A", [8, 4, 2]),
        run("a", "B", [9, 9, 3]),
        run("b", "A", [8, 2, 1]),
        run("b", "B", [9, 1, 1]),
    ]
    found = study.Study((2, 3), (), tuple(runs))
    fields = [study.field(found, "photo", budget) for budget in found.budgets]
    head, (row,) = study_report.against(found, fields)
    assert head[-2:] == ["b ahead, pairs", "its evaluations to the other's loss after 3"]
    assert row == ["a", "4.24 (2.00 to 9.00)", "2.45 (2.00 to 3.00)", "2 of 2", "2, 2 to 2"]
    found = study.Study((3,), (), (*runs[:2], *(each._replace(total=each.total + 1.2) for each in runs[2:])))
    _, (row,) = study_report.against(found, [study.field(found, "photo", 3)])
    assert row[0] == "a"
    assert row[2:] == ["1 of 2", "—, 2 to 2, 1 never"]


def test_the_last_loss_of_each_budget_is_over_the_best_known():
    runs = [run("a", "A", [8, 2, 4]), run("b", "A", [8, 4, 3, 9], status="diverged")]
    found = study.Study((2, 3, 5), (), tuple(runs))
    head, rows = study_report.standing(
        found, [study.field(found, "photo", budget) for budget in found.budgets]
    )
    first, last = (head.index(f"last loss after {budget}") for budget in (2, 5))
    assert {row[0]: row[first : last + 1] for row in rows} == {
        "a": ["1.00", "2.00", "2.00"],
        "b": ["2.00", "1.50", "∞"],
    }


def test_an_arm_that_no_rate_brings_through_is_told_to_have_diverged():
    runs = [run("lbfgs", pair, [9, 5, 3]) for pair in "AB"]
    tunings = [tuning("gd", pair, 1, b2=5.0, b3=math.inf) for pair in "CD"]
    found = study.Study((2, 3), tuple(tunings), tuple(runs))
    fields = [study.field(found, "photo", budget) for budget in found.budgets]
    _, rows = study_report.losses(found, fields)
    assert rows[-1] == ["gd", "", "has not run", "diverged"]


def test_a_performance_profile_is_dolan_and_mores():
    """Two solvers and four problems by hand: a solves three, b two, no one the last."""
    costs = np.array([[10, 20, 10, np.inf], [20, 10, np.inf, np.inf]])
    profile = study.performance_profile(costs, np.array([1, 1.9, 2, 100]))
    np.testing.assert_array_equal(profile, [[0.5, 0.5, 0.75, 0.75], [0.25, 0.25, 0.5, 0.5]])


def test_the_band_of_a_profile_holds_it_and_is_nothing_where_all_pairs_agree():
    costs = np.array([[10, 20, 10, 30, 10, 10], [20, 10, np.inf, 10, 10, 10]], float)
    factors = np.array([1.0, 2.0])
    low, high = study.profile_band(costs, factors)
    profile = study.performance_profile(costs, factors)
    assert np.all((low <= profile) & (profile <= high))
    same = np.array([[10, 10], [20, 20]], float)
    np.testing.assert_array_equal(*study.profile_band(same, factors))


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    """Of 100 samples of 10 log-normal ratios of median 2, some 95 intervals hold 2; few pairs make it fewer."""
    inside = 0
    for seed in range(100):
        ratios = 2 * np.exp(np.random.default_rng(seed).normal(0, 0.3, 10))
        value, low, high = study.mean_interval(ratios)
        assert low < value < high
        inside += low <= 2 <= high
    assert 83 <= inside <= 99


def test_the_interval_of_a_few_goes_from_the_least_to_the_most():
    assert study.mean_interval(np.array([1.0, 4.0, 2.0])) == pytest.approx((2, 1, 4))


def test_intervals_of_what_does_not_vary_and_of_what_is_infinite():
    assert study.mean_interval(np.array([3.0, 3.0])) == pytest.approx((3, 3, 3))
    assert study.mean_interval(np.array([3.0, np.inf])) == (math.inf, math.inf, math.inf)


def test_ranks_share_ties_and_have_nemenyis_critical_difference():
    """Demšar 2006, table 5a: q is 2.343 for three and 2.569 for four classifiers at 5 %."""
    losses = np.array([[1, 1, 1, 1], [2, 2, 3, 2], [2, 3, 2, 3]], float)
    found = study.ranks(losses)
    np.testing.assert_allclose(found.mean, [1, (2.5 + 2 + 3 + 2) / 4, (2.5 + 3 + 2 + 3) / 4])
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 4)), rel=1e-3)
    many = study.ranks(RNG.uniform(size=(4, 14)))
    assert many.critical == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), rel=1e-3)


def test_a_front_has_what_nothing_else_beats_in_both():
    points = np.array([[1, 5], [2, 2], [3, 3], [5, 1], [5, 2], [0.5, 9], [2, 2]])
    assert study.front(points) == [5, 0, 1, 3]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long():
    """A study of long noisy curves, one of them diverged, and of a monotone one."""
    budgets = (25, 100, 203, 700)
    noisy = [100 / np.sqrt(np.arange(1, 701)) * np.exp(RNG.normal(0, 0.1, 700)) for _ in range(4)]
    smooth = 50 / np.sqrt(np.arange(1, 701))
    runs = [run("adam", pair, noisy[i], rate=3.0) for i, pair in enumerate("ABC")]
    runs += [
        run("lbfgs", pair, smooth * (1 + i), evaluations=1 + 2 * np.arange(700))
        for i, pair in enumerate("ABC")
    ]
    runs += [run("gd", pair, noisy[3][:40], status="diverged", rate=10.0) for pair in "ABC"]
    best = {25: 2.0, 100: 1.5, 203: 1.375, 700: 1.25}
    tunings = [study.Tuning("photo", arm, "D", rate, best) for arm, rate in (("adam", 3.0), ("gd", 10.0))]
    return study.Study(budgets, tuple(tunings), tuple(runs), "9x9")


def test_packing_keeps_every_score(long):
    packed = study.unpack(study.pack(long))
    assert (packed.budgets, packed.size) == (long.budgets, long.size)
    assert packed.tunings == long.tunings
    assert sum(len(each.total) for each in packed.runs) < 0.7 * sum(len(each.total) for each in long.runs)
    for budget in long.budgets:
        before, after = study.field(long, "photo", budget), study.field(packed, "photo", budget)
        assert ([*before.runs], before.pairs) == ([*after.runs], after.pairs)
        for arm in before.runs:
            for within in (study.best_within, study.last_within):
                scores = (study.ratios(field, within)[arm] for field in (after, before))
                np.testing.assert_allclose(*scores, rtol=1e-6)
            for target in study.TARGETS:
                np.testing.assert_array_equal(*(study.costs(field, target)[arm] for field in (after, before)))
    assert study.pack(packed) == study.pack(long)


def test_studies_of_other_budgets_are_not_merged_and_nothing_counts_twice(long):
    def some(kept):
        runs, tunings = (tuple(each for each in all_ if kept(each.arm)) for all_ in (long.runs, long.tunings))
        return long._replace(runs=runs, tunings=tunings)

    arms = [some(lambda arm: arm == "gd"), some(lambda arm: arm != "gd")]
    whole = study.merge(arms)
    assert sorted(whole.runs, key=id) == sorted(long.runs, key=id)
    assert sorted(whole.tunings) == sorted(long.tunings)
    with pytest.raises(ValueError, match="budgets"):
        study.merge([long, long._replace(budgets=(25,))])
    with pytest.raises(ValueError, match="sizes"):
        study.merge([arms[0]._replace(size="64"), arms[1]])
    with pytest.raises(ValueError, match=r"adam on A \(photo\) is in two"):
        study.merge([long, arms[1]])
    with pytest.raises(ValueError, match=r"gd on D \(photo\) is in two"):
        study.merge([arms[0], long._replace(runs=arms[1].runs)])


def test_the_page_has_every_table_and_figure(long, tmp_path):
    study_report.write(tmp_path, long, "--size=9\n")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table>") == len(study_report.TABLES)
    assert page.count("<img ") == len(study_report.FIGURES)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"photo-{name}.png" for name in study_report.FIGURES
    }
    assert {path.name for path in tmp_path.iterdir()} <= {*workdir.FILES}
    names = itertools.product(study_report.TITLES, study_report.FIGURES)
    assert {f"{problem}-{figure}.png" for problem, figure in names} <= {*workdir.FILES}
    tables = (tmp_path / "tables.md").read_text()
    assert "| gd | 10 |" in tables
    assert "∞" not in tables.split("standing")[0], "a run that diverged has a best so far"


def test_two_arms_at_the_ends_of_the_plane_are_both_in_it():
    measured = (("gd", 1.0, 0.1), ("adam", 0.2, 0.7))
    runs = tuple(run(arm, "A", [4, 2], style=style, lpips=lpips) for arm, style, lpips in measured)
    found = study.Study((2,), (), runs)
    (axes,) = study_report.plane(found, [study.field(found, "photo", 2)]).axes
    assert {text.get_text() for text in axes.texts} == {"gd", "adam"}
    assert axes.get_title(loc="left") == ""


# --- the command --------------------------------------------------------------------------------------------------

FLAGS = (
    *("--size=32x24", "--budgets=3,5", "--learning_rates=0.1,0.3,1,3,10,30,100", "--optimizer=lbfgs"),
    *("--optimizer=adam", "--optimizer=gd", "--style_layer=block1_conv1", "--content_layer=block1_conv1"),
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    flags = (*FLAGS, "--tensorboard", f"--workdir={folder}")
    done = narrow.run("experiments.study", *flags, JAXSTYLE_PICTURES="")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_articles_problem_has_losses_network_and_start_of_the_six_experiments():
    code = "import json; from experiments import study; print(json.dumps(study.PROBLEMS['article']))"
    done = narrow.run("-c", code)
    flags = (ROOT / "configs" / "experiment3.flags").read_text().splitlines()
    asked = dict(line.removeprefix("--").split("=", 1) for line in flags if line.startswith("--"))
    assert json.loads(done.stdout) == {name: asked[name] for name in ("loss", "init", "weights")}


def test_a_study_tunes_on_some_pairs_and_judges_on_others(ran):
    found = study.unpack((ran / "curves.npz").read_bytes())
    assert found.size == "32x24"
    assert {each.pair for each in found.tunings} == {"cat + night", "portrait + facets"}
    assert {each.pair for each in found.runs} == {"portrait + night", "cat + facets"}
    assert {each.arm for each in found.tunings} == {"adam", "gd"}
    for budget in (3, 5):
        assert list(study.field(found, "photo", budget).runs) == ["lbfgs", "adam", "gd"]
    for arm in ("adam", "gd"):
        rates = {each.learning_rate for each in found.tunings if each.arm == arm}
        assert len(rates) == 5
        chosen = {study.chosen_rate(study.rate_scores(found.tunings, "photo", arm, n)) for n in (3, 5)}
        assert {each.learning_rate for each in found.runs if each.arm == arm} == chosen
    for each in found.runs:
        rows = np.loadtxt(ran / "arms" / folder(each) / "metrics.csv", delimiter=",", skiprows=1)
        np.testing.assert_allclose(each.total, rows[:, 3], rtol=1e-6)
        assert rows[-1, 1] == 5 or rows[-2, 1] < 5 < rows[-1, 1], "each picture is of the largest budget"
        # Gradient descent at these rates moves no pixel by a level: its picture is the photo.
        assert each.lpips < 1e-6 if each.arm == "gd" else 0.01 < each.lpips < 9
        assert each.style > 0


def folder(each):
    rate = "" if math.isnan(each.learning_rate) else f"-learning_rate={each.learning_rate:g}"
    return f"photo-{each.arm}{rate}-{each.pair.replace(' ', '_')}"


def test_each_run_of_a_study_has_its_curve_in_an_event_file(ran):
    arms = list(ran.glob("arms/*"))
    assert arms
    for arm in arms:
        rows = np.loadtxt(arm / "metrics.csv", delimiter=",", skiprows=1)
        steps, losses = zip(*event_files.read(arm / "tensorboard")["loss/total"], strict=True)
        assert steps == tuple(rows[:, 0])
        np.testing.assert_allclose(losses, rows[:, 3], rtol=1e-6)


def test_the_same_command_runs_nothing_again_and_takes_more_optimizers(ran):
    before = {path: path.stat().st_mtime_ns for path in ran.glob("arms/*/metrics.csv")}
    record = next(ran.glob("arms/*adam*/run.flags"))  # as if begun where less memory was free
    record.write_text(record.read_text().replace("--strips=1\n", "--strips=2\n"))
    more = (*FLAGS, "--optimizer=dog", f"--workdir={ran}")
    done = narrow.run("experiments.study", *more, JAXSTYLE_PICTURES="")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "dog" in (ran / "tables.md").read_text()
    again = f"--flagfile={ran / 'run.flags'}", f"--workdir={ran}"
    done = narrow.run("experiments.study", *again, JAXSTYLE_PICTURES="")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = narrow.run("experiments.study", *FLAGS, "--seed=1", f"--workdir={ran}")
    assert other.returncode == 2
    assert "differ in seed" in other.stderr


def test_a_study_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    flags = "--size=32x24", "--budgets=40", "--learning_rates=1,10", "--test_pairs=1", *FLAGS[-2:]
    optimizers = "--optimizer=adam", "--optimizer=lbfgs"
    for number, begun in (
        (signal.SIGKILL, "parts/*/checkpoints/[0-9]*"),
        (signal.SIGTERM, "arms/*lbfgs*/checkpoints/[0-9]*"),
    ):
        often = "--checkpoint_seconds=0", f"--workdir={tmp_path / 'killed'}"
        with narrow.Process(
            "experiments.study", *flags, *optimizers, *often, JAXSTYLE_PICTURES=""
        ) as process:
            process.until(lambda begun=begun: any((tmp_path / "killed").glob(begun)))
            process.send_signal(number)
            assert process.wait() == (143 if number == signal.SIGTERM else -number), process.stderr.read()
    found = []
    for name in ("killed", "whole"):
        given = *flags, *optimizers, f"--workdir={tmp_path / name}"
        done = narrow.run("experiments.study", *given, JAXSTYLE_PICTURES="")
        assert done.returncode == 0, done.stderr
        found.append(study.unpack((tmp_path / name / "curves.npz").read_bytes()))
    killed, whole = found
    assert killed.tunings == whole.tunings
    assert len(whole.tunings) == 4
    for ours, theirs in zip(killed.runs, whole.runs, strict=True):
        assert (ours.arm, str(ours.learning_rate)) == (theirs.arm, str(theirs.learning_rate))
        np.testing.assert_array_equal(ours.evaluations, theirs.evaluations)
        np.testing.assert_array_equal(ours.total, theirs.total)
        assert (ours.lpips, ours.style, ours.palette) == (theirs.lpips, theirs.style, theirs.palette)


def test_a_page_is_made_anew_from_curves_alone(ran, tmp_path):
    curves = ran / "curves.npz"
    done = narrow.run("experiments.study", f"--curves={curves}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tables.md").read_text() == (ran / "tables.md").read_text()
    assert (tmp_path / "curves.npz").read_bytes() == curves.read_bytes()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--budgets=0",), "--budgets"),
        (("--budgets=25,x",), "--budgets"),
        (("--learning_rates=-1",), "--learning_rates"),
        (("--optimizer=adm",), "--optimizer=adm"),
        (("--curves=README.md",), "--curves=README.md"),
        (("--scales=2",), "--scales=2"),
        (("--steps=9",), "--steps: a study has its own, by --budgets"),
        (("--evaluations=9",), "--evaluations: a study has its own, by --budgets"),
        (("--problem=article", "--weights=other.safetensors"), "--problem=article has its own network"),
        (("--problem=article", "--weights=vgg16-keras", "--budgets=0"), "--budgets"),  # the same network
        (("--style_layer=foo",), "--style_layer=foo"),
        (("--clip", "--optimizer=scipy-lbfgs"), "--clip: scipy-lbfgs cannot"),
        (("--strips=2", "--devices=2"), "--strips=2: a picture that is spread over 2 devices"),
    ],
)
def test_mistakes_are_one_line_that_names_the_flag(flags, named, tmp_path):
    done = narrow.run("experiments.study", *flags, f"--workdir={tmp_path / 'run'}", JAXSTYLE_PICTURES="")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert named in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", [0, 20, 0.5, 0.999])
def test_damaged_curves_are_refused(long, tmp_path, part):
    whole, path = study.pack(long), tmp_path / "curves.npz"
    path.write_bytes(whole[: int(part * len(whole) if part < 1 else part)])
    with pytest.raises(UserError, match=f"--curves={path}: no curves"):
        records.read_curves(str(path), study.unpack)
    path.write_bytes(whole)
    assert records.read_curves(str(path), study.unpack).budgets == long.budgets


def test_a_page_of_curves_overwrites_no_run(tmp_path):
    (tmp_path / "run.flags").write_text("--size=64\n")
    (tmp_path / "report.html").write_text("mine")
    curves = narrow.ROOT / "docs/optimizers/curves-768.npz"
    done = narrow.run("experiments.study", f"--curves={curves}", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "a run of other flags is there" in done.stderr
    assert (tmp_path / "report.html").read_text() == "mine"
    own = pathlib.Path(shutil.copy(curves, tmp_path / "curves.npz"))
    given = f"--curves={own}", f"--workdir={tmp_path}", "--overwrite"
    assert f"--overwrite: would delete {str(own)!r}" in narrow.refused("experiments.study", *given)
    assert own.exists()


def noise(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)).save(path)


def test_pairs_of_any_names_are_tuned_on_apart_and_known_again(tmp_path):
    for seed, name in enumerate(("кот.png", "пёс.png", "ночь.png")):
        noise(tmp_path / name, seed)
    pairs = {"tuning": [["кот.png", "ночь.png"], ["пёс.png", "ночь.png"]], "test": [["пёс.png", "ночь.png"]]}
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    flags = (
        *(
            "--size=32x24",
            "--budgets=2",
            "--learning_rates=1,3",
            "--optimizer=adam",
            f"--workdir={tmp_path / 'run'}",
        ),
        *("--style_layer=block1_conv1", "--content_layer=block1_conv1"),
    )
    where = {"JAXSTYLE_PICTURES": str(tmp_path), "JAXSTYLE_IVANOV2017": ""}
    done = narrow.run("experiments.study", *flags, **where)
    assert done.returncode == 0, done.stderr
    found = study.unpack((tmp_path / "run/curves.npz").read_bytes())
    best = {each.pair: each.best for each in found.tunings if each.learning_rate == 1}
    assert len(best) == len({*map(str, best.values())}) == 2
    noise(tmp_path / "кот.png", 9)
    done = narrow.run("experiments.study", *flags, **where)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "кот.png changed since the run there began" in done.stderr


def test_a_folder_without_pairs_is_refused(tmp_path):
    (tmp_path / "pairs.json").write_text('{"tuning": [], "test": []}')
    flags = (*FLAGS, f"--workdir={tmp_path / 'run'}")
    done = narrow.run("experiments.study", *flags, JAXSTYLE_PICTURES=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "JAXSTYLE_PICTURES: pairs.json has no pair under 'tuning'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_pairs_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        noise(tmp_path / folder / "x.png", 0)
    pairs = [[f"{folder}/x.png", "sample:night"] for folder in ("a", "b")]
    (tmp_path / "pairs.json").write_text(json.dumps({"tuning": pairs, "test": pairs}))
    done = narrow.run(
        *("experiments.study", *FLAGS, f"--workdir={tmp_path / 'run'}"),
        **{"JAXSTYLE_PICTURES": str(tmp_path), "JAXSTYLE_IVANOV2017": ""},
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "x + night" in done.stderr


def test_a_folder_of_pairs_that_lacks_a_picture_is_told_by_its_name(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps({"tuning": [["a.png", "sample:night"]], "test": []}))
    flags = (*FLAGS, f"--workdir={tmp_path / 'run'}")
    done = narrow.run("experiments.study", *flags, JAXSTYLE_PICTURES=str(tmp_path), JAXSTYLE_IVANOV2017="")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "JAXSTYLE_PICTURES: a.png" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "which", "least"),
    [
        ("curves.npz", "", 6),
        ("curves-192.npz", " at 192", 5),
        ("curves-384.npz", " at 384", 3),
        ("curves-768.npz", " at 768", 3),
        ("curves-1000.npz", " to 1000", 3),
    ],
)
def test_the_tables_of_the_page_are_made_of_the_committed_curves(file, which, least):
    found = study.unpack((ROOT / "docs" / "optimizers" / file).read_bytes())
    page = (ROOT / "docs" / "optimizers.md").read_text("utf-8")
    assert len({each[:-1] for each in found.tunings}) == len(found.tunings)  # no pair counts twice
    shown = 0
    for problem in study.problems(found):
        fields = [study.field(found, problem, budget) for budget in found.budgets]
        for name, (make, _) in study_report.TABLES.items():
            if (mark := f"<!-- {problem}{which}: {name} -->\n") in page:
                assert page.partition(mark)[2].startswith(records.markdown(make(found, fields)))
                shown += 1
    assert shown >= least


def test_what_a_step_takes_is_of_the_committed_rows():
    lines = (ROOT / "docs/optimizers/steps.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = {(row["optimizer"], row["size"]): row for row in rows if row["row"] == "optimizer"}
    page = (ROOT / "docs/optimizers.md").read_text("utf-8")
    table = page.partition("<!-- steps -->\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == len(found) / 2 == 9
    for optimizer, *cells in ([cell.strip() for cell in row.strip("|").split("|")] for row in table):
        steps = [found[optimizer, size] for size in (112, 400)]
        shares = [f"{100 * step['share_outside_evaluations']:.1f} %" for step in steps]
        assert cells == shares + [f"{step['peak_bytes'] / 1e9:.2f}" for step in steps]
    for step in (row for row in rows if row["row"] == "step"):
        told = f"{1000 * step['median_s']:.0f} ms at {step['size']}×{step['size']}"  # noqa: RUF001
        assert told in " ".join(page.split())


def test_the_readme_counts_what_the_study_has_run():
    found = study.unpack((ROOT / "docs/optimizers/curves.npz").read_bytes())
    arms = {run.arm for run in found.runs if run.problem == "photo"}
    optimizers = {arm.partition("@")[0].partition(":")[0] for arm in arms}
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"[the study](docs/optimizers.md) of {len(optimizers)} of them." in readme
    assert f"[The study](docs/optimizers.md) has {len(arms)} arms," in readme


@pytest.mark.parametrize(
    ("file", "mark", "count"), [("curves.npz", "answer", 15), ("curves-192.npz", "answer at 192", 19)]
)
def test_the_answer_of_the_page_is_of_the_committed_curves(file, mark, count):
    found = study.unpack((ROOT / "docs" / "optimizers" / file).read_bytes())
    page = (ROOT / "docs/optimizers.md").read_text("utf-8")
    rows = page.partition(f"<!-- {mark} -->\n")[2].partition("\n\n")[0].splitlines()[2:]
    problems = {title: problem for problem, title in study_report.TITLES.items()}
    assert len(rows) == count

    @functools.cache
    def table(problem):
        fields = [study.field(found, problem, budget) for budget in found.budgets]
        return {arm: told for arm, *told in study_report.against(found, fields)[1]}

    for title, arm, *cells in ([cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows):
        *factors, _, reached = table(problems[title])[arm]
        assert cells == [*factors, reached]


def test_at_192_pixels_the_default_has_the_lowest_loss_in_all_cases_but_three_as_the_page_says():
    found = study.unpack((ROOT / "docs/optimizers/curves-192.npz").read_bytes())
    cases, ahead = 0, {}
    for problem, budget in itertools.product(study.problems(found), found.budgets):
        field = study.field(found, problem, budget)
        losses = study.ratios(field)
        best = losses.pop("lbfgs:scaling=spectral@fourier:exponent=0.5")
        for number, pair in enumerate(field.pairs):
            cases += 1
            lower = {arm: other[number] / best[number] for arm, other in losses.items()}
            if lower := {arm: factor for arm, factor in lower.items() if factor <= 1}:
                ahead[problem, budget, pair] = len(lower), min(lower, key=lower.get), min(lower.values())
    assert cases == 120
    pair, adam = "tubingen + picasso selfport1907", "adam:learning_rate=10@fourier:exponent=0.25"
    cosine = "adam:cosine_steps=100,learning_rate=30"
    assert {case[:2]: told[:2] for case, told in ahead.items()} == {
        ("wasserstein", 100): (1, cosine),
        ("article", 25): (5, adam),
        ("article", 50): (2, adam),
    }
    assert [round(ahead["article", budget, pair][2], 2) for budget in (25, 50)] == [0.84, 0.92]
    assert len(ahead) == 3


@pytest.mark.parametrize(
    ("row", "file", "problem"),
    [
        ("128", "curves.npz", "photo"),
        ("192", "curves-192.npz", "photo"),
        ("From noise, at 192", "curves-192.npz", "noise"),
        ("With Wasserstein, at 192", "curves-192.npz", "wasserstein"),
        ("With the article's loss and start, at 192", "curves-192.npz", "article"),
        ("384", "curves-384.npz", "photo"),
        ("Gram matrices, from noise", "curves.npz", "noise"),
        ("Wasserstein", "curves.npz", "wasserstein"),
        ("the article's loss", "curves.npz", "article"),
    ],
)
def test_what_the_page_on_variables_says_of_held_out_pairs_is_of_the_committed_curves(row, file, problem):
    found = study.unpack((ROOT / "docs" / "optimizers" / file).read_bytes())
    page = (ROOT / "docs" / "parametrization.md").read_text("utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row}"))
    runs = study.field(found, problem, 100).runs
    goals = [study.best_within(run, 100) for run in runs["lbfgs"]]
    arms = [f"lbfgs{kind}" for kind in ("@fourier:exponent=0.35", "@fourier:exponent=0.5")]
    arms.append("lbfgs:scaling=spectral@fourier:exponent=0.5")
    for cell, arm in zip(line.split("|")[3:6], arms, strict=True):
        assert bool(cell.strip()) == (arm in runs)
        if arm not in runs:
            continue
        parts = [
            study.evaluations_to(run, goal) / study.evaluations_to(before, goal)
            for run, before, goal in zip(runs[arm], runs["lbfgs"], goals, strict=True)
        ]
        median, _, rest = cell.strip().partition(", ")
        assert median == (f"{np.median(parts):.2f}" if "0.35" in arm else f"**{np.median(parts):.2f}**")
        never = {0: "", 1: "one never", 2: "two never", 3: "three never", 4: "four never"}[
            int(np.isinf(parts).sum())
        ]
        if rest.endswith(" at most"):
            assert f"{max(parts):.2f} at most" == rest
        else:
            assert rest == never


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("To 200 evaluations", "photo"),
        ("To 200, from noise", "noise"),
        ("To 200, Wasserstein", "wasserstein"),
        ("To 200, the article's loss", "article"),
    ],
)
def test_what_that_page_says_of_200_evaluations_is_of_the_committed_curves(row, problem):
    found = study.unpack((ROOT / "docs" / "optimizers" / "curves-200.npz").read_bytes())
    page = (ROOT / "docs" / "parametrization.md").read_text("utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row}"))
    runs = study.field(found, problem, 200).runs
    goals = [study.best_within(run, 200) for run in runs["lbfgs"]]
    runs = runs["lbfgs:scaling=spectral@fourier:exponent=0.5"]
    parts = [study.evaluations_to(run, goal) / 200 for run, goal in zip(runs, goals, strict=True)]
    reached = [part for part in parts if np.isfinite(part)]
    never = ", one never" * (len(parts) - len(reached))
    text = f"**{np.median(parts):.2f}**, {min(reached):.2f} to {max(reached):.2f}{never}"
    assert line.split("|")[5].strip() == text


def test_a_study_that_is_overwritten_forgets_what_was_measured(tmp_path):
    workdir.begin(tmp_path, "--size=9\n", overwrite=False)
    for name in ("measured.json", "curves.npz", "tables.md"):
        (tmp_path / name).write_text("{}")
    workdir.begin(tmp_path, "--size=8\n", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"run.flags"}
