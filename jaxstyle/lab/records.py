"""What comparisons and sweeps have recorded: reading it back, and tables of it."""

import functools
import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.runs import journal, workdir


class Arm(NamedTuple):
    """One run as it was recorded. Arms of one `label` differ in pictures or seed; `keep` is of `training.KEEPERS`."""

    name: str
    label: str
    pair: str
    seed: int
    status: str
    manifest: Mapping[str, Any]
    rows: Float[np.ndarray, "rows 7"]
    image: bytes | None
    keep: str = "last"


def read_curves(path: str, unpack: Callable[[bytes], Any]) -> Any:
    """What a page was made of, from its curves.npz.

    Raises:
      UserError: it is no such file.
    """
    try:
        return unpack(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--curves={path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"--curves={path}: no curves of such a page") from error


def read_arm(directory: pathlib.Path, label: str) -> Arm | None:
    """The run in a directory, or None if it has recorded no row or is damaged; `rows` are of `journal.COLUMNS`."""
    picture = directory / "image.png"
    try:
        manifest = journal.read_manifest(directory)
        status = manifest["status"]
        ended = status in journal.ENDED and picture.exists()
        return Arm(
            directory.name,
            label,
            " + ".join(printable(pathlib.PurePath(path).name) for path in manifest["pictures"]),
            manifest["seed"],
            status,
            manifest,
            journal.read_metrics(directory / "metrics.csv"),
            picture.read_bytes() if ended else None,
            "".join(workdir.values(workdir.flags_of(directory)).get("keep", ["last"])),
        )
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def image_loss(arm: Arm) -> str:
    """A caption: the loss of the iterate that the picture is, and when the run diverged."""
    diverged = f"; diverged after step {arm.rows[-1, 0]:.0f}" if arm.status == "diverged" else ""
    if arm.keep == "average":
        return "mean of iterates" + diverged
    if arm.keep == "best":
        row = arm.rows[np.argmin(arm.rows[:, 3])]
        return f"loss {row[3]:.4g} at step {row[0]:.0f}{diverged}"
    return f"loss {arm.rows[-1, 3]:.4g}{diverged}"


def label(text: str) -> str:
    """A specification as a safe name of a directory."""
    return re.sub(r"[^\w.,=+-]", "_", re.sub(r"\s", "", text).replace(":", "-"), flags=re.ASCII)


def labels(texts: Iterable[str]) -> dict[str, str]:
    """Label -> specification. A label is a safe name of a directory and does not depend on later arms."""
    found: dict[str, str] = {}
    for text in texts:
        name = stem = label(text)
        number = 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = text
    return found


def title(label: str) -> str:
    """A label as figures and tables show it: `adam 10`."""
    return label.replace("-learning_rate=", " ")


@functools.cache
def _input(path: str, shape: tuple[int, ...]) -> Image.Image | None:
    try:
        picture = pictures.read(path, (shape[1], shape[0]), "lanczos")
    except UserError:
        return None
    return Image.fromarray(picture.astype(np.uint8))


def inputs(arm: Arm) -> list[tuple[str, Image.Image | None]]:
    """Names of the pictures that a run was given, with each at the size that it had there, None if it is gone."""
    return [
        (printable(pathlib.PurePath(path).name), _input(path, tuple(shape)))
        for path, facts in arm.manifest["pictures"].items()
        for shape in facts["shapes"].values()
    ]


def printable(text: str) -> str:
    """The text with line ends, control characters and bytes that are no Unicode spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


#: The columns of `summary.csv`. Losses are final, at the last row, and best, at the row of the lowest total.
SUMMARY = (
    *("label", "pair", "seed", "status", "steps", "evaluations", "seconds", "seconds_per_evaluation"),
    *("final_total", "final_content", "final_style", "final_tv"),
    *("best_step", "best_total", "best_content", "best_style", "best_tv"),
)


def summary_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """A row of `SUMMARY` for each arm."""
    table = []
    for arm in arms:
        step, evaluations, seconds, *final = arm.rows[-1]
        best_step, _, _, *best = arm.rows[np.argmin(arm.rows[:, 3])]
        values = (
            *(arm.name, arm.pair, arm.seed, arm.status, int(step), int(evaluations)),
            *(round(float(seconds), 6), round(float(seconds / evaluations), 6)),
            *(f"{loss:.7g}" for loss in final),
            *(int(best_step), *(f"{loss:.7g}" for loss in best)),
        )
        table.append(dict(zip(SUMMARY, values, strict=True)))
    return table


#: A row of names, and rows of cells.
Table = tuple[list[str], list[list[str]]]


def markdown(table: Table, cells: str = "---:") -> str:
    """A table as Markdown; the cells after the first of a row stand to the right, as numbers do, words by `---`."""
    head, rows = table
    lines = [head, ["---"] + [cells] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


#: Of what a budget is, by the names of `journal.COLUMNS`.
BUDGETS = {"evaluations": (50, 100, 500, 1000), "seconds": (10, 30, 100, 300)}


def loss_within(arm: Arm, clock: str, budget: float) -> float | None:
    """The total loss that a budget brings an arm to: of its last iterate within it. None if the arm ended before.

    Args:
      arm: the run.
      clock: one of `BUDGETS`.
      budget: number of evaluations, or seconds.
    """
    spent = arm.rows[:, journal.COLUMNS.index(clock)]
    within = np.flatnonzero(spent <= budget)
    if spent[-1] < budget or not len(within):
        return None
    return float(arm.rows[within[-1], 3])


def median_losses(arms: Iterable[Arm], clock: str, budget: float) -> dict[str, float]:
    """By label the loss that a budget brings the arms to, the median over those that went so far."""
    losses: dict[str, list[float]] = {}
    for arm in arms:
        if (loss := loss_within(arm, clock, budget)) is not None:
            losses.setdefault(arm.label, []).append(loss)
    return {label: float(np.median(found)) for label, found in losses.items()}


def by_budget(arms: Sequence[Arm]) -> dict[tuple[str, int], dict[str, float]]:
    """By clock and budget the `median_losses` of arms of one pair, where there are some."""
    both = [(clock, budget) for clock, budgets in BUDGETS.items() for budget in budgets]
    return {each: losses for each in both if (losses := median_losses(arms, *each))}


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


def best_rates(rates: Sequence[Rate]) -> list[Rate] | None:
    """Of one optimizer's rates, sorted, the run of neighbours around the best within 10 % of its loss.

    The best is the lowest final loss. None if every rate diverged.
    """
    ends = [rate.final_total if rate.status == "finished" else math.inf for rate in rates]
    return None if math.isinf(min(ends)) else list(rates[neighbours(ends, 1.1)])


def neighbours(losses: Sequence[float], factor: float) -> slice:
    """The run around the lowest loss in which all are within a factor of it."""
    first = last = int(np.argmin(losses))
    limit = factor * losses[first]
    while first > 0 and losses[first - 1] <= limit:
        first -= 1
    while last < len(losses) - 1 and losses[last + 1] <= limit:
        last += 1
    return slice(first, last + 1)


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
