"""What the studio's page offers of the flags, and the command that a page's choices come to."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.losses import recipes
from jaxstyle.runs import workdir

from . import arm, inputs, settings, spoken
from .settings import Settings


class Choice(NamedTuple):
    """A value of a flag, what it does in a word or two, and the picture that shows it, by its name in `page/`."""

    value: str
    label: str
    picture: str | None = None


class Control(NamedTuple):
    """A flag as the page offers it: some of its values, or with `span` any number from the first to the second.

    `free` is whether other values than those of the choices may be typed.
    """

    flag: str
    title: str
    choices: tuple[Choice, ...] = ()
    span: tuple[float, float, float] | None = None
    free: bool = False


#: Pictures of the flags at their defaults, and of one flag at another value: `sample:portrait` and `sample:night`
#: at 192 pixels in 50 steps (tests/thumbnails.py makes them).
_BASE = "base"

CONTROLS = (
    Control(
        "style_weight",
        "Strength",
        (
            Choice("0.1", "a touch", "style_weight-0.1"),
            Choice("0.3", "some", "style_weight-0.3"),
            Choice("", "balanced", _BASE),
            Choice("4", "strong", "style_weight-4"),
        ),
        free=True,
    ),
    Control(
        "preserve_color",
        "Colours",
        (
            Choice("none", "the style's", _BASE),
            Choice("luminance", "the photo's", "preserve_color-luminance"),
            Choice("histogram", "by histogram", "preserve_color-histogram"),
            Choice("linear", "by linear map", "preserve_color-linear"),
            Choice("palette", "its hues in the style's palette", "preserve_color-palette"),
        ),
    ),
    Control(
        "style_scale",
        "Strokes",
        (
            Choice("0.5", "fine", "style_scale-0.5"),
            Choice("1", "as they are", _BASE),
            Choice("2", "broad", "style_scale-2"),
        ),
        free=True,
    ),
    Control(
        "style_loss",
        "What is matched",
        (
            Choice("wasserstein", "Wasserstein", _BASE),
            Choice("gram", "Gram", "style_loss-gram"),
            Choice("sliced", "sliced, slow", "style_loss-sliced"),
            Choice("mrf", "patches", "style_loss-mrf"),
            Choice("nearest", "by nearest", "style_loss-nearest"),
            Choice("rot", "transport", "style_loss-rot"),
            Choice("cross", "across layers", "style_loss-cross"),
        ),
    ),
    Control(
        "init",
        "Begins from",
        (
            Choice("content", "the photo", _BASE),
            Choice("noise", "noise", "init-noise"),
            Choice("style_statistics", "style's noise", "init-style_statistics"),
        ),
    ),
    Control("size", "Longer side", span=(128, 1024, 16), free=True),
    Control("steps", "Steps", span=(10, 500, 10), free=True),
    Control("seed", "Seed", span=(0, 2**32 - 1, 1)),
    Control("bits", "Bits a colour", (Choice("8", "8"), Choice("16", "16, in PNG and TIFF"))),
)

#: Optimizers that are offered by name; any other may be typed.
OPTIMIZERS = (
    Choice("lbfgs:scaling=spectral", "L-BFGS"),
    Choice("lbfgs", "L-BFGS with one scale"),
    Choice("adam:learning_rate=10", "Adam"),
    Choice("nonlinear-cg", "nonlinear conjugate gradients"),
    Choice("rmsprop:learning_rate=3", "RMSProp"),
    Choice("momentum:learning_rate=3", "momentum"),
    Choice("gd:learning_rate=10", "gradient descent"),
)

#: What a page chooses: the pictures, the controls, the optimizer, and one to compare it with.
CHOSEN = ("content", "style", *(control.flag for control in CONTROLS), "optimizer", "against")

#: Pictures on the way that a run leaves, which a page shows as they come.
FRAMES = 24


def text(value: Any) -> str:
    """A default as the page has it: numbers in their fewest digits, and nothing for what suits the others."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def page() -> dict[str, Any]:
    """All that the page is made of: controls with help and defaults, optimizers, and what a run is given."""
    helps = {
        field.name: field.metadata["define"].keywords["help"]
        for field in dataclasses.fields(Settings)
        if field.metadata
    }
    return {
        "controls": [
            control._asdict()
            | {"choices": [choice._asdict() for choice in control.choices], "help": helps[control.flag]}
            for control in CONTROLS
        ],
        "optimizers": [choice._asdict() for choice in OPTIMIZERS],
        "defaults": values(Settings()),
    }


def values(given: Settings) -> dict[str, str]:
    """What a page would choose for these settings; of several style pictures the first.

    A style weight that suits the losses is empty: it goes with them when another is chosen.
    """
    found = {name: text(getattr(given, name)) for name in CHOSEN if name not in ("style", "against")}
    loss = inputs.style_loss(given)
    suits = recipes.suiting(given.loss, loss).style_weight
    return found | {
        "style": inputs.parse_style(given.style[0])[0],
        "style_scale": text(given.style_scale[0]),
        "style_loss": loss,
        "style_weight": "" if given.style_weight in (None, suits) else text(given.style_weight),
        "against": "",
    }


def read(flags: str) -> dict[str, str]:
    """What a page would choose for the run of a `run.flags`, or of a command's flags in lines; nothing for pairs."""
    given = workdir.values(flags)
    if "content" not in given:
        return {}
    first, second = [*given.pop("optimizer", [Settings.optimizer]), ""][:2]
    known = [field.name for field in dataclasses.fields(Settings) if field.name in given]
    shared = "".join(f"--{name}={value}\n" for name in known for value in given[name])
    return values(settings.parse(shared)) | {"optimizer": first, "against": second}


class Command(NamedTuple):
    """A command by its name in `experiments`, its flags without --workdir, and the name for its run."""

    name: str
    flags: tuple[str, ...]
    run: str

    def line(self, workdir: str) -> str:
        """As it is typed."""
        return f"{spoken(self.name)} {shlex.join([*self.flags, f'--workdir={workdir}'])}"


def command(chosen: Mapping[str, str]) -> Command:
    """The command for what a page has chosen: flags that differ from their defaults, which an empty field means.

    Raises:
      UserError: a value that its flag does not take.
    """
    if unknown := set(chosen) - set(CHOSEN):
        raise UserError(f"{min(unknown)!r}: is nothing that the page offers")
    if not all(isinstance(value, str) and value.isprintable() for value in chosen.values()):
        raise UserError("what is chosen must be one line of printable characters")
    defaults = values(Settings())
    chosen = defaults | {name: value.strip() for name, value in chosen.items() if value.strip()}
    against = chosen.pop("against")
    given = settings.parse("".join(f"--{name}={value}\n" for name, value in chosen.items() if value))
    pictures.parse_size(given.size)
    for optimizer in filter(None, (given.optimizer, against)):
        arm.parse_optimizer(dataclasses.replace(given, optimizer=optimizer))
    flags = [f"--content={given.content}", f"--style={given.style[0]}"]
    flags += [f"--{flag}={chosen[flag]}" for flag, *_ in CONTROLS if chosen[flag] != defaults[flag]]
    name = inputs.run_name(given)
    steps = given.steps or (inputs.STEPS if against else inputs.with_schedule(given).steps)
    flags.append(f"--save_every={max(1, round(steps / FRAMES))}")
    if against:
        return Command(
            "compare", (*flags, f"--optimizer={given.optimizer}", f"--optimizer={against}"), f"compare-{name}"
        )
    if given.optimizer != Settings.optimizer:
        flags.append(f"--optimizer={given.optimizer}")
    return Command("stylize", tuple(flags), name)


def trials(chosen: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Flags of `stylize` for a dry run of each optimizer that is chosen."""
    alone = dict(chosen) | {"against": ""}
    if not chosen.get("against"):
        return [command(alone).flags]
    # As compare has it by default.
    alone["steps"] = alone.get("steps") or str(inputs.STEPS)
    arms = command(alone), command(alone | {"optimizer": chosen["against"]})
    return [(*each.flags, "--scales=1", "--parametrization=pixels") for each in arms]
