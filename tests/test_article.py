"""The page of the six experiments: curves in one file, verdicts by pair, how they move with the thresholds."""

import json

import narrow
import numpy as np
import pytest

from jaxstyle.lab import article, claims, records
from jaxstyle.lab.curves import STATED, Curve
from jaxstyle.runs import journal

STEPS = 200
K = np.arange(STEPS + 1)


def run(label, total, pair="B", seed=0, experiment="experiment6", status="finished", spent=None):
    name, _, rate = label.partition("-learning_rate=")
    total = np.asarray(total, np.float32).astype(float)
    spent = np.arange(1.0, len(total) + 1) if spent is None else spent
    curve = Curve(name, float(rate) if rate else None, status, spent, 0.5 * spent, total)
    return article.Run(experiment, label, pair, seed, curve)


def falling(end, pace=0.1):
    return end + (6e6 - end) * np.exp(-pace * K)


@pytest.fixture
def runs():
    """Adam 1 ends 1.2 times above L-BFGS on B and 1.4 times on B2; L-BFGS takes two evaluations a step at first."""
    return [
        *(run("adam-learning_rate=1", falling(end), pair) for pair, end in (("B", 3.6e5), ("B2", 4.2e5))),
        *(run("lbfgs", falling(3e5, 0.2), pair, spent=1.0 + K + np.minimum(K, 10)) for pair in ("B", "B2")),
    ]


def test_a_file_gives_the_curves_back_to_the_bit(runs):
    diverged = run("gd-learning_rate=10", [6e6, 9e6, np.inf], status="diverged")
    converged = run("lbfgs", [6e6, 3e5, 3e5], "C", spent=np.array([1.0, 4.0, 4.0]))
    given = [*runs, diverged, converged]
    for before, after in zip(given, article.unpack(article.pack(given)), strict=True):
        assert before[:-1] == after[:-1]
        assert before.curve[:3] == after.curve[:3]
        assert before.curve.total.tolist() == after.curve.total.tolist()
        assert before.curve.evaluations.tolist() == after.curve.evaluations.tolist()
        # Of seconds what an evaluation takes in the median step.
        assert after.curve.seconds.tolist() == (0.5 * after.curve.evaluations).tolist()


def test_verdicts_are_told_by_pair_with_what_they_turn_on(runs):
    table = records.markdown(article.verdicts_table(article.judge_all(runs)))
    (line,) = (line for line in table.splitlines() if line.startswith("| 6b "))
    assert "**mixed**" in line
    assert "B: 1 of 1; late adam 1/lbfgs 1.20<br>B2: 0 of 1; late adam 1/lbfgs 1.40" in line


def test_claims_stand_under_what_came_of_them(runs):
    _, rows = article.outcomes_table(article.judge_all(runs))
    found = {row[0]: row[1:] for row in rows}
    assert list(found) == ["**holds**", "**mixed**"]
    assert found["**mixed**"] == ["1", "6b Adam 1 becomes almost L-BFGS"]
    assert found["**holds**"][0] == "3"


def test_the_optimizers_that_the_article_ran_come_first_and_others_where_they_fare_otherwise(runs):
    scipy = [run("scipy-lbfgs", falling(4e5, 0.2), pair) for pair in ("B", "B2")]
    _, rows = article.verdicts_table(article.judge_all([*runs, *scipy]))
    found = {row[0]: row[1:] for row in rows}
    assert found["6a"][1] == "**mixed**"  # on B, Adam 1 passes SciPy's
    assert found["6a"][3] == "6a **holds**"
    assert "late adam 1/lbfgs 0.90" in found["6b"][2]


def test_seeds_of_a_pair_are_told_as_a_range(runs):
    more = [each._replace(seed=1) for each in runs if each.pair == "B"]
    more[0] = run("adam-learning_rate=1", falling(3.9e5), "B", 1)
    table = records.markdown(article.verdicts_table(article.judge_all([*runs, *more])))
    assert "B: 1 of 2; late adam 1/lbfgs 1.20 to 1.30<br>" in table


def test_a_seed_in_which_there_is_nothing_to_judge_has_no_part_in_the_range():
    holds = {"holds": True, "effect": {"wobble": 0.1, "wobble before": 0.2}}
    found = {"B, seed 0": holds, "B, seed 1": {"holds": None, "effect": {}}}
    for order in (found, dict(reversed(found.items()))):
        _, ((*_, by_pair, _),) = article.verdicts_table([claims.verdict_of("2a", "GD is steadier", order)])
        assert by_pair == "B: 1 of 1; wobble 0.10, wobble before 0.20"


def test_a_table_tells_how_verdicts_move_with_the_thresholds(runs):
    head, rows = article.readings_table(runs)
    found = dict(zip(head[1:], {row[0]: row[1:] for row in rows}["6b"], strict=True))
    assert found["as stated"] == "mixed"
    assert (found["factor 1.1"], found["1.5"]) == ("**fails**", "**holds**")
    assert found["wobble 5 %"] == found["20 %"] == found["by step"] == "mixed"
    assert "6a" not in {row[0] for row in rows}  # no reading moves it


def test_by_step_a_greedy_optimizer_is_not_charged_its_evaluations():
    steps = falling(3e5, 0.05)
    arms = [run("adam-learning_rate=1", falling(3.5e5, 0.06)), run("lbfgs", steps, spent=1.0 + 3 * K)]
    found = {
        clock: article.judge("experiment6", arms, by=STATED._replace(clock=clock))
        for clock in ("step", "evaluation")
    }
    late = {
        clock: next(each for each in verdicts if each.id == "6b").runs["B, seed 0"]["late"]["lbfgs"]
        for clock, verdicts in found.items()
    }
    assert late["step"] == pytest.approx(steps[-20:].mean(), rel=1e-3)
    assert late["evaluation"] == pytest.approx(steps[60:67].mean(), rel=0.05)  # a third as far


def test_size_is_judged_at_the_same_pair_against_as_many_steps():
    """Twice the size leaves less of the start than as many steps of experiment 3, though not than all of them."""
    small = [
        run(f"{name}-learning_rate=10", falling(3e5, 0.02), experiment="experiment3")
        for name in ("gd", "adadelta")
    ]
    large = [
        run(f"{name}-learning_rate=10", falling(3e5, 0.03)[:101], experiment="experiment2")
        for name in ("gd", "adadelta")
    ]
    (verdict,) = (each for each in article.judge_all([*small, *large]) if each.id == "2-size-1")
    assert (verdict.verdict, list(verdict.runs)) == ("holds", ["B, seed 0"])
    other = [each._replace(pair="B2") for each in small]
    assert not any(each.id == "2-size-1" for each in article.judge_all([*other, *large]))


def test_the_best_is_judged_over_all_experiments(runs):
    lost = [
        run("adam-learning_rate=1", falling(2e5), "B", 1),
        run("lbfgs", falling(3e5, 0.2), "B", 1),
    ]
    (verdict,) = (each for each in article.judge_all([*runs, *lost]) if each.id == "best")
    assert (verdict.verdict, verdict.held, verdict.judged) == ("holds", 2, 3)
    assert "B, seed 1 of experiment 6" in verdict.runs
    (verdict,) = (each for each in article.judge_all([*runs[::2], *lost]) if each.id == "best")
    assert verdict.verdict == "mixed"


def test_losses_are_those_that_a_budget_pays_for(runs):
    head, rows = article.losses_table(runs)
    assert head == [
        "evaluations, pair",
        *(f"{budget}, {pair}" for budget in (50, 100) for pair in ("B", "B2")),
    ]
    cells = {row[0]: row[1:] for row in rows}
    # Step 39 of L-BFGS, which has 50 evaluations then.
    assert cells["`lbfgs`"][0] == f"**{falling(3e5, 0.2)[39] / 1e3:.0f}**"
    assert cells["`adam 1`"][2] == f"{falling(3.6e5)[99] / 1e3:.0f}"


def command(*flags, cwd):
    return narrow.run("experiments.article", *flags, cwd=cwd)


def test_the_page_is_remade_of_its_own_curves(runs, tmp_path):
    (tmp_path / "curves.npz").write_bytes(article.pack(runs))
    done = command("--curves=curves.npz", "--workdir=page", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "page"
    assert (made / "curves.npz").read_bytes() == (tmp_path / "curves.npz").read_bytes()
    verdicts = {row["id"]: row["verdict"] for row in json.loads((made / "claims.json").read_text())}
    assert verdicts == {"6a": "holds", "6b": "mixed", "6-best": "holds", "best": "holds"}
    assert "<!-- readings -->" in (made / "tables.md").read_text("utf-8")
    assert (made / "experiment6.png").exists()


def test_a_figure_by_second_has_the_first_seed_of_each_pair(runs, tmp_path):
    slow = [each.curve._replace(seconds=100 * each.curve.seconds) for each in runs]
    more = [each._replace(seed=1, curve=curve) for each, curve in zip(runs, slow, strict=True)]
    more += [each._replace(pair="A", seed=2) for each in runs[:1]]  # the first of another pair
    made = {}
    for name, shown in (("both", [*runs, *more]), ("alone", [*runs, more[-1]])):
        (tmp_path / f"{name}.npz").write_bytes(article.pack(shown))
        assert command(f"--curves={name}.npz", f"--workdir={name}", cwd=tmp_path).returncode == 0
        made[name] = [(tmp_path / name / f"experiment6{end}.png").read_bytes() for end in ("", "-seconds")]
    assert made["both"][1] == made["alone"][1]
    assert made["both"][0] != made["alone"][0]


def test_a_comparison_is_not_counted_twice(runs):
    with pytest.raises(ValueError, match="adam-learning_rate=1 of experiment6, pair B, seed 0"):
        article.joined([], [*runs, *runs])


def test_a_page_of_the_experiments_is_not_put_over_one_of_a_study(runs, tmp_path):
    curves, workdir = tmp_path / "curves.npz", tmp_path / "page"
    curves.write_bytes(article.pack(runs))
    narrow.run("experiments.article", f"--curves={curves}", f"--workdir={workdir}", check=True)
    study = narrow.ROOT / "docs/optimizers/curves-768.npz"
    done = narrow.run("experiments.study", f"--curves={study}", f"--workdir={workdir}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "a run of other flags is there" in done.stderr


@pytest.fixture
def comparison(tmp_path):
    """One of experiment 6 with an arm that has ended, whose picture is gone, and one whose record is damaged."""
    folder = tmp_path / "compared"
    for name, record in (("a", b"--optimizer=adam:learning_rate=1\n"), ("b", b"--optimizer=\xff\n--gone\n")):
        arm = folder / "arms" / name
        arm.mkdir(parents=True)
        (arm / "run.flags").write_bytes(record)
        facts = {
            "status": "finished",
            "seed": 0,
            "pictures": {f"{name}.png": {}},
            "optimizer": {"name": name},
        }
        (arm / "manifest.json").write_text(json.dumps(facts))
        journal.write_metrics(
            arm / "metrics.csv", np.float64([[k, k + 1, k, 9 - k, 1, 1, 1] for k in range(3)])
        )
    (folder / "run.flags").write_text("--claims=experiment6\n")
    return folder


def test_arms_without_a_picture_or_with_a_damaged_record_are_read_as_they_are(comparison):
    done = command(f"--comparison={comparison}", "--workdir=page", cwd=comparison.parent)
    assert done.returncode == 0, done.stderr
    found = article.unpack((comparison.parent / "page/curves.npz").read_bytes())
    assert [each.label for each in found] == ["adam-learning_rate=1", "_"]
    assert not (comparison.parent / "page/experiment6-pictures.png").exists()


def test_a_page_deletes_no_comparison_that_it_is_made_of(comparison):
    done = command(
        f"--comparison={comparison}", f"--workdir={comparison}", "--overwrite", cwd=comparison.parent
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "--overwrite: would delete" in done.stderr
    assert (comparison / "arms/a/metrics.csv").is_file()


def test_other_seeds_are_added_to_the_curves_of_a_page_and_the_same_ones_are_not(runs):
    other = [each._replace(seed=1) for each in runs]
    assert article.joined(runs, other) == [*runs, *other]
    with pytest.raises(ValueError, match="lbfgs of experiment6, pair B2, seed 0"):
        article.joined(runs, [runs[-1]])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--curves=none.npz",), "--curves=none.npz"),
        (("--comparison=none",), "--comparison=none"),
        (("--curves=a", "--comparison=b"), "--comparison"),
        ((), "--comparison: nothing has ended"),
    ],
)
def test_what_is_no_experiment_is_told_in_one_line(flags, named, tmp_path):
    done = command(*flags, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert named in done.stderr
    assert not (tmp_path / "runs").exists()
