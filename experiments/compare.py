"""The same pictures under several optimizers -> curves, pictures, a table, verdicts and one page with all of it.

python -m experiments.compare --optimizer=adam --optimizer=lbfgs --steps=100 --workdir=runs/compare

Every arm starts from the same image and runs the same compiled objective. An arm is a whole run of
`experiments.stylize` in `arms/LABEL/`, where LABEL is its --optimizer with `-` for `:`; the same words again get a
number. With several seeds or pairs, those after the first add their names: `arms/adam-B2-seed1/`. So no label
depends on what is compared later: optimizers, pairs and seeds may be added, and only what is new runs.
"""

import json
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import claims, launch, task
from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.lab import records, report
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import loop, workdir

#: The article's pairs: photo and style among the samples, and in the folder of the study's own pictures.
PAIRS = {
    "A": (("sample:portrait", "sample:facets"), ("slav.jpg", "picasso.jpg")),
    "B": (("sample:cat", "sample:night"), ("dog.jpg", "starry_night.jpg")),
    "B2": (("sample:portrait", "sample:night"), ("friends.jpg", "scream.jpg")),
}
STUDY = "JAXSTYLE_IVANOV2017"

_OPTIMIZER = flags.DEFINE_multi_string(
    "optimizer",
    ["adam", "lbfgs"],
    "NAME or NAME:key=value,key=value, as in adam:learning_rate=10; repeat it for each arm.",
)
_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Number of seeds, from --seed upwards; each starts every arm.", lower_bound=1
)
_PAIR = flags.DEFINE_multi_enum(
    "pair",
    None,
    list(PAIRS),
    f"A pair of the article; repeatable. The samples stand in for its pictures unless the variable {STUDY} "
    "names their folder. --content or --style take the place of all pairs.",
)
_CLAIMS = flags.DEFINE_enum(
    "claims", None, list(claims.EXPERIMENTS), "The experiment of the article whose claims are judged."
)
_AGAINST = flags.DEFINE_string(
    "against", None, "--workdir of the comparison that claims about two experiments refer to."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Where the comparison writes.")

#: Flags of a comparison that its arms do not have.
_ABOVE_ARMS = ("seeds", "pair", "claims", "against")


class Setting(NamedTuple):
    """What all arms have in common: pictures and seed. The first setting of a comparison has no suffix."""

    content: str
    styles: tuple[str, ...]
    seed: int
    suffix: str


def settings() -> list[Setting]:
    """The settings that the flags ask for: all pairs of the first seed, then those of the next.

    Raises:
      UserError: the seeds run out of range.
    """
    if launch.CONTENT.present or launch.STYLE.present or not _PAIR.value:
        flags.FLAGS["pair"].value = None
        pairs = [("", launch.CONTENT.value, tuple(launch.STYLE.value))]
    else:
        # So that the record of the flags says what it means.
        flags.FLAGS["content"].value = flags.FLAGS["style"].value = None
        folder = os.environ.get(STUDY)
        pairs = []
        for name in dict.fromkeys(_PAIR.value):
            samples, study = PAIRS[name]
            content, style = (os.path.join(folder, file) for file in study) if folder else samples
            pairs.append((name, content, (style,)))
    first, count = launch.SEED.value, _SEEDS.value
    if first + count > 2**32:
        raise UserError(f"--seeds={count}: --seed={first} leaves {2**32 - first} seeds below 2**32")
    return [
        Setting(content, styles, seed, ("" if i == 0 else f"-{name}") + (f"-seed{seed}" if k else ""))
        for k, seed in enumerate(range(first, first + count))
        for i, (name, content, styles) in enumerate(pairs)
    ]


def use(setting: Setting, given: dict[str, Any]) -> None:
    """Gives the flags the values that `experiments.stylize` would be given for an arm of the setting."""
    values = {"content": setting.content, "style": list(setting.styles), "seed": setting.seed}
    for name, value in (given | dict.fromkeys(_ABOVE_ARMS) | values).items():
        flags.FLAGS[name].value = value


def run_arm(posed: task.Task, text: str, directory: pathlib.Path) -> bool:
    """Runs one arm, from where it is to its end. If it had ended, False is returned and nothing done."""
    flags.FLAGS["optimizer"].value = [text]
    record = launch.recorded_flags()
    with workdir.claimed(directory):
        if workdir.begin(directory, record, launch.OVERWRITE.value) in ("finished", "diverged"):
            return False
        spec = catalogue.parse(text, launch.LOSS.value)
        with tqdm(total=launch.STEPS.value, unit="step", desc=directory.name, disable=None) as bar:

            def show(row) -> None:
                if bar.n == 0:
                    bar.initial = int(row[0])  # earlier steps say nothing of the time left
                bar.set_postfix_str(f"loss {row[3]:.6g}", refresh=False)
                bar.update(int(row[0]) - bar.n)

            result = task.run_arm(posed, spec, directory, record, lambda _: bar.reset(), show)
    step, evaluations, seconds, total = result.rows[-1, :4]
    print(
        f"{directory.name}: {result.status}, loss {result.rows[0, 3]:.6g} -> {total:.6g} "
        f"in {step:.0f} steps, {evaluations:.0f} evaluations, {seconds:.1f} s",
        flush=True,
    )
    return True


def curves_by_run(arms: list[records.Arm]) -> dict[str, list[claims.Curve]]:
    """What a claim is judged on: the curves of each pair and seed."""
    runs: dict[str, list[claims.Curve]] = {}
    for arm in arms:
        spec = arm.manifest["optimizer"]
        curve = claims.Curve(spec["name"], spec.get("learning_rate"), arm.status, *arm.rows.T[1:4])
        runs.setdefault(f"{arm.pair}, seed {arm.seed}", []).append(curve)
    return runs


def judge(experiment: str, against: str | None, arms: list[records.Arm]) -> list[dict[str, Any]]:
    """The rows of `claims.json`."""
    folders = sorted(pathlib.Path(against, "arms").glob("*/")) if against else []
    others = [arm for folder in folders if (arm := records.read_arm(folder, folder.name))]
    verdicts = claims.judge(experiment, curves_by_run(arms), list(curves_by_run(others).values()))
    return [_json(verdict._asdict()) for verdict in verdicts]


def _json(value: Any) -> Any:
    """JSON has no infinities, and none of NumPy's numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    directory = pathlib.Path(_WORKDIR.value)
    specs = records.labels(_OPTIMIZER.value)
    for text in specs.values():
        task.check_clip(catalogue.parse(text, launch.LOSS.value))
    experiment, against = _CLAIMS.value, _AGAINST.value
    flags.FLAGS["scales"].value = launch.SCALES.value or 1
    plan = settings()
    record, given = launch.recorded_flags(), flags.FLAGS.flag_values_dict()
    for setting in plan:
        if setting.seed == plan[0].seed:  # so that a picture of no use is told before anything is written
            use(setting, given)
            task.read()

    def refresh() -> None:
        names = [(label + setting.suffix, label) for setting in plan for label in specs]
        found = (records.read_arm(directory / "arms" / name, label) for name, label in names)
        arms = [arm for arm in found if arm]
        verdicts = judge(experiment, against, arms) if experiment else []
        try:
            if experiment:
                text = json.dumps(verdicts, indent=2)
                files.write_atomically(directory / "claims.json", text.encode() + b"\n")
            report.write(directory, arms, verdicts, record)
        except OSError as error:
            raise UserError(f"--workdir={directory}: cannot write there: {error.strerror}") from error

    with workdir.claimed(directory):
        if launch.OVERWRITE.value and (directory / "run.flags").exists():
            shutil.rmtree(directory / "arms", ignore_errors=True)
        workdir.begin(directory, record, launch.OVERWRITE.value, changeable=("optimizer", *_ABOVE_ARMS))
        refresh()
        try:
            for setting in plan:
                use(setting, given)
                posed = task.read()
                for label, text in specs.items():
                    if run_arm(posed, text, directory / "arms" / (label + setting.suffix)):
                        refresh()
        except loop.Interrupted:
            refresh()
            raise
    print(f"report: {directory / 'report.html'}")


if __name__ == "__main__":
    launch.run(main)
