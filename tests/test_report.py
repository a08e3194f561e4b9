"""The report: what it draws and tabulates, that it needs nothing else, and that nobody's file name is code."""

import html.parser
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxstyle.lab import figures, records, report
from jaxstyle.runs import journal

NASTY = "</script><script>alert('\"')</script>\n$x_{<b>&Ω猫\udcff.png"


def make_arm(name, label=None, pair="a.jpg + b.jpg", seed=0, status="finished", steps=30, pace=0.1):
    k = np.arange(steps + 1)
    total = 100 + 900 * np.exp(-pace * k)
    rows = np.stack([k, k + 1, 0.5 * k, total, 0.1 * total, 0.8 * total, 0.1 * total], 1)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 80, 40)).save(buffer, "PNG")
    manifest = {
        "pictures": {
            "sample:portrait": {"shapes": {"content": [30, 40, 3]}},
            NASTY: {"shapes": {"style": [20, 20, 3]}},
        },
        "seed": seed,
        "status": status,
    }
    return records.Arm(name, label or name, pair, seed, status, manifest, rows, buffer.getvalue())


CLAIM = {"id": "1a", "claim": "x < y & z", "verdict": "not testable", "held": 0, "judged": 0, "runs": {}}


class Page(html.parser.HTMLParser):
    """The elements of a page, its text outside of scripts, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.count, self.loads, self.text, self.script = {}, [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.script = tag == "script"
        self.loads += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.script = False

    def handle_data(self, data):
        if not self.script:
            self.text += data


@pytest.fixture(scope="module")
def arms():
    return [
        make_arm("adam", pace=0.2),
        make_arm("lbfgs"),
        make_arm("lbfgs-seed1", "lbfgs", seed=1, pace=0.15),
        make_arm("adam-B2", "adam", records.printable(NASTY), status="diverged", steps=5),
    ]


def test_a_run_is_read_as_it_was_recorded(tmp_path):
    assert records.read_arm(tmp_path / "absent", "adam") is None
    arm = make_arm("adam")
    journal.write_metrics(tmp_path / "metrics.csv", arm.rows)
    journal.write_manifest(
        tmp_path, {"pictures": {"/x/a.jpg": {}, "b.jpg": {}}, "seed": 3, "status": "finished"}
    )
    (tmp_path / "image.png").write_bytes(arm.image)
    found = records.read_arm(tmp_path, "adam")
    assert (found.pair, found.seed, found.status, found.keep) == ("a.jpg + b.jpg", 3, "finished", "last")
    (tmp_path / "run.flags").write_text("--bits=8\n--keep=best\n--seed=3\n")
    assert records.read_arm(tmp_path, "adam").keep == "best"
    np.testing.assert_allclose(found.rows, arm.rows, rtol=1e-6)
    assert found.image == arm.image
    (tmp_path / "manifest.json").write_text("{")
    assert records.read_arm(tmp_path, "adam") is None


def test_a_picture_is_captioned_with_the_loss_of_the_iterate_that_it_is(arms):
    arm = arms[0]._replace(rows=arms[0].rows[[0, 9, 3]])  # it ends higher than it was
    assert records.image_loss(arm) == f"loss {arm.rows[2, 3]:.4g}"
    assert records.image_loss(arm._replace(keep="best")) == f"loss {arm.rows[1, 3]:.4g} at step 9"
    assert "loss" not in records.image_loss(arm._replace(keep="average"))
    assert records.image_loss(arm._replace(status="diverged")).endswith(
        f"; diverged after step {arm.rows[2, 0]:.0f}"
    )


def test_labels_are_safe_names_that_tell_arms_apart_and_stay_when_arms_are_added():
    texts = ["adam", "adam:learning_rate=10, b1=0.9", "adam", "lbfgs", "gd:learning_rate=../x"]
    found = records.labels(texts)
    assert list(found) == ["adam", "adam-learning_rate=10,b1=0.9", "adam-2", "lbfgs", "gd-learning_rate=.._x"]
    assert list(found.values()) == texts
    for count in range(1, len(texts)):
        assert list(records.labels(texts[:count])) == list(found)[:count]


def test_the_summary_has_final_and_best_losses():
    arm = make_arm("adam")
    arm.rows[20, 3] = 7.5
    (row,) = records.summary_rows([arm])
    assert (row["steps"], row["evaluations"], row["seconds"]) == (30, 31, 15.0)
    assert row["seconds_per_evaluation"] == pytest.approx(15 / 31, abs=1e-6)
    assert (row["best_step"], row["best_total"]) == (20, "7.5")
    assert float(row["final_total"]) == pytest.approx(arm.rows[30, 3])
    assert tuple(row) == records.SUMMARY


def test_a_budget_brings_an_arm_to_its_last_iterate_within_it():
    slow, fast = make_arm("slow", steps=120), make_arm("fast", steps=60, pace=0.3)
    assert records.loss_within(slow, "evaluations", 50) == slow.rows[49, 3]  # row k has k + 1 evaluations
    assert records.loss_within(slow, "seconds", 10.3) == slow.rows[20, 3]  # and k / 2 seconds
    assert records.loss_within(fast, "evaluations", 62) is None
    others = [fast._replace(seed=seed, rows=fast.rows.copy()) for seed in (1, 2)]
    others[0].rows[:, 3] *= 9
    table = records.by_budget([slow, fast, *others])
    assert list(table) == [("evaluations", 50), ("evaluations", 100), ("seconds", 10), ("seconds", 30)]
    assert table["evaluations", 50] == {"slow": slow.rows[49, 3], "fast": fast.rows[49, 3]}
    assert list(table["evaluations", 100]) == ["slow"]


def test_all_files_are_written_and_with_no_arms_too(arms, tmp_path):
    report.write(tmp_path, [], [], "")
    assert {path.name for path in tmp_path.iterdir()} == {"summary.csv", "report.html"}
    report.write(tmp_path, arms, [CLAIM], "--steps=1\n")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("summary.csv", "report.html", "losses.png", "pictures.png")
    }


def test_the_figure_has_a_row_for_each_pair_and_an_axis_for_each_clock(arms):
    figure = figures.losses(arms)
    assert len(figure.axes) == 2 * 3
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["step", "evaluations", "seconds"]
    assert all(axes.get_yscale() == "log" for axes in figure.axes)
    by_evaluation = figure.axes[1].lines[0]
    np.testing.assert_array_equal(by_evaluation.get_xdata(), arms[0].rows[:, 1])
    np.testing.assert_array_equal(by_evaluation.get_ydata(), arms[0].rows[:, 3])


def test_large_losses_are_written_out_with_their_thousands_apart():
    written = {
        1e-5: "1e-05",
        0.05: "0.05",
        1: "1",
        500: "500",
        5e5: "500 000",
        2e6: "2 000 000",
        1e9: "1e+09",
    }
    assert {value: figures.number(value).replace("\u202f", " ") for value in written} == written


def test_by_one_clock_the_pairs_stand_side_by_side_under_short_names(arms):
    named = [arm._replace(label=f"{arm.label}-learning_rate=10") for arm in arms]
    figure = figures.losses(named, clocks=("evaluations",))
    left, right = (axes.get_position() for axes in figure.axes)
    assert left.y0 == right.y0
    assert left.x1 < right.x0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lbfgs 10", "adam 10"]


def test_the_sheet_has_photo_and_style_before_the_results(arms):
    titles = [axes.get_title() for axes in figures.pictures(arms[:2]).axes if axes.get_title()]
    assert titles[0] == "sample:portrait"
    assert [title.partition("\n")[0] for title in titles[2:]] == ["adam", "lbfgs"]


def test_a_wild_curve_is_drawn_as_its_running_median_in_a_band():
    rows = make_arm("wild", steps=400).rows.copy()
    rows[:, 3] = 100 * np.where(np.arange(401) % 2, 3.0, 1.0)
    rows[200, 3] = 1e6
    wild = make_arm("wild", steps=400)._replace(rows=rows)
    axes = figures.losses([wild]).axes[0]
    (line,), (band,) = axes.lines, axes.collections
    # To and fro: its middle, but where the spike has the place of a low one.
    assert np.all(line.get_ydata()[8:188] == 200)
    assert set(line.get_ydata()[8:]) == {200, 300}
    assert band.get_paths()[0].vertices[:, 1].max() == 300


def test_an_optimizer_has_one_colour_in_all_figures():
    one = figures.colours(["gd-learning_rate=3", "adam-learning_rate=10", "lbfgs", "adam-learning_rate=1"])
    other = figures.colours(["lbfgs", "adam-learning_rate=1", "scipy-lbfgs", "lbfgs@fourier:exponent=0.5"])
    assert one["lbfgs"] == other["lbfgs"]
    assert one["adam-learning_rate=10"] == other["adam-learning_rate=1"]
    assert one == figures.colours(reversed(one))
    assert len({*figures.colours(["adam-learning_rate=10", "adam-learning_rate=10-2"]).values()}) == 2
    large, small = figures.colours(["adam-learning_rate=1e3", "adam-learning_rate=2"]).values()
    assert (large, small) == (one["adam-learning_rate=10"], one["adam-learning_rate=1"])
    assert len({*one.values()}) == 4
    assert len({*other.values()}) == 4
    assert len(figures.colours(map(str, range(50)))) == 50


def test_the_figure_of_one_run_has_its_total_and_each_term(arms):
    (axes,) = figures.terms(arms[0].rows).axes
    assert [line.get_label() for line in axes.lines] == ["total", "content", "style", "tv"]
    for column, line in enumerate(axes.lines, 3):
        np.testing.assert_array_equal(line.get_ydata(), arms[0].rows[:, column])


def test_an_arm_that_blows_up_does_not_flatten_the_others(arms):
    broken = arms[0]._replace(rows=arms[0].rows.copy())
    broken.rows[-1, 3] = 1e30
    low, high = figures.loss_range([broken.rows, arms[1].rows])
    assert low < 150
    assert 1000 < high < 1e5


def test_the_page_needs_nothing_else_and_has_each_part(arms):
    page = Page(report.page("title", arms, [CLAIM], "--steps=1\n"))
    assert all(value.startswith("data:image/png;base64,") for value in page.loads)
    assert page.count["img"] == len(arms) + 2  # and the photo of each pair
    for words in ("10 seconds", "--steps=1", "x < y & z", "not testable", "lbfgs-seed1", "diverged"):
        assert words in page.text


@pytest.mark.parametrize("loss", [0, np.inf, np.nan])
def test_losses_that_no_logarithm_shows_are_no_fault(arms, loss, tmp_path):
    rows = arms[0].rows.copy()
    rows[:, 3:] = loss
    report.write(tmp_path, [arms[0]._replace(rows=rows)], [], "")
    report.write(tmp_path, [arms[0]._replace(rows=rows), arms[1]], [], "")
    figures.png(figures.terms(rows))
    figures.png(figures.terms(rows[:1]))


def test_a_picture_that_is_not_there_any_more_is_named(arms):
    page = Page(report.page("title", arms[:1], [], ""))
    assert "sample:portrait" in page.text
    assert page.text.count("is not there any more") == 1


def test_file_names_are_text_wherever_they_appear(arms, tmp_path):
    plain = Page(report.page("title", arms, [CLAIM], "--content=a.png\n"))
    claim = CLAIM | {"runs": {NASTY: {"holds": True}}}
    nasty_arms = [arm._replace(pair=records.printable(NASTY)) for arm in arms]
    text = report.page(NASTY, nasty_arms, [claim], f"--content={NASTY}\n")
    text.encode()
    assert "<script>alert" not in text
    nasty = Page(text)
    assert nasty.count["script"] < plain.count["script"]  # one pair, so one plot less, and nothing more
    assert nasty.text.count("</script><script>alert('\"')</script>") >= 3
    report.write(tmp_path, nasty_arms, [claim], NASTY)


def test_the_curves_can_be_seen_by_each_clock_and_on_both_scales(arms):
    figure = json.loads(report._plot(arms[:3], figures.colours(["adam", "lbfgs"])).to_json())
    clocks, scales = (menu["buttons"] for menu in figure["layout"]["updatemenus"])
    assert [button["label"] for button in clocks] == ["by step", "by evaluations", "by seconds"]
    assert clocks[2]["args"][0]["x"][1] == arms[1].rows[:, 2].tolist()
    assert [button["args"][0]["yaxis.type"] for button in scales] == ["log", "linear"]
    assert [trace["name"] for trace in figure["data"]] == ["adam", "lbfgs", "lbfgs"]
    assert [trace["showlegend"] for trace in figure["data"]] == [True, True, False]


def test_the_page_opens_in_a_browser(arms, tmp_path):
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium")
    claim = CLAIM | {"runs": {NASTY: {"holds": True}}}
    (tmp_path / "page.html").write_text(report.page(NASTY, arms, [claim], f"--content={NASTY}\n"))
    shown = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"),
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    page = Page(shown.stdout)
    assert shown.stdout.count('class="legendtext"') == 3  # adam and lbfgs of one pair, adam of the other
    assert "by evaluations" in page.text
    assert "</script><script>alert" in page.text
