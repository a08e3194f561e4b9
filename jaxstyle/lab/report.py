"""The page of a comparison, `report.html`, and all files that lie beside it."""

import base64
import html
import io
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from jaxstyle import files
from jaxstyle.lab import figures, records
from jaxstyle.lab.records import Arm


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
    rows = (row.values() for row in records.summary_rows(arms))
    files.write_csv(directory / "summary.csv", records.SUMMARY, rows)
    files.write_atomically(directory / "report.html", page(directory.name, arms, claims, flags).encode())
    if arms:
        files.write_atomically(directory / "losses.png", figures.png(figures.losses(arms)))
    if any(arm.image for arm in arms):
        files.write_atomically(directory / "pictures.png", figures.png(figures.pictures(arms)))


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
p img { max-width: 100%; height: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
figure img { display: block; border-radius: 3px; } figcaption { font-size: .82rem; color: #4a5568; }
pre { background: #f5f7fa; padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; border-radius: 4px; }
.badge { padding: .1rem .55rem; border-radius: 1rem; font-size: .8rem; font-weight: 600; }
.holds { background: #d9f2e1; color: #14532d; } .fails { background: #fde0dd; color: #7f1d1d; }
.not { background: #e8ebf0; color: #4a5568; } .diverged { color: #b42318; }
summary { cursor: pointer; color: #2456a6; }
"""


def _text(value: Any) -> str:
    return html.escape(records.printable(str(value)))


def page(title: str, arms: Sequence[Arm], claims: Sequence[Mapping[str, Any]], flags: str) -> str:
    """The page: interactive curves, verdicts, pictures, tables, flags and manifests, in need of nothing else."""
    sections = [
        _curves(arms),
        _budgets(arms),
        _claims(claims) if claims else "",
        _pictures(arms),
        "<h2>Table</h2>" + _table(arms) if arms else "",
        recorded(flags),
        _manifests(arms),
    ]
    statuses = [arm.status for arm in arms]
    diverged = statuses.count("diverged")
    done = diverged + statuses.count("finished")
    of_them = f", {diverged} of them diverged" if diverged else ""
    note = f"{done} arms have ended{of_them}, {len(arms) - done} have not."
    return frame(title, note, "\n".join(sections))


def frame(title: str, note: str, body: str) -> str:
    """A page of a title, a line below it and a body of HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f'<h1>{_text(title)}</h1><p class="note">{note}</p>\n{body}\n</body></html>\n'
    )


def recorded(flags: str) -> str:
    """The section of a run's flags."""
    return f"<h2>Flags</h2><pre>{''.join(_text(line) + chr(10) for line in flags.splitlines())}</pre>"


def wide(head: str, rows: str) -> str:
    """A table of the cells of a head and of rows, which scrolls where a page is narrower."""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _by_pair(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    pairs: dict[str, list[Arm]] = {}
    for arm in arms:
        pairs.setdefault(arm.pair, []).append(arm)
    return pairs


#: What a plot is told on a narrow screen: its legend below, its two rows of buttons one above the other.
_NARROW = """
if (window.innerWidth < 700) Plotly.relayout("{plot_id}", {
  "legend.orientation": "h", "legend.y": -0.2, "legend.yanchor": "top", "margin.t": 125, "margin.l": 55,
  "height": 560, "updatemenus[1].x": 0, "updatemenus[1].xanchor": "left", "updatemenus[1].y": 1.15});
"""


def _curves(arms: Sequence[Arm]) -> str:
    parts = ["<h2>Loss</h2>"]
    palette = figures.colours(arm.label for arm in arms)
    for i, (pair, members) in enumerate(_by_pair(arms).items()):
        plot = _plot(members, palette).to_html(
            full_html=False,
            include_plotlyjs=i == 0,
            div_id=f"curves-{i}",
            config={"displaylogo": False, "responsive": True},
            post_script=_NARROW,
        )
        parts.append(f"<h3>{_text(pair)}</h3>{plot}")
    note = "A click on a name turns its curves off or on, a double click leaves it alone; drag to zoom."
    if any(arm.status == "diverged" for arm in arms):
        note += " A cross: diverged."
    return "\n".join([*parts, f'<p class="note">{note}</p>'])


def _plot(arms: Sequence[Arm], palette: Mapping[str, str]) -> go.Figure:
    figure = go.Figure()
    seen: set[str] = set()
    seeds = len({arm.seed for arm in arms}) > 1
    for arm in arms:
        seed = f", seed {arm.seed}" if seeds else ""
        figure.add_scatter(**_curve(arm, palette[arm.label], arm.label not in seen, seed))
        seen.add(arm.label)
    low, high = figures.loss_range([arm.rows for arm in arms])
    ranges = {"log": [math.log10(low), math.log10(high)], "linear": [0, high]}
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
        updatemenus=_buttons(arms, ranges),
    )
    return figure


def _curve(arm: Arm, colour: str, first: bool, seed: str) -> dict[str, Any]:
    """A scatter of an arm's losses by step, thinner where it is not the `first` of its label."""
    # Marked only where it is to be seen: a size for each row of each arm would be part of the page.
    marked = arm.status == "diverged" or len(arm.rows) == 1
    symbol = "x" if arm.status == "diverged" else "circle"
    marker = {"size": [0] * (len(arm.rows) - 1) + [11], "symbol": symbol, "opacity": 1}
    return {
        "x": arm.rows[:, 0],
        "y": arm.rows[:, 3],
        "customdata": np.delete(arm.rows, 3, 1),
        "mode": "lines+markers" if marked else "lines",
        "marker": marker if marked else None,
        "name": arm.label,
        "legendgroup": arm.label,
        "showlegend": first,
        "line": {"color": colour, "width": 2 if first else 1.2},
        "opacity": 1 if first else 0.6,
        "hovertemplate": (
            f"<b>{arm.label}</b>{seed}<br>loss %{{y:.6g}}<br>"
            "content %{customdata[3]:.4g}, style %{customdata[4]:.4g}, tv %{customdata[5]:.4g}<br>"
            "step %{customdata[0]}, evaluation %{customdata[1]}, %{customdata[2]:.1f} s<extra></extra>"
        ),
    }


def _buttons(arms: Sequence[Arm], ranges: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Two rows of buttons: the clocks of the curves, and the scales of the loss with their ranges."""
    clocks = [
        {
            "label": f"by {clock}",
            "method": "update",
            "args": [{"x": [arm.rows[:, column].tolist() for arm in arms]}, {"xaxis.title.text": clock}],
        }
        for column, clock in figures.CLOCKS.items()
    ]
    scales = [
        {"label": label, "method": "relayout", "args": [{"yaxis.type": label, "yaxis.range": limits}]}
        for label, limits in ranges.items()
    ]
    shared = {"type": "buttons", "direction": "right", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}
    return [
        shared | {"buttons": clocks, "x": 0, "xanchor": "left"},
        shared | {"buttons": scales, "x": 1, "xanchor": "right"},
    ]


def embedded(png: bytes, name: str) -> str:
    """A PNG file, within the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{_text(name)}">'


def _figure(image: bytes, name: str, *caption: str) -> str:
    lines = "<br>".join(map(_text, caption))
    return f"<figure>{embedded(image, name)}<figcaption>{lines}</figcaption></figure>"


def _inputs(arm: Arm) -> list[str]:
    """The pictures that a run was given."""
    shown = []
    for name, picture in records.inputs(arm):
        if picture:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            shown.append(_figure(buffer.getvalue(), name, name, "input"))
        else:
            shown.append(f"<figure><figcaption>{_text(name)}<br>is not there any more</figcaption></figure>")
    return shown


def _pictures(arms: Sequence[Arm]) -> str:
    parts = []
    for pair, members in _by_pair(arm for arm in arms if arm.image).items():
        inputs = _inputs(members[0])
        results: dict[int, list[str]] = {}
        for arm in members:
            caption = f"{arm.label}, seed {arm.seed}", records.image_loss(arm)
            results.setdefault(arm.seed, []).append(_figure(arm.image, arm.name, *caption))
        (_, first), *others = sorted(results.items())
        parts.append(f'<h3>{_text(pair)}</h3><div class="pictures">{"".join(inputs + first)}</div>')
        parts += [
            f'<details><summary>seed {seed}</summary><div class="pictures">{"".join(each)}</div></details>'
            for seed, each in others
        ]
    return "<h2>Pictures</h2>" + "".join(parts) if parts else ""


def _budgets(arms: Sequence[Arm]) -> str:
    parts = []
    for pair, members in _by_pair(arms).items():
        table = records.by_budget(members)
        if not table:
            continue
        head = "".join(f"<th>{budget} {clock}</th>" for clock, budget in table)
        rows = [
            f'<tr><td class="text">{_text(label)}</td>'
            + "".join(_loss(losses.get(label), min(losses.values())) for losses in table.values())
            + "</tr>"
            for label in dict.fromkeys(arm.label for arm in members)
        ]
        parts.append(f"<h3>{_text(pair)}</h3>{wide(f'<th></th>{head}', ''.join(rows))}")
    note = (
        "Loss that a budget brings each optimizer to, the median over seeds; bold: within 5 % of the lowest."
    )
    return f'<h2>By budget</h2><p class="note">{note}</p>' + "".join(parts) if parts else ""


def _loss(loss: float | None, lowest: float) -> str:
    text = "" if loss is None else f"{loss:.4g}"
    return f"<td><b>{text}</b></td>" if loss is not None and loss <= 1.05 * lowest else f"<td>{text}</td>"


def _table(arms: Sequence[Arm]) -> str:
    words = ("label", "pair", "status")
    kind = {name: ' class="text"' if name in words else "" for name in records.SUMMARY}
    head = "".join(f"<th{kind[name]}>{name.replace('_', ' ')}</th>" for name in records.SUMMARY)
    rows = "".join(
        f"<tr>{''.join(f'<td{kind[name]}>{_cell(row[name])}</td>' for name in records.SUMMARY)}</tr>"
        for row in records.summary_rows(arms)
    )
    return wide(head, rows)


def _cell(value: Any) -> str:
    if value == "diverged":
        return '<span class="diverged">diverged</span>'
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
