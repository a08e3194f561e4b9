"""The same pictures under several optimizers -> curves, pictures, a table, verdicts and one page with all of it.

python -m experiments.compare --optimizer=adam --optimizer=lbfgs --steps=100 --workdir=runs/compare

Every arm starts from the same image and runs the same compiled objective. An arm is a whole run of
`experiments.stylize` in `arms/LABEL/`, where LABEL is its --optimizer with `-` for `:`; the same words again get a
number. With several seeds or pairs, those after the first add their names: `arms/adam-B2-seed1/`. So no label
depends on what is compared later: optimizers, pairs and seeds may be added, and only what is new runs.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.lab import article, claims, records, report
from jaxstyle.runs import clocks, processes, workdir
from jaxstyle.runs.signals import Interrupted

from . import arm, cluster, inputs, launch, prefix, programs, room, settings, task
from .cache import Cache
from .pairs import ARTICLE, STUDY, of_article
from .settings import Settings

_OPTIMIZER = flags.DEFINE_multi_string(
    "optimizer",
    ["adam", "lbfgs"],
    "NAME or NAME:key=value,key=value, as in adam:learning_rate=10; repeat it for each arm.",
)
_SEEDS = flags.DEFINE_integer(
    "seeds",
    1,
    "Number of seeds, from --seed upwards; each starts every arm.",
    lower_bound=1,
    upper_bound=10**4,
)
_PAIR = flags.DEFINE_multi_enum(
    "pair",
    None,
    list(ARTICLE),
    f"A pair of the article; repeatable. The samples stand in for its pictures unless the variable {STUDY} "
    "names their folder. --content or --style take the place of all pairs.",
)
_CLAIMS = flags.DEFINE_enum(
    "claims", None, list(claims.EXPERIMENTS), "The experiment of the article whose claims are judged."
)
_AGAINST = flags.DEFINE_string(
    "against", None, "--workdir of the comparison that claims about two experiments refer to."
)
_PREFIX_OF = flags.DEFINE_multi_string(
    "prefix_of",
    None,
    "--workdir of another comparison; repeatable. Its finished arms of the same flags are taken and not run again, "
    "and those of more --steps as far as --steps, if they kept the picture of that step (--save_every).",
)
_WORKDIR = launch.define_workdir("compare-PHOTO-STYLE")
_LAUNCHER, _JOBS, _SBATCH = cluster.define_flags()

flags.adopt_module_key_flags(launch)
flags.adopt_module_key_flags(cluster)

#: Flags that may differ when a comparison goes on: arms, pairs and seeds are added, claims judged anew.
CHANGEABLE = ("optimizer", "seeds", "pair", "claims", "against", "prefix_of")


class Case(NamedTuple):
    """What all arms have in common, and what it adds to their names; the first of a comparison adds nothing."""

    suffix: str
    settings: Settings


class Comparison(NamedTuple):
    """What the flags ask for: arms by label, each in every setting, and the claims that are judged on them.

    `prefixes` are comparisons whose longer arms are taken, `record` is the text of `run.flags`, `pictures` are those
    of all settings, as in a manifest.
    """

    directory: pathlib.Path
    plan: list[Case]
    optimizers: dict[str, str]
    claims: str | None
    against: str | None
    prefixes: tuple[str, ...]
    record: str
    pictures: Mapping[str, Any]


def plan(base: Settings, pairs: Sequence[str], seeds: int) -> list[Case]:
    """All pairs of the first seed, then those of the next. Without pairs, the pictures of `base`.

    Raises:
      UserError: the seeds run out of range.
    """
    if base.seed + seeds > 2**32:
        raise UserError(f"--seeds={seeds}: --seed={base.seed} leaves {2**32 - base.seed} seeds below 2**32")
    found = of_article(pairs) or [("", base.content, base.style)]
    return [
        Case(
            ("" if i == 0 else f"-{name}") + (f"-seed{seed}" if seed > base.seed else ""),
            dataclasses.replace(base, content=content, style=style, seed=seed),
        )
        for seed in range(base.seed, base.seed + seeds)
        for i, (name, content, style) in enumerate(found)
    ]


def judge(experiment: str, against: str | None, arms: list[records.Arm]) -> list[dict[str, Any]]:
    """The rows of `claims.json`."""
    folders = sorted(pathlib.Path(against, "arms").glob("*/")) if against else []
    others = [each for folder in folders if (each := records.read_arm(folder, folder.name))]
    runs, before = ([article.run_of(experiment, each) for each in some] for some in (arms, others))
    return [article.row(verdict) for verdict in article.judge(experiment, runs, before)]


@processes.alone
def tell_missing(others: Sequence[tuple[str, str | None]]) -> None:
    """Says which comparisons are not there, of flags and folders; what there would be of them is done without."""
    for flag, folder in others:
        if folder and not pathlib.Path(folder, "arms").is_dir():
            print(f"--{flag}={folder}: no comparison is there; this one goes on without", file=sys.stderr)


@processes.alone
def tell_left_out(pairs: Sequence[str]) -> None:
    """Says of which pairs of the article other pictures, maybe of a flagfile, take the place."""
    if pairs:
        print(f"--pair: --content or --style take the place of the pairs {', '.join(pairs)}", file=sys.stderr)


@processes.alone
def refresh(comparison: Comparison) -> None:
    """Writes what all arms come to so far."""
    directory = comparison.directory
    names = [(label + each.suffix, label) for each in comparison.plan for label in comparison.optimizers]
    found = (records.read_arm(directory / "arms" / name, label) for name, label in names)
    arms = [each for each in found if each]
    path, verdicts = directory / "claims.json", []
    if comparison.claims:
        verdicts = judge(comparison.claims, comparison.against, arms)
        files.write_atomically(path, json.dumps(verdicts, indent=2).encode() + b"\n")
    else:
        path.unlink(missing_ok=True)  # of arms and claims of before
    report.write(directory, arms, verdicts, comparison.record)


def check_first_pair(directory: pathlib.Path, record: str) -> None:
    """Makes sure that the first pair is still the first, whose arms bear no pair's name.

    Raises:
      UserError: it is another.
    """
    before, now = (workdir.values(flags).get("pair") for flags in (workdir.flags_of(directory), record))
    if before and now and before[0] != now[0]:
        raise UserError(
            f"--pair={now[0]}: the first pair of the comparison in {directory} is {before[0]}; others come after "
            "it, or take another --workdir"
        )


def begin(comparison: Comparison, overwrite: bool) -> None:
    """Begins a comparison, or goes on, in a directory that is claimed; from then on it has a report.

    Raises:
      UserError: see `check_first_pair` and `workdir.begin`.
    """
    directory, record = comparison.directory, comparison.record
    others = [str(pathlib.Path(each, "arms")) for each in (comparison.against, *comparison.prefixes) if each]
    made_of = {"pictures": comparison.pictures}
    if not overwrite:
        processes.first(lambda: check_first_pair(directory, record))
    workdir.begin(directory, record, overwrite, changeable=CHANGEABLE, inputs=made_of, reads=others)
    if not processes.first((directory / "report.html").exists):
        refresh(comparison)


def compare(
    comparison: Comparison, cache: Cache, conduct: launch.Conduct, launcher: cluster.Launcher | None
) -> None:
    """Runs what has not ended, in a directory that is claimed, and writes the report when arms end.

    Drawing it is not to take more than 2.5 % of the time, be the arms ever so many and short.
    """
    begin(comparison, conduct.overwrite)
    directory, jobs = comparison.directory, {}
    pace, fresh = clocks.Pace(1.0), False

    def ended(name: str) -> None:
        nonlocal fresh
        found = records.read_arm(directory / "arms" / name, name)
        print(arm.told(name, found.status, found.rows), flush=True)
        fresh = pace.keep(functools.partial(refresh, comparison))

    try:
        for suffix, given in comparison.plan:
            arms = (directory / "arms" / (label + suffix) for label in comparison.optimizers)
            posed = task.pose(room.as_begun(given, *arms), cache)
            for label, text in comparison.optimizers.items():
                own = directory / "arms" / (label + suffix)
                if prefix.take(posed, text, own, [*map(pathlib.Path, comparison.prefixes)]):
                    print(f"{own.name}: {posed.settings.steps} steps that another comparison has")
                elif launcher:
                    jobs[own.name] = cluster.patiently(functools.partial(arm.job, posed, text, own, conduct))
                    continue
                elif not arm.complete(posed, text, own, cache, conduct):
                    continue
                fresh = pace.keep(functools.partial(refresh, comparison))
        waiting = {name: job for name, job in jobs.items() if job}
        failure = cluster.run(launcher, directory, waiting, ended) if launcher else None
    except Interrupted:
        refresh(comparison)
        raise
    if failure or not fresh:  # of what the last that ended has left
        refresh(comparison)
    if failure:
        raise UserError(failure)


def main() -> None:
    base, where, texts = settings.read(), _WORKDIR.value, _OPTIMIZER.value
    launcher = cluster.read(_LAUNCHER.value, _JOBS.value, _SBATCH.value, where)
    pairs, seeds, experiment, against, prefixes = (
        *(_PAIR.value, _SEEDS.value, _CLAIMS.value, _AGAINST.value),
        tuple(_PREFIX_OF.value or ()),
    )
    own = settings.given("content") or settings.given("style")
    pairs, left_out = ([], pairs or []) if own else (pairs or [], [])
    conduct, cache = launch.conduct(), Cache(launch.devices())
    specs = records.labels(texts)
    # A laboratory is explicit: nothing that suits one arm alone is done without being asked for.
    variables = base.parametrization or "pixels"
    schedule = {"scales": base.scales or 1, "steps": base.steps or inputs.STEPS}
    base = dataclasses.replace(base, parametrization=variables, **schedule)
    parsed = [arm.parse_optimizer(dataclasses.replace(base, optimizer=text)) for text in specs.values()]
    base = room.heaviest(base, specs.values())
    found = plan(base, pairs, seeds)
    # So that what is of no use is told before anything is written.
    posed = [task.pose(each.settings, cache) for each in found[: len(found) // seeds]]
    for each, spec in itertools.product(posed, parsed):
        programs.check_strips(each, len(programs.spread(spec, cache)))
    # The pictures of a pair stand in the records of its arms.
    given = {"content": None, "style": None, "pair": tuple(pairs)} if pairs else {}
    above = {"optimizer": tuple(texts), "seeds": seeds, "claims": experiment, "against": against}
    record = settings.record(base, **above, **given, prefix_of=prefixes)
    name = experiment or f"compare-{'-'.join(pairs) if pairs else inputs.run_name(base)}"
    tell_left_out(left_out)
    tell_missing([("against", against), *(("prefix_of", each) for each in prefixes)])
    pictures = {path: each for one in posed for path, each in one.facts["pictures"].items()}

    def work(directory: pathlib.Path) -> None:
        asked = Comparison(directory, found, specs, experiment, against, prefixes, record, pictures)
        with workdir.claimed(directory):
            compare(asked, cache, conduct, launcher)
        print(f"report: {directory / 'report.html'}")

    launch.in_workdir(where, name, record, CHANGEABLE, work)


if __name__ == "__main__":
    launch.run(main, several=True)
