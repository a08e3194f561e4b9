"""The page of a study, `report.html`, its tables and its figures: all made from its curves alone."""

import html
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from jaxstyle import files
from jaxstyle.lab import figures, report, study
from jaxstyle.lab.records import Table, markdown
from jaxstyle.lab.study import Field, Study

#: Words for the problems.
TITLES = {
    "photo": "Gram matrices, from the photo",
    "noise": "Gram matrices, from noise",
    "article": "The article's loss and start",
    "wasserstein": "Wasserstein, from the photo",
}


def write(directory: pathlib.Path, found: Study, flags: str) -> None:
    """Writes `curves.npz`, `tables.md`, the figures and `report.html`; of what has no run there is none."""
    files.write_atomically(directory / "curves.npz", study.pack(found))
    sections = []
    text = []
    for problem in study.problems(found):
        fields = [study.field(found, problem, budget) for budget in found.budgets]
        if not fields[-1].runs:
            continue
        title = TITLES.get(problem, problem)
        body = [f"<h2>{html.escape(title)}</h2><p>{html.escape(_answer(found, fields))}</p>"]
        for name, draw in FIGURES.items():
            if (figure := draw(found, fields)) is not None:
                data = figures.png(figure)
                files.write_atomically(directory / f"{problem}-{name}.png", data)
                body.append(f"<p>{report.embedded(data, f'{problem}, {name}')}</p>")
        for name, (make, note) in TABLES.items():
            table = make(found, fields)
            text.append(f"<!-- {problem}: {name} -->\n{markdown(table)}")
            heading = f'<h3>{html.escape(name.capitalize())}</h3><p class="note">{html.escape(note)}</p>'
            body.append(heading + _html(table))
        sections += body
    files.write_atomically(directory / "tables.md", "\n".join(text).encode())
    page = report.frame(
        directory.name, "A study of optimizers.", "\n".join([*sections, report.recorded(flags)])
    )
    files.write_atomically(directory / "report.html", page.encode())


def _answer(found: Study, fields: Sequence[Field]) -> str:
    """Which arm has the lowest loss at each budget, by the geometric mean over how many pairs."""
    last, lowest = fields[-1], {}
    for field in fields:
        if means := _means(field):
            lowest.setdefault(min(means, key=means.get), []).append(str(field.budget))
    size = f" at {found.size}" if found.size else ""
    best = ", ".join(f"{arm} after {', '.join(budgets)}" for arm, budgets in lowest.items())
    return f"{len(last.runs)} arms on {len(last.pairs)} test pairs{size}. The lowest loss, by evaluations: {best}."


def _html(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        first, *rest = (re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", html.escape(cell)) for cell in cells)
        return f'<{tag} class="text">{first}</{tag}>' + "".join(f"<{tag}>{each}</{tag}>" for each in rest)

    head, rows = table
    return report.wide(line(head, "th"), "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows))


# --- tables -------------------------------------------------------------------------------------------------------


def _means(field: Field) -> dict[str, float]:
    """By arm the geometric mean over the pairs of the best loss over the best known."""
    return {arm: study.geometric_mean(row) for arm, row in study.ratios(field).items()}


def _order(fields: Sequence[Field]) -> list[str]:
    """Arms by the geometric mean of their scores over budgets, the best first; those without all of them last."""
    means = [_means(field) for field in fields]
    return sorted(
        means[-1], key=lambda arm: study.geometric_mean([each.get(arm, math.inf) for each in means])
    )


def _rate(field: Field, arm: str) -> str:
    rate = field.runs[arm][0].learning_rate
    return "" if math.isnan(rate) else f"{rate:g}"


def _ratio(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _interval(ratios: Sequence[float]) -> str:
    value, low, high = study.mean_interval(np.asarray(ratios))
    return f"{_ratio(value)} ({_ratio(low)} to {_ratio(high)})"


def losses(found: Study, fields: Sequence[Field]) -> Table:
    """Best so far over best known: geometric means over the test pairs with 95 % intervals, and tuned rates.

    Arms of which no rate reached the largest budget on all tuning pairs come last.
    """
    table, ratios = [], [study.ratios(field) for field in fields]
    lowest = [min(_means(field).values(), default=0) for field in fields]
    tuned = dict.fromkeys(each.arm for each in found.tunings if each.problem == fields[-1].problem)
    for arm in dict.fromkeys([*_order(fields), *tuned]):
        rates = list(dict.fromkeys(_rate(field, arm) for field in fields if arm in field.runs))
        cells = [arm, ", ".join(rates)]
        for field, own, least in zip(fields, ratios, lowest, strict=True):
            if arm not in field.runs:
                scores = study.rate_scores(found.tunings, field.problem, arm, field.budget)
                cells.append("has not run" if scores and study.chosen_rate(scores) else "diverged")
                continue
            text = _interval(own[arm])
            cells.append(f"**{text}**" if study.geometric_mean(own[arm]) <= 1.02 * least else text)
        table.append(cells)
    return ["optimizer", "rate", *(f"{field.budget} evaluations" for field in fields)], table


def _spread(evaluations: Sequence[float]) -> str:
    """The median, the least and the most, and how many are infinite."""
    reached, median = [each for each in evaluations if math.isfinite(each)], float(np.median(evaluations))
    parts = ["—" if math.isinf(median) else f"{median:g}"]
    if reached:
        parts.append(f"{min(reached):g} to {max(reached):g}")
        parts += [f"{len(evaluations) - len(reached)} never"] * (len(reached) < len(evaluations))
    return ", ".join(parts)


def against(found: Study, fields: Sequence[Field]) -> Table:
    """Each arm against the best: its loss over the best arm's, on how many pairs that is ahead at the largest budget,
    and after how many evaluations it has the arm's loss there: the median over the pairs, the least and the most."""
    best, *others = _order(fields)
    table, ratios = [], [study.ratios(field) for field in fields]
    for arm in others:
        cells = [arm]
        for each in ratios:
            own = each[arm] / each[best] if {arm, best} <= each.keys() else None
            cells.append("" if own is None else _interval(own))
        field = fields[-1]
        rows = zip(field.runs[best], field.runs[arm], strict=True)
        spent = [study.evaluations_to(leader, study.best_within(run, field.budget)) for leader, run in rows]
        ahead = int(np.sum(own > 1))
        table.append(
            [*cells, f"{ahead} of {len(own)}", _spread([n if n <= field.budget else math.inf for n in spent])]
        )
    head = ["optimizer", *(f"after {field.budget}" for field in fields), f"{best} ahead, pairs"]
    return [*head, f"its evaluations to the other's loss after {fields[-1].budget}"], table


def targets(found: Study, fields: Sequence[Field]) -> Table:
    """Median evaluations to multiples of the best known loss; on how many pairs, where not on all."""
    field, table = fields[-1], []
    costs = {target: study.costs(field, target) for target in study.TARGETS}
    for arm in _order(fields):
        cells = [arm]
        for target in study.TARGETS:
            mine = costs[target][arm]
            solved = int(np.isfinite(mine).sum())
            median = float(np.median(mine))
            text = "—" if math.isinf(median) else f"{median:.0f}"
            cells.append(text if solved == len(mine) else f"{text} ({solved} of {len(mine)})")
        table.append(cells)
    return ["optimizer", *(f"{target:g} x" for target in study.TARGETS)], table


def _ranks(field: Field) -> study.Ranks | None:
    """Of the arms; none for fewer than three of them or a single pair."""
    enough = len(field.runs) > 2 and len(field.pairs) > 1
    return study.ranks(np.stack([*study.ratios(field).values()])) if enough else None


def standing(found: Study, fields: Sequence[Field]) -> Table:
    """Last losses at each budget; mean ranks, seconds, sensitivity and what the loss does not tell at the largest."""
    field, table, ranks = fields[-1], [], _ranks(fields[-1])
    lasts = [study.ratios(each, study.last_within) for each in fields]
    means = dict(zip(field.runs, ranks.mean, strict=True)) if ranks else {}
    for arm in _order(fields):
        runs, scores = field.runs[arm], study.rate_scores(found.tunings, field.problem, arm, field.budget)
        decades = study.decades(scores) if scores else 0.0
        wide = (f"{decades:.1f}" if decades else "< 0.5") if scores else ""
        measures = [np.mean([getattr(run, name) for run in runs]) for name in ("style", "lpips", "palette")]
        table.append(
            [arm, f"{means[arm]:.1f}" if means else ""]
            + [_ratio(study.geometric_mean(last[arm])) if arm in last else "" for last in lasts]
            + [wide, f"{1000 * np.median([run.seconds for run in runs]):.0f}"]
            + [f"{value:.3f}" if k < 2 else f"{value:.1f}" for k, value in enumerate(measures)]
        )
    head = ["optimizer", "mean rank", *(f"last loss after {each.budget}" for each in fields)]
    head += ["decades of rate within 10 %", "ms an evaluation"]
    return [*head, "style distance", "LPIPS to the photo", "palette distance"], table


#: By name what makes a table, and what the page says above it.
TABLES: Mapping[str, tuple[Callable[[Study, Sequence[Field]], Table], str]] = {
    "loss by budget": (
        losses,
        "The lowest loss so far over the best known, which is the lowest that any arm found for the pair: geometric "
        "means over the test pairs with 95 % intervals. 1 is the best known; bold is within 2 % of the best.",
    ),
    "evaluations to a loss": (
        targets,
        "Evaluations, in the median, until the lowest loss so far is within a factor of the best known; in brackets "
        "on how many pairs, where not on all.",
    ),
    "against the best": (
        against,
        "The loss over that of the best arm, where more is worse; on how many pairs the best is ahead; and after how "
        "many evaluations it has the other's loss at the end: the median, the least and the most.",
    ),
    "standing": (
        standing,
        "Last losses are over the best known, and ∞ has diverged; all else is at the largest budget. Ranks are by "
        "loss, 1 the best; of the three distances less is nearer. Milliseconds are of this machine while the study "
        "ran.",
    ),
}


# --- figures ------------------------------------------------------------------------------------------------------

#: Arms that a figure draws in colour, the article's optimizers among them; the rest are grey.
COLOURED = 13
ARTICLE = ("gd", "adadelta", "adagrad", "adam", "rmsprop", "lbfgs")


def _colours(fields: Sequence[Field]) -> dict[str, str]:
    """A colour for some arms, the best first; of one optimizer's arms that of the shortest name."""
    order = _order(fields)
    plain: dict[str, str] = {}
    for arm in order:
        name = re.sub("(optax|scipy)-lbfgs", "lbfgs", figures.optimizer(arm))
        plain[name] = min(plain.get(name, arm), arm, key=len)
    known = [name for name in plain if name in ARTICLE]
    names = known + [name for name in plain if name not in ARTICLE][: COLOURED - len(known)]
    return figures.colours(sorted((plain[name] for name in names), key=order.index))


def _place(colours: Mapping[str, str], arm: str) -> int:
    """When an arm is drawn: those in grey first."""
    return [*colours].index(arm) if arm in colours else -1


def _axes(width: float, height: float, **settings: object):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(**settings)
    figures.plain_axes(axes, "major")
    return figure, axes


def curves(found: Study, fields: Sequence[Field]) -> Figure:
    """Best so far over best known by evaluations: medians over the pairs, of the leaders with their quartiles."""
    field, colours = fields[-1], _colours(fields)
    spent = np.unique(np.geomspace(2, field.budget, 80).astype(int))
    figure, axes = _axes(10, 5.4, xlabel="evaluations of loss and gradient", xscale="log", yscale="log")
    top = 1.0
    for arm in sorted(field.runs, key=lambda arm: _place(colours, arm)):
        runs = field.runs[arm]
        ratios = np.array([[study.best_within(run, n) for n in spent] for run in runs]) / field.known[:, None]
        low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
        if arm in colours:
            axes.fill_between(spent, low, high, color=colours[arm], alpha=0.07, lw=0)
            label = f"{arm} {_rate(field, arm)}".strip()
            width = 4 if arm == next(iter(colours)) else 2
            axes.plot(spent, middle, color=colours[arm], lw=width, label=label, zorder=3)
            top = max(top, float(middle[0]))
        else:
            axes.plot(spent, middle, color="#9aa3b0", lw=0.8, alpha=0.7)
    axes.set(ylim=(0.97, 1.1 * top), xlim=(2, field.budget), ylabel="lowest loss so far, over the best known")
    ticks = [n for n in (2, 5, 10, 25, 50, 100, 250, 500, 1000) if n <= field.budget]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    figures.plain_ticks(axes.xaxis)
    ratios = [1.1, 1.25] if top < 50 else []  # where there is room for them
    axes.yaxis.set_major_locator(FixedLocator([1, *ratios, 1.5, 2, 3, 5, 10, 20, 50, 100]))
    figures.plain_ticks(axes.yaxis)
    figures.legend(figure, "broad: the best arm\nnumber: rate for the largest budget\ngrey: the other arms")
    return figure


def profile(found: Study, fields: Sequence[Field], target: float = 1.25) -> Figure:
    """Performance profile of the evaluations to 1.25 times the best known loss, with 95 % bands for the leaders."""
    field, colours = fields[-1], _colours(fields)
    factors = np.geomspace(1, 10, 200)
    costs = np.stack([*study.costs(field, target).values()])
    shares, bands = study.performance_profile(costs, factors), study.profile_band(costs, factors)
    figure, axes = _axes(10, 5, xscale="log", xlim=(1, 10), ylim=(-0.02, 1.02))
    axes.set(
        xlabel=f"evaluations to {target:g} times the best known loss, over the fewest that any arm needs"
    )
    axes.set_ylabel("part of the test pairs")
    rows = zip(field.runs, shares, *bands, strict=True)
    for arm, share, low, high in sorted(rows, key=lambda row: _place(colours, row[0])):
        if arm in colours:
            axes.fill_between(factors, low, high, color=colours[arm], alpha=0.07, lw=0, step="post")
            label = arm if share[-1] else f"{arm} (on none)"
            axes.step(factors, share, color=colours[arm], lw=2, where="post", label=label, zorder=3)
        else:
            axes.step(factors, share, color="#9aa3b0", lw=0.8, alpha=0.7, where="post")
    axes.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 5, 10]))
    figures.plain_ticks(axes.xaxis)
    figures.legend(figure, "up and left is better")
    return figure


def ranks(found: Study, fields: Sequence[Field]) -> Figure | None:
    """Mean ranks with the critical difference; none for fewer than three arms or a single pair."""
    field = fields[-1]
    if (found_ranks := _ranks(field)) is None:
        return None
    arms, order = [*field.runs], np.argsort(found_ranks.mean)
    figure, axes = _axes(9, 1 + 0.26 * len(order), xlabel=f"mean rank after {field.budget} evaluations")
    axes.axvspan(1, found_ranks.mean[order[0]] + found_ranks.critical, color="#d9f2e1", alpha=0.6, lw=0)
    axes.plot(found_ranks.mean[order], range(len(order)), "o", color="#2456a6", ms=6)
    axes.set_yticks(range(len(order)), [f"{arms[i]} {_rate(field, arms[i])}".strip() for i in order])
    axes.invert_yaxis()
    note = f"green: within Nemenyi's critical difference of the best, {found_ranks.critical:.1f}, at 5 %"
    axes.set_title(note, fontsize=9, loc="left")
    return figure


def plane(found: Study, fields: Sequence[Field]) -> Figure | None:
    """Style against content at the largest budget, means over pairs, with the front; none if none is measured."""
    field, colours = fields[-1], _colours(fields)
    points = np.array([np.mean([(run.style, run.lpips) for run in runs], 0) for runs in field.runs.values()])
    if not np.isfinite(points).all():
        return None
    figure, axes = _axes(9, 6, xlabel="style distance, layers held out: lower has more of the style")
    axes.set_ylabel("LPIPS to the photo: lower has more of the photo")
    near = (points <= 1.5 * np.median(points, 0)).all(1)
    near |= not near.any()  # as of two arms that are at the two ends
    axes.plot(*points[near][study.front(points[near])].T, color="#2456a6", lw=1, alpha=0.5, zorder=1)
    for arm, point in zip(field.runs, points, strict=True):
        axes.plot(*point, "o", color=colours.get(arm, "#9aa3b0"), ms=8 if arm in colours else 5)
        if arm in colours:
            axes.annotate(arm, point, xytext=(6, 3), textcoords="offset points", fontsize=8)
    low, high = points[near].min(0), points[near].max(0)
    margin = np.maximum(0.06 * (high - low), 1e-3)
    axes.set(
        xlim=(low[0] - margin[0], high[0] + 3 * margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1])
    )
    if outside := len(near) - int(near.sum()):
        axes.set_title(f"{outside} of {len(near)} arms lie outside", fontsize=9, loc="left")
    return figure


def sensitivity(found: Study, fields: Sequence[Field]) -> Figure | None:
    """Scores on the tuning pairs by learning rate over the best rate's, at the largest budget."""
    field = fields[-1]
    tuned = [
        arm for arm in _order(fields) if study.rate_scores(found.tunings, field.problem, arm, field.budget)
    ]
    if not tuned:
        return None
    palette = figures.colours(tuned[:COLOURED])
    figure, axes = _axes(10, 5, xlabel="learning rate", xscale="log", yscale="log")
    axes.set_ylabel("lowest loss, over that of the best rate")
    for arm in tuned:
        scores = study.rate_scores(found.tunings, field.problem, arm, field.budget)
        values = np.array(list(scores.values()))
        if not np.isfinite(values).any():
            continue
        style = (
            {"color": palette[arm], "lw": 2, "label": arm}
            if arm in palette
            else {"color": "#9aa3b0", "lw": 0.8}
        )
        axes.plot(list(scores), values / values.min(), "o-", ms=4, **style)
        axes.plot(min(scores, key=scores.get), 1, "o", ms=8 if arm in palette else 5, color=style["color"])
    axes.axhspan(1, 1.1, color="#d9f2e1", alpha=0.6, lw=0)
    axes.set_ylim(0.97, 5)
    axes.yaxis.set_major_locator(FixedLocator([1, 1.1, 1.25, 1.5, 2, 3, 5]))
    figures.plain_ticks(axes.yaxis)
    figures.legend(figure, f"after {field.budget} evaluations\ngreen: within 10 %")
    return figure


FIGURES: Mapping[str, Callable[[Study, Sequence[Field]], Figure | None]] = {
    "curves": curves,
    "profile": profile,
    "ranks": ranks,
    "plane": plane,
    "rates": sensitivity,
}
