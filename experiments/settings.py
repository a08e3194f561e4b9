"""What decides a run: one frozen value, its flags, and their text in `run.flags`.

    settings = read(optimizer="adam")     # the flags of this process, once, in a command's main
    text = record(settings)               # the text of run.flags
    assert parse(text) == settings

Every shared flag is a field of `Settings`, with its default, bounds and help. Below a command's main nothing reads a
flag and nothing writes one: what differs is made by `dataclasses.replace`.
"""

import dataclasses
import functools
import math
import os
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.images import color
from jaxstyle.losses import objective
from jaxstyle.losses.content import CONTENT_LOSSES
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.losses.terms import TOTALS
from jaxstyle.network import convolution


class AutoParser(flags.IntegerParser):
    """A whole number, or `auto`, which is None."""

    def parse(self, argument: str | int) -> int | None:
        return None if argument == "auto" else super().parse(argument)


class PathParser(flags.ArgumentParser):
    """A path as it is, or as a percent-encoded `file:` URI, which may stand for any name in one line."""

    def parse(self, argument: str) -> str:
        name = argument.removeprefix("file:")
        return argument if name == argument else os.fsdecode(urllib.parse.unquote_to_bytes(name))


def _serialize_path(value: str) -> str:
    """A path as one line of a flagfile, which neither ends lines within values nor keeps spaces at their ends."""
    if value.isprintable() and value.strip() == value and not value.startswith(("file:", "~/")):
        return value
    return f"file:{urllib.parse.quote(os.fsencode(value))}"


def _field(define: Callable, default: Any, help_: str, **options: Any) -> Any:
    define = functools.partial(define, default=default, help=help_, **options)
    return dataclasses.field(default=default, metadata={"define": define})


_text = functools.partial(_field, flags.DEFINE_string)
_texts = functools.partial(_field, flags.DEFINE_multi_string)
_number = functools.partial(_field, flags.DEFINE_float)
_numbers = functools.partial(_field, flags.DEFINE_multi_float)
_count = functools.partial(_field, flags.DEFINE_integer)
_switch = functools.partial(_field, flags.DEFINE_bool)
_path = functools.partial(_field, flags.DEFINE, parser=PathParser())
_paths = functools.partial(
    _field, flags.DEFINE_multi, parser=PathParser(), serializer=flags.ArgumentSerializer()
)


def _choice(default: str | None, choices: Sequence[str], help_: str) -> Any:
    return _field(flags.DEFINE_enum, default, help_, enum_values=choices)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of the flags that decide a run, by their names. None is what suits the others."""

    content: str | None = _path(
        "sample:portrait", "The photo: a picture file, or sample:portrait or sample:cat."
    )
    style: tuple[str, ...] | None = _paths(
        ("sample:night",),
        "The style picture: a file, or sample:night or sample:facets; with a share, as in a.jpg:2, if there are "
        "several.",
    )
    size: str = _text("400", "Longer side of the result in pixels, aspect kept; WxH fixes both sides.")
    resize: str = _choice(
        "lanczos",
        ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"],
        "Pillow's filter for bringing the input pictures to size; the 2017 study had nearest.",
    )
    weights: str = _path(
        "vgg16-torchvision",
        "The network: vgg16-torchvision, vgg16-keras (extra keras-weights), or a .safetensors or .h5 file.",
    )
    loss: str = _choice(
        "gatys",
        sorted(objective.FORMS),
        "Form of the losses: gatys is Gatys et al. 2016, ivanov2017 that of the study, for --weights=vgg16-keras.",
    )
    content_weight: float | None = _number(
        None, "Weight of the content loss; by default what suits --loss.", lower_bound=0
    )
    style_weight: float | None = _number(
        None,
        "Weight of the style loss; by default what suits the losses: 1.25 for wasserstein, 10 for gram, …",
        lower_bound=0,
    )
    tv_weight: float | None = _number(
        None, "Weight of the total variation; by default what suits --loss.", lower_bound=0
    )
    content_layer: tuple[str, ...] | None = _texts(
        None,
        "Layer of the content loss as NAME or NAME:weight; repeatable; by default block4_conv2, with what suits "
        "--content_loss.",
    )
    total: str | None = _choice(
        None,
        list(TOTALS),
        "How content and style make the total loss: their weighted sum, or their product, which begins elsewhere "
        "than at the photo (--init=noise). By default sum.",
    )
    content_loss: str | None = _choice(
        None,
        list(CONTENT_LOSSES),
        "What of the photo is kept: its features, by squared differences, or which of its parts are alike "
        "(self_similarity), which lets shapes and colours move. By default squares.",
    )
    style_layer: tuple[str, ...] | None = _texts(
        None,
        "Layer of the style loss as NAME or NAME:weight; repeatable; by default what suits --style_loss.",
    )
    style_loss: str | None = _choice(
        None,
        list(STYLE_LOSSES),
        "What of a style picture's features is matched: Gram matrices, mean and covariance (wasserstein), "
        "distributions along random directions (sliced), patches (mrf), what all layers say of a position, each of "
        "the photo's by its nearest (nearest) or both ways (rot), what each layer says, by what is nearest in the "
        "image itself (split, to go on with --init=PICTURE), or Gram matrices across layers (cross). By default "
        "wasserstein, and gram for --loss=ivanov2017.",
    )
    style_scale: tuple[float, ...] = _numbers(
        (1.0,),
        "Size of the style pictures, relative to --size: larger gives larger brush strokes. Once for all, or once "
        "for each --style, in their order.",
        lower_bound=0.05,
        upper_bound=20,
    )
    pooling: str = _choice("max", list(convolution.POOLING), "How the network shrinks its feature maps.")
    padding: str | None = _choice(
        None,
        ["zero", "edge"],
        "What the network sees around the image: zeros, or its edge continued, which keeps borders clean. By "
        "default edge, and zero for --loss=ivanov2017.",
    )
    preserve_color: str = _choice(
        "none",
        list(color.PRESERVE),
        "Keep the photo's colours: style in luminance alone, or style pictures recoloured by histogram or by a "
        "linear map. Or its hues alone, moved to the palette of the style, as --style_loss=nearest may want it.",
    )
    content_mask: tuple[str, ...] | None = _paths(
        None,
        "Picture whose white is the region of the photo that takes a style; one for each --style, in their order. "
        "In masks, what is transparent counts as black.",
    )
    style_mask: tuple[str, ...] | None = _paths(
        None,
        "Picture whose white is the region of a style picture that its style is taken from; one for each --style.",
    )
    regions: int | None = _count(
        None,
        "Find so many regions that the photo and the style picture have in common, sky with sky, and paint each "
        "after its own. Their masks go to regions/ in --workdir, to be edited and given back. By default none.",
        lower_bound=2,
        upper_bound=16,
    )
    content_weight_mask: str | None = _path(
        None, "Picture whose white is where the photo is kept; the weight of the content loss goes there."
    )
    init: str = _path(
        "content", "Start image: content, noise, style_statistics, ivanov2017, or a picture file."
    )
    steps: int | None = _count(
        None,
        "Iterations of the optimizer, shared out among the --scales. By default 80, and 40 at one size of 360 to "
        "509 pixels from the photo with wasserstein and a line search, as lbfgs has.",
        lower_bound=1,
        upper_bound=10**6,
    )
    evaluations: int | None = _count(
        None,
        "A run of one size ends with so many evaluations of loss and gradient, though --steps be left: a line search "
        "takes one or more a step.",
        lower_bound=1,
    )
    scales: int | None = _count(
        None,
        "From coarse to fine: so many sizes, each √2 times the one before, up to --size. By default as many as "
        "leave the longer side 180 pixels or more, but 1 for 360 to 509 pixels from the photo with wasserstein and a "
        "line search, as lbfgs has; 1 in compare and sweep, for --loss=ivanov2017, and from a start picture.",
        lower_bound=1,
        upper_bound=16,
    )
    parametrization: str | None = _text(
        None,
        "The variables in which the optimizer sees the image: pixels, fourier or pyramid, with numbers as in "
        "fourier:exponent=0.5. By default what suits the optimizer, and pixels in compare and sweep; @fourier after "
        "an optimizer is for that one alone.",
    )
    clip: bool = _switch(False, "Bring every iterate to [0, 255], not the result alone.")
    keep: str = _choice(
        "last",
        list(training.KEEPERS),
        "Which image is the result: the last, the one of the lowest loss, or an average that forgets 1 % a step.",
    )
    save_every: int = _count(
        0,
        "Steps between pictures in snapshots/, of which animation.webp is made at the end; 0 is none.",
        lower_bound=0,
    )
    bits: int = _count(8, "Of each colour in the result: 8, or 16 for PNG and TIFF.")
    seed: int = _count(
        0, "Every random number of the run comes from it.", lower_bound=0, upper_bound=2**32 - 1
    )
    convolution: str = _choice(
        "auto",
        ["auto", "direct", "winograd"],
        "How the 3x3 convolutions are computed; auto takes the faster for each layer.",
    )
    precision: str | None = _choice(
        None,
        ["float32", "bfloat16"],
        "Of what deep convolutions multiply; bfloat16 is faster for small pictures on a CPU with AMX (amx_bf16 in "
        "/proc/cpuinfo), and slower on others. By default float32.",
    )
    remat: bool = _switch(
        False,
        "Compute feature maps a second time instead of keeping them: less memory, more time, the same result.",
    )
    strips: int | None = _field(
        flags.DEFINE,
        None,
        "Compute loss and gradient in so many strips of rows: less memory, more time, the same result. By default, "
        "auto, as few as fit into the memory that is free, and --remat where they alone do not: one for most sizes.",
        parser=AutoParser(lower_bound=1, upper_bound=64),
    )
    deterministic: bool = _switch(True, "Ask a GPU for the same bits every time; a CPU gives them anyway.")
    optimizer: str = "lbfgs:scaling=spectral"  # whose flag is a command's: `compare` and `sweep` take several


#: Flags whose values are paths, which may hold any character.
_PATHS = ("content", "style", "weights", "content_mask", "style_mask", "content_weight_mask", "init")

_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def _define(values: flags.FlagValues) -> None:
    for name, field in _FIELDS.items():
        if field.metadata:
            field.metadata["define"](name=name, flag_values=values)
    check = functools.partial(flags.register_validator, flag_values=values)
    check("bits", lambda bits: bits in (8, 16), "must be 8 or 16")
    check("style_scale", lambda scales: all(map(math.isfinite, scales)), "must be a number")


_define(flags.FLAGS)


def _from(values: Mapping[str, Any]) -> Settings:
    return Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def given(name: str) -> bool:
    """Whether the flag stands in this process's command line or in a flagfile there."""
    return flags.FLAGS[name].present > 0


def read(**commands: Any) -> Settings:
    """The flags of this process, with the fields that are not shared flags as the command gives them."""
    return _from(
        {name: flags.FLAGS[name].value for name, field in _FIELDS.items() if field.metadata} | commands
    )


def record(settings: Settings, **commands: Any) -> str:
    """The text of `run.flags`: a line for each value, by name; None has none.

    Args:
      settings: of the run.
      commands: values of flags that a command has besides, or in place of those of the settings.
    """
    values = dataclasses.asdict(settings) | commands
    return "".join(f"{line}\n" for name in sorted(values) for line in _lines(name, values[name]))


def _lines(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no{name}"]
    serialize = _serialize_path if name in _PATHS else str
    return [f"--{name}={serialize(each)}" for each in (value if isinstance(value, tuple) else (value,))]


def parse(text: str) -> Settings:
    """The settings of a `run.flags`; where it is silent, the defaults.

    Raises:
      UserError: a flag or a value that the record of a run cannot have, or no photo.
    """
    values = flags.FlagValues()
    _define(values)
    flags.DEFINE_string("optimizer", Settings.optimizer, "", flag_values=values)
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith(("#", "//"))]
    try:
        rest = values(["run.flags", *lines])[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest or not values["content"].present:
        raise UserError(f"has {rest[0]!r}" if rest else "has no --content")
    return _from({name: values[name].value for name in _FIELDS})
