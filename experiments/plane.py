"""Which style loss, at which weight? How much style for how much of the photo -> a table and the plane of both.

python -m experiments.plane --arm=gram:3,10,30 --arm=wasserstein:0.3,1,3 --test_pairs=2 --workdir=runs/plane

Each style loss paints the test pairs at each of its weights, and the pictures are measured as by
`experiments.measure`. `plane.png` has the means over pairs, of effectiveness against self-similarity and of style
distance against LPIPS, with the fronts: no other arm has more of the style and of the photo. `tables.md` has all
measures and the time of an evaluation at the last scale. Pairs are those of `experiments.study`; all other flags
are shared by all arms. What has run is not run again; with a --size that fixes both sides each style loss is compiled
once.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.lab import figures, plane
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.runs import journal, workdir

from . import arm, inputs, launch, programs, room, settings, task, yardstick
from .cache import Cache
from .pairs import PICTURES, read_pairs
from .settings import Settings

_ARM = flags.DEFINE_multi_string(
    "arm", ["gram:3,10,30", "wasserstein:0.3,1,3"], "A style loss as NAME:weight,weight; repeatable."
)
_TEST_PAIRS = flags.DEFINE_integer("test_pairs", None, "Only the first so many test pairs.", lower_bound=1)
_OPTIMIZER = flags.DEFINE_string("optimizer", Settings.optimizer, "As in stylize.")
_WORKDIR = launch.define_workdir("plane")

flags.adopt_module_key_flags(launch)

#: Flags that the command decides itself, and by what.
OWN = {"content": PICTURES, "style": PICTURES, "style_loss": "--arm", "style_weight": "--arm"}

#: Flags that may differ when it goes on.
CHANGEABLE = ("arm", "test_pairs")


class Arm(NamedTuple):
    """A style loss at a weight."""

    style_loss: str
    weight: float

    def __str__(self) -> str:
        return f"{self.style_loss} {self.weight:g}"


def parse_arm(text: str) -> list[Arm]:
    """The arms of `NAME:weight,weight`.

    Raises:
      UserError: no such style loss, or a weight that is none.
    """
    name, _, weights = text.partition(":")
    if name not in STYLE_LOSSES:
        raise UserError(
            f"--arm={text}: must be one of {', '.join(STYLE_LOSSES)}, with weights as in gram:3,10"
        )
    try:
        found = [float(each) for each in weights.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= each < math.inf for each in found):
        raise UserError(f"--arm={text}: weights must be numbers of 0 or more, as in {name}:3,10")
    return [Arm(name, each) for each in found]


def complete(
    arms: list[Arm],
    pairs: Mapping[str, Settings],
    directory: pathlib.Path,
    cache: Cache,
    conduct: launch.Conduct,
) -> dict[str, dict[str, Any]]:
    """Runs and measures what is missing, a pair at a time; the rows of all by the folders of their runs."""
    measured = yardstick.Measured(directory, cache)
    for pair, base in pairs.items():
        for each in arms:
            folder = directory / "arms" / f"{each} {pair}".replace(" ", "_")
            given = dataclasses.replace(base, style_loss=each.style_loss, style_weight=each.weight)
            posed = task.pose(room.as_begun(given, folder), cache)
            arm.complete(posed, given.optimizer, folder, cache, conduct)
            if folder.name in measured.rows:
                continue
            *_, before, _ = 0, *inputs.last_steps(posed.settings.steps, len(posed.shapes))
            metrics = journal.read_metrics(folder / "metrics.csv")[before:]  # of the last scale
            seconds, evaluations = np.diff(metrics[:, 2]), np.diff(metrics[:, 1])
            made = evaluations > 0  # none once it is at rest or diverged
            steps = seconds[made] / evaluations[made]
            pace = 1000 * float(steps.min()) if steps.size else math.nan
            measured.add(folder, given, arm=str(each), pair=pair, milliseconds=pace)
    return measured.rows


def main() -> None:
    base, texts = settings.read(optimizer=_OPTIMIZER.value), tuple(_ARM.value)
    count, where = _TEST_PAIRS.value, _WORKDIR.value
    conduct, cache = launch.conduct(), Cache(launch.devices())
    for name, instead in OWN.items():
        if settings.given(name):
            raise UserError(f"--{name}: the plane has its own, by {instead}")
    arms = list(dict.fromkeys(each for text in texts for each in parse_arm(text)))
    pairs = read_pairs("test", count, base)
    record = settings.record(base, **dict.fromkeys(OWN), arm=texts, test_pairs=count)
    directory = launch.find_workdir(where, "plane", record, CHANGEABLE)
    devices = programs.spread(arm.parse_optimizer(base), cache)
    # So that what is of no use is told before anything is written.
    given = [dataclasses.replace(pair, style_loss=arms[0].style_loss) for pair in pairs.values()]
    given += [dataclasses.replace(given[0], style_loss=each.style_loss) for each in arms[1:]]
    used: dict[str, Any] = {}
    for each in given:  # one at a time, as a task holds its pictures
        posed = task.pose(each, cache)
        programs.check_strips(posed, len(devices))
        used |= posed.facts["pictures"]
    with workdir.claimed(directory):
        workdir.begin(directory, record, conduct.overwrite, changeable=CHANGEABLE, inputs={"pictures": used})
        rows = complete(arms, pairs, directory, cache, conduct)
        found = plane.means(rows.values(), [str(each) for each in arms])
        files.write_atomically(directory / "tables.md", plane.table(found).encode())
        families = {str(each): each.style_loss for each in arms}
        files.write_atomically(directory / "plane.png", figures.png(figures.planes(found, families)))
    print(f"plane: {directory / 'plane.png'}")


if __name__ == "__main__":
    launch.run(main)
