"""Figures, tables and the page of a comparison or a sweep, from what it recorded. Effects only."""

import base64
import csv
import html
import io
import json
import math
import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from jaxstyle import files, run

#: Column of a run's rows -> what an axis calls it.
CLOCKS = {0: "step", 1: "evaluations", 2: "seconds"}


class Arm(NamedTuple):
    """One run as it was recorded. Arms of one `label` differ in pictures or seed."""

    name: str
    label: str
    pair: str
    seed: int
    status: str
    manifest: Mapping[str, Any]
    rows: Float[np.ndarray, "rows 7"]
    image: bytes | None


def read_arm(directory: pathlib.Path, label: str) -> Arm | None:
    """The run in a directory, or None if it has recorded no row yet or is damaged; `rows` are of `run.COLUMNS`."""
    picture = directory / "image.png"
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        status = manifest["status"]
        ended = status in ("finished", "diverged") and picture.exists()
        return Arm(
            directory.name,
            label,
            " + ".join(printable(pathlib.PurePath(path).name) for path in manifest["pictures"]),
            manifest["seed"],
            status,
            manifest,
            run.read_metrics(directory / "metrics.csv"),
            picture.read_bytes() if ended else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def labels(texts: Iterable[str]) -> dict[str, str]:
    """Label -> specification. A label is a safe name of a directory and does not depend on later arms."""
    found: dict[str, str] = {}
    for text in texts:
        label = stem = re.sub(r"[^\w.,=+-]", "_", re.sub(r"\s", "", text).replace(":", "-"), flags=re.ASCII)
        number = 1
        while label in found:
            number += 1
            label = f"{stem}-{number}"
        found[label] = text
    return found


def printable(text: str) -> str:
    """The text with line ends, control characters and bytes that are no Unicode spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def write(
    directory: pathlib.Path, arms: Sequence[Arm], claims: Sequence[Mapping[str, Any]], flags: str
) -> None:
    """Writes all files of a comparison besides its arms.

    Args:
      directory: of the comparison.
      arms: those that have rows.
      claims: rows of `claims.json`.
      flags: text of `run.flags`.
    """
    files.write_atomically(directory / "summary.csv", summary(arms).encode())
    files.write_atomically(directory / "report.html", page(directory.name, arms, claims, flags).encode())
    if arms:
        files.write_atomically(directory / "losses.png", _png(losses(arms)))
    if any(arm.image for arm in arms):
        files.write_atomically(directory / "pictures.png", _png(pictures(arms)))


# --- the table ----------------------------------------------------------------------------------------------------


def summary_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """A row for each arm. Losses are final, at the last row, and best, at the row of the lowest total."""
    table = []
    for arm in arms:
        step, evaluations, seconds, *final = arm.rows[-1]
        best = arm.rows[np.argmin(arm.rows[:, 3])]
        names = run.COLUMNS[3:]
        table.append(
            {"label": arm.name, "pair": arm.pair, "seed": arm.seed, "status": arm.status}
            | {"steps": int(step), "evaluations": int(evaluations), "seconds": round(float(seconds), 6)}
            | {"seconds_per_evaluation": round(float(seconds / evaluations), 6)}
            | {f"final_{name}": f"{value:.7g}" for name, value in zip(names, final, strict=True)}
            | {"best_step": int(best[0])}
            | {f"best_{name}": f"{value:.7g}" for name, value in zip(names, best[3:], strict=True)}
        )
    return table


SUMMARY = (
    *("label", "pair", "seed", "status", "steps", "evaluations", "seconds", "seconds_per_evaluation"),
    *("final_total", "final_content", "final_style", "final_tv"),
    *("best_step", "best_total", "best_content", "best_style", "best_tv"),
)


def summary(arms: Iterable[Arm]) -> str:
    """The text of `summary.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, SUMMARY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary_rows(arms))
    return text.getvalue()


# --- figures ------------------------------------------------------------------------------------------------------


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, in their order."""
    palette = [to_hex(colour) for colour in matplotlib.colormaps["tab10"].colors]
    return {label: palette[i % len(palette)] for i, label in enumerate(dict.fromkeys(labels))}


def _plain(text: Any) -> None:
    """A file name is no formula, whatever dollars it has."""
    text.set_parse_math(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def losses(arms: Sequence[Arm]) -> Figure:
    """The total loss by step, by evaluation and by second; a row for each pair, seeds in one colour."""
    pairs = list(dict.fromkeys(arm.pair for arm in arms))
    palette = colours(arm.label for arm in arms)
    figure = Figure(figsize=(15, 0.6 + 4.2 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(CLOCKS), squeeze=False, sharey="row")
    for pair, row in zip(pairs, grid, strict=True):
        for axes, (column, clock) in zip(row, CLOCKS.items(), strict=True):
            seen = set()
            for arm in arms:
                if arm.pair != pair:
                    continue
                name = None if arm.label in seen else arm.label
                width = 1.0 if arm.label in seen else 1.6
                axes.plot(arm.rows[:, column], arm.rows[:, 3], color=palette[arm.label], lw=width, label=name)
                seen.add(arm.label)
                if arm.status == "diverged":
                    axes.plot(*arm.rows[-1, [column, 3]], "x", color=palette[arm.label], ms=9, mew=2)
            axes.set_yscale("log")
            axes.set_ylim(*loss_range([arm for arm in arms if arm.pair == pair]))
            axes.set_xlabel(clock)
            axes.grid(alpha=0.25, which="both")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("total loss")
        _plain(row[0].set_title(pair, loc="left", fontsize=11))
    legend = figure.legend(*_handles(grid), loc="outside right upper", frameon=False)
    for text in legend.get_texts():
        _plain(text)
    return figure


def loss_range(arms: Sequence[Arm]) -> tuple[float, float]:
    """The losses worth showing: an arm that blows up should not flatten all others."""
    totals = np.concatenate([arm.rows[:, 3] for arm in arms])
    highest = min(totals.max(), 10 * max(arm.rows[0, 3] for arm in arms))
    lowest = max(totals.min(), 1e-9 * highest)
    return float(lowest / 1.15), float(highest * 1.15)


def _handles(grid: np.ndarray) -> tuple[list, list]:
    """The lines of a column of axes with their names, each name once."""
    named = {}
    for axes in grid[:, 0]:
        named |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    return list(named.values()), list(named)


def pictures(arms: Sequence[Arm]) -> Figure:
    """The results side by side, made small; a row for each pair, its first seed."""
    shown = [arm for arm in arms if arm.image]
    pairs = list(dict.fromkeys(arm.pair for arm in shown))
    labels = list(dict.fromkeys(arm.label for arm in shown))
    figure = Figure(figsize=(2.6 * len(labels), 0.4 + 2.8 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(labels), squeeze=False)
    for pair, row in zip(pairs, grid, strict=True):
        for label, axes in zip(labels, row, strict=True):
            axes.set_axis_off()
            arm = next((arm for arm in shown if (arm.pair, arm.label) == (pair, label)), None)
            if arm:
                picture = Image.open(io.BytesIO(arm.image)).convert("RGB")
                picture.thumbnail((512, 512))
                axes.imshow(picture)
                _plain(axes.set_title(f"{label}\nloss {arm.rows[-1, 3]:.4g}", fontsize=8))
    return figure


# --- sweeps -------------------------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """A row of `sweep.csv`: what one learning rate came to. Losses are at the last finite step."""

    label: str
    learning_rate: float
    status: str
    steps: int
    evaluations: int
    final_total: float
    final_content: float
    final_style: float
    final_tv: float
    best_step: int
    best_total: float


def best_rates(rates: Sequence[Rate], within: float = 0.1) -> list[Rate] | None:
    """Of one optimizer's rates, sorted, the run of neighbours around the best whose losses are near the best one.

    The best is the lowest final loss. None if every rate diverged.
    """
    ends = [rate.final_total if rate.status == "finished" else math.inf for rate in rates]
    first = last = int(np.argmin(ends))
    if math.isinf(ends[first]):
        return None
    limit = (1 + within) * ends[first]
    while first > 0 and ends[first - 1] <= limit:
        first -= 1
    while last < len(ends) - 1 and ends[last + 1] <= limit:
        last += 1
    return list(rates[first : last + 1])


def describe_best(rates: Sequence[Rate]) -> str:
    """A line on the best learning rate of one optimizer and on how much it matters."""
    label, near = rates[0].label, best_rates(rates)
    if near is None:
        return f"{label}: every learning rate diverged; try smaller ones"
    best = min(near, key=lambda rate: rate.final_total)
    text = (
        f"{label}: best learning rate {best.learning_rate:g}, loss {best.final_total:.6g}; "
        f"within 10 % of it from {near[0].learning_rate:g} to {near[-1].learning_rate:g}"
    )
    if len(rates) > 1 and best in (rates[0], rates[-1]):
        text += f"; no {'smaller' if best is rates[0] else 'larger'} rate was tried"
    return text


def write_sensitivity(path: pathlib.Path, rates: Sequence[Rate]) -> None:
    """Draws the final loss by learning rate, a curve for each optimizer; rates that diverged are crosses above."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    palette = colours(rate.label for rate in rates)
    for label, colour in palette.items():
        mine = [rate for rate in rates if rate.label == label]
        ended = [rate for rate in mine if rate.status == "finished"]
        axes.plot(
            [rate.learning_rate for rate in ended],
            [rate.final_total for rate in ended],
            "o-",
            color=colour,
            label=label,
        )
        near = best_rates(mine)
        if near:
            axes.plot(
                [rate.learning_rate for rate in near],
                [rate.final_total for rate in near],
                color=colour,
                lw=9,
                alpha=0.25,
                solid_capstyle="round",
            )
        for rate in mine:
            if rate.status == "diverged":
                axes.plot(
                    rate.learning_rate,
                    0.97,
                    "x",
                    color=colour,
                    ms=8,
                    mew=2,
                    transform=axes.get_xaxis_transform(),
                )
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="total loss after the last step")
    low, high = (bound(rate.final_total for rate in rates) for bound in (min, max))
    axes.set_ylim(low / 1.3, 1.3 * min(high, 100 * low))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="broad: within 10 % of the best; cross: diverged", title_fontsize=8)
    files.write_atomically(path, _png(figure))


# --- the page -----------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; margin: 2rem auto; max-width: 1500px;
  padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.2rem 0 .3rem; color: #4a5568; }
p.note { color: #5b6675; margin: .2rem 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e7ed; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #b8c0cc; font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; } td.prose { white-space: normal; text-align: left; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
figure img { display: block; border-radius: 3px; } figcaption { font-size: .82rem; color: #4a5568; }
pre { background: #f5f7fa; padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; border-radius: 4px; }
.badge { padding: .1rem .55rem; border-radius: 1rem; font-size: .8rem; font-weight: 600; }
.holds { background: #d9f2e1; color: #14532d; } .fails { background: #fde0dd; color: #7f1d1d; }
.not { background: #e8ebf0; color: #4a5568; } .diverged { color: #b42318; }
summary { cursor: pointer; color: #2456a6; }
"""


def _text(value: Any) -> str:
    return html.escape(printable(str(value)))


def page(title: str, arms: Sequence[Arm], claims: Sequence[Mapping[str, Any]], flags: str) -> str:
    """The page: interactive curves, pictures, table, verdicts, flags and manifests, in need of nothing else."""
    sections = [
        _curves(arms),
        _pictures(arms),
        "<h2>Table</h2>" + _table(arms) if arms else "",
        _claims(claims) if claims else "",
        f"<h2>Flags</h2><pre>{''.join(_text(line) + chr(10) for line in flags.splitlines())}</pre>",
        _manifests(arms),
    ]
    done = sum(arm.status in ("finished", "diverged") for arm in arms)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f'<h1>{_text(title)}</h1><p class="note">{done} arms have ended, {len(arms) - done} have not.</p>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _by_pair(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    pairs: dict[str, list[Arm]] = {}
    for arm in arms:
        pairs.setdefault(arm.pair, []).append(arm)
    return pairs


def _curves(arms: Sequence[Arm]) -> str:
    parts = ["<h2>Loss</h2>"]
    palette = colours(arm.label for arm in arms)
    for i, (pair, members) in enumerate(_by_pair(arms).items()):
        plot = _plot(members, palette).to_html(
            full_html=False,
            include_plotlyjs=i == 0,
            div_id=f"curves-{i}",
            config={"displaylogo": False, "responsive": True},
        )
        parts.append(f"<h3>{_text(pair)}</h3>{plot}")
    note = "A click on a name turns its curves off or on, a double click leaves it alone; drag to zoom."
    return "\n".join([*parts, f'<p class="note">{note}</p>'])


def _plot(arms: Sequence[Arm], palette: Mapping[str, str]) -> go.Figure:
    figure = go.Figure()
    seen: set[str] = set()
    seeds = len({arm.seed for arm in arms}) > 1
    for arm in arms:
        figure.add_scatter(
            x=arm.rows[:, 0],
            y=arm.rows[:, 3],
            customdata=np.delete(arm.rows, 3, 1),
            mode="lines",
            name=arm.label,
            legendgroup=arm.label,
            showlegend=arm.label not in seen,
            line={"color": palette[arm.label], "width": 1.2 if arm.label in seen else 2},
            opacity=0.6 if arm.label in seen else 1,
            hovertemplate=(
                f"<b>{arm.label}</b>{f', seed {arm.seed}' if seeds else ''}<br>loss %{{y:.6g}}<br>"
                "content %{customdata[3]:.4g}, style %{customdata[4]:.4g}, tv %{customdata[5]:.4g}<br>"
                "step %{customdata[0]}, evaluation %{customdata[1]}, %{customdata[2]:.1f} s<extra></extra>"
            ),
        )
        seen.add(arm.label)
    clocks = [
        {
            "label": f"by {clock}",
            "method": "update",
            "args": [{"x": [arm.rows[:, column].tolist() for arm in arms]}, {"xaxis.title.text": clock}],
        }
        for column, clock in CLOCKS.items()
    ]
    low, high = loss_range(arms)
    ranges = {"log": [math.log10(low), math.log10(high)], "linear": [0, high]}
    scales = [
        {"label": label, "method": "relayout", "args": [{"yaxis.type": label, "yaxis.range": limits}]}
        for label, limits in ranges.items()
    ]
    shared = {"type": "buttons", "direction": "right", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}
    figure.update_layout(
        template="plotly_white",
        height=480,
        margin={"l": 70, "r": 20, "t": 85, "b": 50},
        hovermode="closest",
        xaxis={"title": {"text": "step"}},
        yaxis={
            "title": {"text": "total loss"},
            "type": "log",
            "range": ranges["log"],
            "exponentformat": "power",
        },
        updatemenus=[
            shared | {"buttons": clocks, "x": 0, "xanchor": "left"},
            shared | {"buttons": scales, "x": 1, "xanchor": "right"},
        ],
    )
    return figure


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _pictures(arms: Sequence[Arm]) -> str:
    parts = []
    for pair, members in _by_pair(arm for arm in arms if arm.image).items():
        figures = "".join(
            f'<figure><img src="{_data_uri(arm.image)}" alt="{_text(arm.name)}">'
            f"<figcaption>{_text(arm.label)}, seed {arm.seed}<br>loss {arm.rows[-1, 3]:.5g}</figcaption></figure>"
            for arm in members
        )
        parts.append(f'<h3>{_text(pair)}</h3><div class="pictures">{figures}</div>')
    return "<h2>Pictures</h2>" + "".join(parts) if parts else ""


def _table(arms: Sequence[Arm]) -> str:
    words = ("label", "pair", "status")
    kind = {name: ' class="text"' if name in words else "" for name in SUMMARY}
    head = "".join(f"<th{kind[name]}>{name.replace('_', ' ')}</th>" for name in SUMMARY)
    rows = "".join(
        f"<tr>{''.join(f'<td{kind[name]}>{_cell(row[name])}</td>' for name in SUMMARY)}</tr>"
        for row in summary_rows(arms)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td class="text">{_text(row["id"])}</td><td class="prose">{_text(row["claim"])}</td>'
        f'<td class="text"><span class="badge {row["verdict"].split()[0]}">{_text(row["verdict"])}</span></td>'
        f"<td>{row['held']} of {row['judged']}</td>"
        f'<td class="prose"><details><summary>numbers</summary><pre>{_numbers(row["runs"])}</pre></details></td></tr>'
        for row in claims
    )
    return (
        '<h2>Claims</h2><table><thead><tr><th class="text">id</th><th class="text">claim</th>'
        '<th class="text">verdict</th><th>runs</th><th class="text"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _numbers(value: Any) -> str:
    """JSON to be read: floats of five digits."""
    text = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    text = re.sub(r"-?\d+\.\d+(e[+-]?\d+)?", lambda number: f"{float(number[0]):.5g}", text)
    return html.escape(text)


def _manifests(arms: Sequence[Arm]) -> str:
    parts = [
        f"<details><summary>{_text(arm.name)}</summary>"
        f"<pre>{html.escape(json.dumps(arm.manifest, indent=2))}</pre></details>"
        for arm in arms
    ]
    return "<h2>Manifests</h2>" + "".join(parts) if parts else ""
