"""The article's six experiments on one page's worth of tables and figures: what came of its claims, and by how much.

python -m experiments.article --workdir=runs/article
python -m experiments.article --curves=docs/experiments/curves.npz --workdir=runs/remade

Takes what has ended of the experiments in runs/experiment1 to runs/experiment6, or of other comparisons that have
claims (--comparison), and keeps their curves in curves.npz and a sheet of the pictures of each; or takes such a file,
to which comparisons with other seeds may be added. All else is made of the curves: claims.json, figures of each
experiment by evaluation and, of the first seed, by second, and in tables.md the verdicts by pair, how they move with
the thresholds of the words, and losses by evaluations.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence

from absl import flags

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.lab import article, claims, figures, records
from jaxstyle.runs import journal, workdir

from . import launch
from .pairs import ARTICLE

_COMPARISON = flags.DEFINE_multi_string(
    "comparison",
    None,
    "--workdir of a comparison with --claims; repeatable. By default those of configs/experiment1.flags to "
    "experiment6.flags that are there.",
)
_CURVES = flags.DEFINE_string(
    "curves", None, "curves.npz of an earlier page; --comparison adds to it, by default nothing."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/article", "Where the command writes.")
flags.declare_key_flag("overwrite")

#: The pairs' letters by what their pictures are called.
_LETTERS = {
    " + ".join(pathlib.PurePath(name).name for name in pictures): letter
    for letter, both in ARTICLE.items()
    for pictures in both
}


def read_comparison(directory: pathlib.Path) -> list[tuple[str, records.Arm]]:
    """The arms of a comparison that have ended, each with its experiment, and the letter of its pair.

    Raises:
      UserError: it is none, or has no --claims.
    """
    try:
        text = (directory / "run.flags").read_text("utf-8", "replace")
    except OSError as error:
        raise UserError(f"--comparison={directory}: no comparison there: {error}") from error
    experiment = "".join(workdir.values(text).get("claims", ()))
    if experiment not in claims.EXPERIMENTS:
        raise UserError(f"--comparison={directory}: has no --claims in its run.flags")
    found = []
    for folder in sorted(directory.glob("arms/*/")):
        given = workdir.values(workdir.flags_of(folder))
        arm = records.read_arm(folder, records.label("".join(given.get("optimizer", ()))))
        if arm and arm.status in journal.ENDED:
            found.append((experiment, arm._replace(pair=_LETTERS.get(arm.pair, arm.pair))))
    return found


def write(directory: pathlib.Path, runs: Sequence[article.Run]) -> None:
    """Writes the curves and all that is made of them."""
    files.write_atomically(directory / "curves.npz", article.pack(runs))
    rows = [article.row(verdict) for verdict in article.judge_all(runs)]
    files.write_atomically(directory / "claims.json", json.dumps(rows, indent=1).encode() + b"\n")
    text = "\n".join(f"<!-- {name} -->\n{table}" for name, table in article.tables(runs).items())
    files.write_atomically(directory / "tables.md", text.encode())
    for name in dict.fromkeys(run.experiment for run in runs):
        arms = [article.arm_of(run) for run in runs if run.experiment == name]
        # Later seeds may have run beside other work.
        timed = [arm for arm in arms if arm.seed == min(each.seed for each in arms if each.pair == arm.pair)]
        for suffix, clock, shown in (("", "evaluations", arms), ("-seconds", "seconds", timed)):
            figure = figures.png(figures.losses(shown, clocks=(clock,)))
            files.write_atomically(directory / f"{name}{suffix}.png", figure)


def gather(folders: Iterable[str]) -> list[tuple[str, records.Arm]]:
    """The arms of comparisons, those of experiment 1 first."""
    found = [each for folder in folders for each in read_comparison(pathlib.Path(folder))]
    return sorted(found, key=lambda each: (each[0], each[1].pair, each[1].seed, each[1].label))


def main() -> None:
    comparisons, curves, directory = _COMPARISON.value, _CURVES.value, pathlib.Path(_WORKDIR.value)
    usual = [str(launch.RUNS / name) for name in claims.EXPERIMENTS if (launch.RUNS / name).is_dir()]
    taken = comparisons or ([] if curves else usual)
    arms = gather(taken)
    runs = records.read_curves(curves, article.unpack) if curves else []
    try:
        runs = article.joined(runs, [article.run_of(*each) for each in arms])
    except ValueError as error:
        raise UserError(f"--comparison: {error} is there twice") from error
    if not runs:
        raise UserError(
            "--comparison: nothing has ended in runs/experiment1 to runs/experiment6 or those given"
        )
    record = "# experiments.article\n" + "".join(f"--comparison={folder}\n" for folder in taken)
    record += f"--curves={curves}\n" if curves else ""
    used = [*(str(pathlib.Path(each, "arms")) for each in taken), *filter(None, [curves])]
    with workdir.claimed(directory):
        workdir.begin(
            *(directory, record, launch.conduct().overwrite),
            changeable=("comparison", "curves"),
            reads=used,
        )
        write(directory, runs)
        for experiment in dict.fromkeys(name for name, _ in arms):
            mine = [arm for name, arm in arms if name == experiment]
            if any(arm.image for arm in mine):
                sheet = figures.png(figures.pictures(mine))
                files.write_atomically(directory / f"{experiment}-pictures.png", sheet)
    print(f"tables: {directory / 'tables.md'}")


if __name__ == "__main__":
    launch.run(main)
