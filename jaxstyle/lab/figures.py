"""Figures of what runs recorded, drawn with matplotlib."""

import io
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from jaxstyle.lab import records, study
from jaxstyle.lab.records import Arm, Rate
from jaxstyle.runs import journal

#: Column of a run's rows -> what an axis calls it.
CLOCKS = {0: "step", 1: "evaluations", 2: "seconds"}

#: Optimizers that have the same colour in every figure; a dark one and a light one of each of Matplotlib's twenty.
_COLOURS = (
    *("lbfgs", "lbfgs@fourier", "gd", "gd@fourier", "adagrad", "adagrad@fourier", "rmsprop", "nonlinear-cg"),
    *("adam", "adam@fourier", "adadelta", "adadelta-tf1gpu", "scipy-lbfgs", "optax-lbfgs"),
    *("nadam", "amsgrad", "momentum", "yogi", "lbfgs:spectral@fourier", "nonlinear-cg@fourier"),
)

#: Those that have the darkest and the lightest of another twenty, in fours of one hue.
_LATER = (
    *("adabelief", "lion", "prodigy", "radam", "schedule_free_adamw"),
    *("adan", "dog", "sign_sgd", "adafactor", "lamb"),
)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """By label an optimizer's own colour for its largest rate, the light one for the next, others for the rest."""
    palette, later = (
        [to_hex(colour) for colour in matplotlib.colormaps[name].colors] for name in ("tab20", "tab20b")
    )
    own = dict(zip(_COLOURS + _LATER, palette + later[::4] + later[3::4], strict=True))
    light = dict(zip(_COLOURS[::2], palette[1::2], strict=True))
    names, found = {label: optimizer(label) for label in labels}, {}
    for shades in (own, light):
        for label in sorted(names, key=_rate, reverse=True):
            shade = shades.get(names[label])
            if label not in found and shade and shade not in found.values():
                found[label] = shade
    left = itertools.cycle(later[1::4] + later[2::4])
    return {label: found.get(label) or next(left) for label in names}


def _rate(label: str) -> float:
    rate = re.search(r"learning_rate=([\d.]+(?:[eE][+-]?\d+)?)", label)
    return float(rate[1]) if rate else 0.0


def optimizer(label: str) -> str:
    """An optimizer's name in a label, with `:spectral` and `@fourier` where it has that."""
    name = re.match(r"[a-z_]*(-(lbfgs|cg|tf1gpu))?", label.replace("_fourier", "@fourier"))[0]
    return name + ":spectral" * ("spectral" in label) + "@fourier" * ("fourier" in label)


def _plain(text: Any) -> None:
    """A file name is no formula, whatever dollars it has."""
    text.set_parse_math(False)


def number(value: float) -> str:
    """A number as it is written: 0.05, 25, 2 000 000; with a power of ten from a thousand million on."""
    return f"{value:,.0f}".replace(",", "\u202f") if 1e4 <= value < 1e9 else f"{value:g}"


def plain_ticks(axis: Axis) -> None:
    """Numbers as they are written, on a logarithmic axis too; powers of ten as formulas take longer than all else."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_axes(axes: Axes, which: str = "both") -> None:
    """A grid at these ticks, "major" or "both", and no frame above and to the right."""
    axes.grid(alpha=0.25, which=which)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, note: str | None, *lines: list) -> Legend:
    """The names of lines, by default of all, beside the axes and under a note."""
    return figure.legend(*lines, loc="outside right upper", frameon=False, title=note, title_fontsize=8)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


#: Rows of a running median, even so that a curve that swings to and fro has its middle; and the part of a wild
#: curve's neighbourhood that its band holds.
WINDOW, BAND = 24, (10, 90)


def _running(y: Float[np.ndarray, " rows"], parts: Sequence[float]) -> Float[np.ndarray, "parts rows"]:
    """Percentiles of each row's neighbourhood, which is smaller at first, where a run falls steeply."""
    rows = np.arange(len(y))
    widths = np.maximum(2 * np.minimum(rows // 4, WINDOW // 2), 1)
    begins = np.minimum(rows - widths // 2, len(y) - widths)
    windows = (y[begin : begin + width] for begin, width in zip(begins, widths, strict=True))
    return np.stack([np.percentile(window, parts) for window in windows], 1)


def _curve(axes: Any, x: Float[np.ndarray, " rows"], y: Float[np.ndarray, " rows"], **style: Any) -> None:
    """A curve of losses; one that is wild as its running median with a band, so that it hides no other."""
    if len(y) > 4 * WINDOW and np.median(np.abs(np.diff(np.log(np.maximum(y, 1e-30))))[len(y) // 2 :]) > 0.05:
        low, y, high = _running(y, (BAND[0], 50, BAND[1]))
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
    axes.plot(x, y, **style)


def losses(arms: Sequence[Arm], clocks: Sequence[str] = tuple(CLOCKS.values())) -> Figure:
    """The total loss by step, by evaluation and by second; a row for each pair, or by one clock a column.

    Seeds have one colour.
    """
    pairs = list(dict.fromkeys(arm.pair for arm in arms))
    palette = colours(arm.label for arm in arms)
    columns = [column for column, clock in CLOCKS.items() if clock in clocks]
    shape = (len(pairs), len(columns)) if len(columns) > 1 else (1, len(pairs))
    figure = Figure(figsize=(2.6 + 5.2 * shape[1], 0.6 + 4.2 * shape[0]), layout="constrained")
    grid = figure.subplots(*shape, squeeze=False, sharey="row" if len(columns) > 1 else False)
    grid = grid.reshape(len(pairs), len(columns))
    for pair, row in zip(pairs, grid, strict=True):
        for axes, column in zip(row, columns, strict=True):
            axes.set(yscale="log", ylim=loss_range([arm.rows for arm in arms if arm.pair == pair]))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plain_ticks(axes.yaxis)
            seen = set()
            for arm in arms:
                if arm.pair != pair:
                    continue
                style = {
                    "color": palette[arm.label],
                    "lw": 1.0 if arm.label in seen else 1.6,
                    "ls": "--" if optimizer(arm.label) == "scipy-lbfgs" else "-",  # lies on jaxopt's
                    "label": None if arm.label in seen else records.title(arm.label),
                }
                _curve(axes, arm.rows[:, column], arm.rows[:, 3], **style)
                seen.add(arm.label)
                if arm.status == "diverged":
                    axes.plot(*arm.rows[-1, [column, 3]], "x", color=palette[arm.label], ms=9, mew=2)
            axes.set_xlabel(CLOCKS[column])
            plain_axes(axes)
        row[0].set_ylabel("total loss")
        _plain(row[0].set_title(pair, loc="left", fontsize=11))
    note = "cross: diverged" if any(arm.status == "diverged" for arm in arms) else None
    for text in legend(figure, note, *_handles(grid)).get_texts():
        _plain(text)
    return figure


def terms(rows: Float[np.ndarray, "rows 7"]) -> Figure:
    """The total loss of one run and its weighted terms by step; `rows` are of `journal.COLUMNS`."""
    figure = Figure(figsize=(8, 5))
    axes = figure.add_axes((0.11, 0.1, 0.875, 0.875))  # by hand: a layout is found by drawing all twice
    low, high = loss_range([rows])
    # Down to a term of 1/300: one that is next to nothing should not flatten all others.
    axes.set(xlabel="step", ylabel="loss", yscale="log", ylim=(low / 300, high))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    plain_ticks(axes.yaxis)
    for column, name in enumerate(journal.COLUMNS[3:], 3):
        label = name if (rows[:, column] > 0).any() else None  # a term of weight 0 has no line to be seen
        axes.plot(rows[:, 0], rows[:, column], label=label, lw=2.2 if name == "total" else 1.4)
    plain_axes(axes)
    axes.legend(*axes.get_legend_handles_labels(), frameon=False)
    return figure


def loss_range(runs: Sequence[Float[np.ndarray, "rows 7"]]) -> tuple[float, float]:
    """The total losses worth showing, greater than 0: a run that blows up should not flatten all others."""
    shown = [total[np.isfinite(total) & (total > 0)] for total in (rows[:, 3] for rows in runs)]
    shown = [total for total in shown if len(total)] or [np.ones(1)]
    highest = min(max(total.max() for total in shown), 10 * max(total[0] for total in shown))
    lowest = max(min(total.min() for total in shown), 1e-9 * highest)
    return float(lowest / 1.15), float(highest * 1.15)


def _handles(grid: np.ndarray) -> tuple[list, list]:
    """The lines of a column of axes with their names, each name once, from the highest end to the lowest."""
    named = {}
    for axes in grid[:, 0]:
        named = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True)) | named
    named = dict(sorted(named.items(), key=lambda item: -item[1].get_ydata()[-1]))
    return list(named.values()), list(named)


#: Pictures in a row.
_WIDE = 5


def pictures(arms: Sequence[Arm]) -> Figure:
    """The results beside photo and style, made small, five in a row; of each pair the first seed."""
    shown = [arm for arm in arms if arm.image]
    sheets = []
    for pair in dict.fromkeys(arm.pair for arm in shown):
        mine = {arm.label: arm for arm in reversed(shown) if arm.pair == pair}
        given = records.inputs(next(iter(mine.values())))
        made = [
            (f"{records.title(label)}\n{records.image_loss(arm)}", Image.open(io.BytesIO(arm.image)))
            for label, arm in reversed(mine.items())
        ]
        sheets.append(given + made)
    rows = [math.ceil(len(sheet) / _WIDE) for sheet in sheets]
    columns = min(_WIDE, max(map(len, sheets)))
    figure = Figure(figsize=(2.6 * columns, 2.9 * sum(rows)), layout="constrained")
    grid = figure.subplots(sum(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for sheet, above in zip(sheets, itertools.accumulate(rows, initial=0), strict=False):
        for (name, picture), axes in zip(sheet, grid[above:].flat, strict=False):
            _plain(axes.set_title(name, fontsize=9))
            if picture:
                picture = picture.convert("RGB")
                picture.thumbnail((512, 512))
                axes.imshow(picture)
    return figure


def sensitivity(rates: Sequence[Rate]) -> Figure:
    """The final loss by learning rate, a curve for each optimizer; rates that diverged are crosses above."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()

    def draw(some: Sequence[Rate], line: str, **style: Any) -> None:
        x, y = [rate.learning_rate for rate in some], [rate.final_total for rate in some]
        axes.plot(x, y, line, **style)

    for label, colour in colours(rate.label for rate in rates).items():
        mine = [rate for rate in rates if rate.label == label]
        draw([rate for rate in mine if rate.status == "finished"], "o-", color=colour, label=label)
        if near := records.best_rates(mine):
            draw(near, "-", color=colour, lw=9, alpha=0.25, solid_capstyle="round")
        crosses = [rate.learning_rate for rate in mine if rate.status == "diverged"]
        above = {"transform": axes.get_xaxis_transform()}
        axes.plot(crosses, [0.97] * len(crosses), "x", color=colour, ms=8, mew=2, **above)
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="total loss after the last step")
    totals = [rate.final_total for rate in rates if np.isfinite(rate.final_total)] or [1.0]
    axes.set_ylim(min(totals) / 1.3, 1.3 * min(max(totals), 100 * min(totals)))
    plain_axes(axes)
    legend(figure, "broad: within 10 %\nof the best\ncross: diverged")
    return figure


#: The two planes of style against content: a field of measured rows, and what its axis says, for each direction.
_PLANES = (
    (
        ("self_similarity", "self-similarity distance to the photo: lower has more of it"),
        ("effectiveness", "effectiveness: higher has more of the style"),
    ),
    (
        ("lpips", "LPIPS to the photo: lower has more of it"),
        ("style", "style distance, layers held out: lower has more of the style"),
    ),
)


def planes(found: Mapping[str, Mapping[str, float]], families: Mapping[str, str]) -> Figure:
    """Style against content by two pairs of measures, a curve for each family of arms, and the fronts in grey.

    Args:
      found: by arm its measures.
      families: by arm what has one curve, whose arms follow each other.
    """
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    names = dict.fromkeys(families.values())
    palette = dict(zip(names, itertools.cycle(matplotlib.colormaps["tab10"].colors)))
    beside = dict(zip(names, itertools.cycle([(5, 3), (5, -10), (-16, 3), (-16, -10)])))
    for axes, ((x, xlabel), (y, ylabel)) in zip(figure.subplots(1, 2), _PLANES, strict=True):
        points = {arm: (row[x], row[y]) for arm, row in found.items()}
        sign = np.array([1, -1 if y == "effectiveness" else 1])
        values = np.array([*points.values()])
        front = study.front(values * sign)
        axes.step(*values[front].T, where="post", color="#9aa3b0", lw=5, alpha=0.35, zorder=0)
        for family, colour in palette.items():
            mine = np.array([points[arm] for arm in found if families[arm] == family])
            axes.plot(*mine.T, "o-", color=colour, ms=6, lw=1.2, label=family)
        for arm, point in points.items():
            weight, place = arm.rpartition(" ")[2], beside[families[arm]]
            axes.annotate(
                weight,
                point,
                xytext=place,
                textcoords="offset points",
                fontsize=8,
                color=palette[families[arm]],
            )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        plain_axes(axes, "major")
    axes.legend(frameon=False, title="numbers: style weight\ngrey: the front")
    return figure
