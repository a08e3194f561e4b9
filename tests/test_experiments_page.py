"""docs/experiments.md: tables of the committed curves; what the notebook printed, beside what was measured here."""

import csv
import json
import pathlib

import pytest

from jaxstyle.lab import article

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def printed():
    """The rows of printed.csv: optimizer, iteration, the printed loss, and those of three seeds."""
    with open(DOCS / "experiments" / "printed.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        (row["optimizer"], int(row["iteration"]), *(float(row[name]) for name in ("printed", *SEEDS)))
        for row in rows
    ]


SEEDS = ("seed0", "seed1", "seed2")


def test_the_page_shows_the_committed_losses(printed):
    page = (DOCS / "experiments.md").read_text("utf-8").partition("<!-- printed.csv -->\n")[2]
    for name in dict.fromkeys(row[0] for row in printed):
        cells = {
            iteration: f"{loss / 1e3:.0f}: " + ", ".join(f"{seed / 1e3:.0f}" for seed in sorted(seeds))
            for optimizer, iteration, loss, *seeds in printed
            if optimizer == name
        }
        row = " | ".join(cells.get(iteration, "") for iteration in (20, 40, 60, 80))
        assert f"| `{name}` | {row} |\n" in page


def test_the_printed_losses_are_the_notebooks(printed, study):
    published = json.loads((study / "published.json").read_text())["totals_by_iteration"]
    found = {(name.removesuffix("-tf1gpu"), str(iteration)): loss for name, iteration, loss, *_ in printed}
    assert found == {(name, key): loss for name, losses in published.items() for key, loss in losses.items()}


def test_optimizers_that_do_not_swing_yet_are_at_what_was_printed(printed):
    for name, iteration, loss, *seeds in printed:
        if iteration == 20 and name != "gd":
            assert seeds == pytest.approx([loss] * 3, rel=0.004)
        if name == "adagrad":
            assert seeds == pytest.approx([loss] * 3, rel=0.02)


def test_the_tables_of_the_page_are_made_of_the_committed_curves():
    page = (DOCS / "experiments.md").read_text("utf-8")
    made = article.tables(article.unpack((DOCS / "experiments" / "curves.npz").read_bytes()))
    for name, table in made.items():
        assert page.partition(f"<!-- {name} -->\n")[2].startswith(table), name


def test_the_committed_verdicts_are_those_of_the_committed_curves():
    committed = json.loads((DOCS / "experiments" / "claims.json").read_text("utf-8"))
    runs = article.unpack((DOCS / "experiments" / "curves.npz").read_bytes())
    made = json.loads(json.dumps([article.row(verdict) for verdict in article.judge_all(runs)]))
    (names, numbers), (words, others) = (
        map(list, zip(*leaves(each), strict=True)) for each in (made, committed)
    )
    assert names == words
    assert numbers == pytest.approx(others, rel=1e-6, abs=1e-6)


def leaves(value, path=()):
    """Where each word and number is, with it: numbers apart, as another machine's last digit may differ."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [each for key, item in items for each in leaves(item, (*path, key))]
    plain = isinstance(value, float)
    return [((path, None if plain else value), value if plain else 0.0)]
