"""What the settings name as input: layers with their weights, and pictures with their masks, at each size."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures, start
from jaxstyle.losses import objective, recipes
from jaxstyle.optimizers import catalogue

from .settings import Settings

#: Of a term's weight times that of a layer: losses of 1e13 then fit into float32.
MAX_WEIGHT = 1e25

Image = Float[np.ndarray, "height width 3"]
Mask = Float[np.ndarray, "height width"]

#: Of each region its mask in the photo and that in the style picture, of any sizes; 255 is inside.
Regions = Sequence[tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height' width'"]]]

#: Pillow's filter by which masks are brought to a size.
MASK_FILTER = "bilinear"

#: Longer side in pixels of the smallest size that a run begins with by default.
SMALLEST = 180

#: Longer sides of the results for which one size is enough by default, in place of three: see `at_once`.
AT_ONCE = range(360, 510)

#: Steps by default, and where one size is enough.
STEPS, STEPS_AT_ONCE = 80, 40


# --- layers and weights -------------------------------------------------------------------------------------------


def parse_layer(flag: str, text: str, known: Sequence[str]) -> tuple[str, float]:
    """`NAME` or `NAME:weight`.

    Raises:
      UserError: the network has no such layer, or the weight is none.
    """
    name, colon, weight = text.partition(":")
    if name not in known:
        raise UserError(f"--{flag}={text}: no layer {name!r}; the network has {', '.join(known)}")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise UserError(f"--{flag}={text}: the weight must be a number of 0 or more, not {weight!r}")
    return name, value


def style_loss(settings: Settings) -> str:
    """The name of the style loss; where none is given, what suits the form of the losses."""
    return settings.style_loss or recipes.STYLE_LOSS[settings.loss]


def read_recipe(settings: Settings, known: Sequence[str]) -> recipes.Recipe:
    """The layers and weights that the settings give; where they give none, what suits the losses.

    Raises:
      UserError: a layer that is not `known`, or a weight that is none.
    """
    given: dict[str, Any] = {}
    for flag in ("content_layer", "style_layer"):
        if texts := getattr(settings, flag):
            given[f"{flag}s"] = dict(parse_layer(flag, text, known) for text in texts)
    for flag in ("content_weight", "style_weight", "tv_weight"):
        if (value := getattr(settings, flag)) is not None:
            if not value <= np.finfo(np.float32).max:
                raise UserError(f"--{flag}={value}: must be a number that float32 can hold")
            given[flag] = value
    if settings.padding:
        given["padding"] = settings.padding
    suits = recipes.suiting(settings.loss, style_loss(settings), settings.content_loss or "squares")
    return suits._replace(**given)


def weighting(recipe: recipes.Recipe, shape: Sequence[int]) -> recipes.Weighting:
    """The weights of a recipe for an image of shape (height, width, 3).

    Raises:
      UserError: one is too large for float32.
    """
    found = recipes.weighting(recipe, shape)
    if not max(*found.content.values(), *found.style.values(), found.tv) <= MAX_WEIGHT:
        raise UserError(
            "--content_weight, --style_weight, --tv_weight: each, times the weight of a "
            f"layer, must be at most {MAX_WEIGHT:g}; float32 cannot hold the loss otherwise"
        )
    return found


def with_recipe(settings: Settings, recipe: recipes.Recipe, shape: Sequence[int]) -> Settings:
    """The settings with a recipe written out, so that the record of a run does not depend on defaults."""

    def texts(layers: dict[str, float]) -> tuple[str, ...]:
        return tuple(f"{name}:{weight:.9g}" for name, weight in layers.items())

    return dataclasses.replace(
        settings,
        style_loss=style_loss(settings),
        content_layer=texts(recipe.content_layers),
        style_layer=texts(recipe.style_layers),
        content_weight=recipes.content_weight(recipe, shape),
        style_weight=recipe.style_weight,
        tv_weight=recipe.tv_weight,
        padding=recipe.padding,
    )


# --- sizes --------------------------------------------------------------------------------------------------------


def scaled(size: pictures.Size, factor: float) -> pictures.Size:
    """A size times a factor, each side at least 1."""
    if isinstance(size, int):
        return max(1, round(factor * size))
    return tuple(max(1, round(factor * side)) for side in size)


def longer_side(size: pictures.Size) -> int:
    return size if isinstance(size, int) else max(size)


def at_once(settings: Settings) -> bool:
    """Whether one size is enough by default, where others begin with coarser ones: see docs/performance.md.

    What coarse sizes find is large forms. A photo brings them, and where mean and covariance are matched, L-BFGS
    has as low a loss in half the time at the last size alone.
    """
    name = re.split("[:@]", settings.optimizer.strip())[0]
    return (
        settings.init == "content"
        and style_loss(settings) == "wasserstein"
        and settings.content_loss in (None, "squares")
        and catalogue.suits(name, settings.loss) != "pixels"
        and longer_side(pictures.parse_size(settings.size)) in AT_ONCE
    )


def default_scales(settings: Settings) -> int:
    """As many as `SMALLEST` allows; one for what is of one size, and from a start picture, to keep its detail."""
    of_one_size = settings.loss != "gatys" or settings.evaluations is not None
    if of_one_size or settings.init not in start.KINDS or at_once(settings):
        return 1
    steps, longer = settings.steps or STEPS, longer_side(pictures.parse_size(settings.size))
    return max(1, min(steps, 1 + int(2 * math.log2(longer / SMALLEST))))


def with_schedule(settings: Settings) -> Settings:
    """The settings with the numbers of scales and steps, so that the record of a run does not depend on defaults.

    Raises:
      UserError: the size is none, or there are more scales than steps, or more than the loss has.
    """
    count = settings.scales or default_scales(settings)
    steps = settings.steps or (STEPS_AT_ONCE if count == 1 and at_once(settings) else STEPS)
    if count > steps:
        raise UserError(f"--scales={count}: --steps={steps} must be as many or more, a step for each")
    if count > 1 and settings.loss != "gatys":
        raise UserError(f"--scales={count}: --loss={settings.loss} is of one size; take 1")
    if count > 1 and settings.evaluations is not None:
        raise UserError(f"--scales={count}: --evaluations is for runs of one size; take 1")
    return dataclasses.replace(settings, scales=count, steps=steps)


def last_steps(steps: int, scales: int) -> list[int]:
    """The last step of each scale, among which the steps are shared out."""
    return [steps * (number + 1) // scales for number in range(scales)]


def sizes(settings: Settings) -> list[pictures.Size]:
    """The size at each of the scales, √2 times the one before; the last is that of the result."""
    size = pictures.parse_size(settings.size)
    return [scaled(size, 2 ** (-k / 2)) for k in reversed(range(settings.scales))]


# --- pictures -----------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """A file or sample that was read: for which flag, its path, and the shape that it was brought to."""

    flag: str
    path: str
    shape: tuple[int, ...]


class Pictures(NamedTuple):
    """Pictures at one size, as the objective is given them, the photo in its own colours, and where they are from."""

    photo: Image
    content: Image
    content_mask: Mask | None
    styles: list[objective.Style]
    sources: list[Source]


def parse_style(text: str) -> tuple[str, float]:
    """`PATH` or `PATH:share`; a file that has the whole name is taken as it is.

    Raises:
      UserError: there is no path, or the share is out of range.
    """
    if not text:
        raise UserError("--style=: names no picture; a picture file or a sample is needed")
    path, _, last = text.rpartition(":")
    try:
        share = float(last)
    except ValueError:
        return text, 1.0
    if not path or pathlib.Path(text).exists():
        return text, 1.0
    if not 1e-30 <= share <= 1e30:  # float32 holds their sum, too
        raise UserError(f"--style={text}: the share must be a number from 1e-30 to 1e30, not {last!r}")
    return path, share


def paths(settings: Settings) -> list[str]:
    """The pictures that the settings name besides the photo, and what is no file among them."""
    several = (*(settings.content_mask or ()), *(settings.style_mask or ()))
    styles = (parse_style(text)[0] for text in settings.style)
    return [path for path in (*styles, *several, settings.content_weight_mask, settings.init) if path]


def run_name(settings: Settings) -> str:
    """PHOTO-STYLE, by the names of the pictures without folders and endings: where a run goes by default."""
    paths = [settings.content, *(parse_style(text)[0] for text in settings.style)]
    return "-".join(pathlib.PurePath(path.removeprefix("sample:")).stem for path in paths)


def read_pictures(settings: Settings, size: pictures.Size, regions: Regions = ()) -> Pictures:
    """The pictures of a run at one size, with the regions that were found in them, see `read_styles`.

    Raises:
      UserError: a file cannot be used, or there are not as many masks as style pictures.
    """
    photo = pictures.read(settings.content, size, settings.resize, smallest=pictures.MIN_SIDE)
    sources = [Source("content", settings.content, photo.shape)]
    styles = []
    for style, found in read_styles(settings, photo, size, regions):
        styles.append(style)
        sources += found
    mask = read_mask("content_weight_mask", settings.content_weight_mask, photo.shape)
    if mask is not None:
        sources.append(Source("content_weight_mask", settings.content_weight_mask, mask.shape))
    content = color.PRESERVE[settings.preserve_color].prepare_content(photo)
    return Pictures(photo, content, mask, styles, sources)


def read_styles(
    settings: Settings, photo: Image, size: pictures.Size, regions: Regions = ()
) -> Iterator[tuple[objective.Style, list[Source]]]:
    """Each style picture for a result of a size, with its share and its masks; and what was read for it.

    With `regions` the one style picture comes once for each, as if their masks were given as files.

    Raises:
      UserError: a file cannot be used, or there are not as many masks or scales as style pictures.
    """
    preserve, flags = color.PRESERVE[settings.preserve_color], ("content_mask", "style_mask")
    masks = (_mask_paths(flag, getattr(settings, flag), len(settings.style)) for flag in flags)
    for text, scale, *paths in zip(settings.style, style_scales(settings), *masks, strict=True):
        path, share = parse_style(text)
        picture = pictures.read(path, scaled(size, scale), settings.resize, smallest=pictures.MIN_SIDE)
        prepared, shapes = preserve.prepare_style(picture, photo), (photo.shape, picture.shape)
        files = list(zip(flags, paths, shapes, strict=True))
        sources = [Source("style", path, picture.shape)]
        sources += [Source(flag, mask, shape[:2]) for flag, mask, shape in files if mask]
        of_regions = [[_brought(*each) for each in zip(pair, shapes, strict=True)] for pair in regions]
        for both in of_regions or [[read_mask(*each) for each in files]]:
            yield objective.Style(prepared, share, *both), sources


def style_scales(settings: Settings) -> Sequence[float]:
    """The scale of each style picture.

    Raises:
      UserError: there are others than one for all or one for each.
    """
    scales, count = settings.style_scale, len(settings.style)
    given = scales * count if len(scales) == 1 else scales
    return _one_each("style_scale", given, count, "one alone is for all")


def _mask_paths(flag: str, given: Sequence[str] | None, count: int) -> Sequence[str]:
    """One for each of `count` style pictures; an empty text for none.

    Raises:
      UserError: there are more or fewer, and not none at all.
    """
    return _one_each(flag, given or [""] * count, count, f"--{flag}= stands for none")


def _one_each(flag: str, given: Sequence[Any], count: int, otherwise: str) -> Sequence[Any]:
    if len(given) != count:
        raise UserError(
            f"--{flag}: {len(given)} given for {count} of --style; each style picture needs one, in the same "
            f"order; {otherwise}"
        )
    return given


def read_mask(flag: str, path: str | None, shape: Sequence[int]) -> Mask | None:
    """A mask brought to the size of a picture of shape (height, width, 3); None for no path.

    What is transparent counts as black: a region may be painted white on nothing.

    Raises:
      UserError: the file cannot be used, or has nothing but black.
    """
    if not path:
        return None
    found = _mask(pictures.read(path, _size(shape), MASK_FILTER, smallest=pictures.MIN_SIDE, ground="black"))
    if not found.any():
        raise UserError(f"--{flag}={path}: is black all over; what is white counts, not what is transparent")
    return found


def _brought(mask: UInt8[np.ndarray, "height width"], shape: Sequence[int]) -> Mask:
    """As `read_mask` of a file that has this mask."""
    return _mask(pictures.resized(np.repeat(mask[..., None], 3, 2), _size(shape), MASK_FILTER))


def _size(shape: Sequence[int]) -> tuple[int, int]:
    height, width, _ = shape
    return width, height


def _mask(picture: Image) -> Mask:
    return picture.mean(-1, dtype=np.float32) / 255


def read_start(settings: Settings, given: Pictures) -> tuple[jax.Array, list[Source]]:
    """The start image: one of `start.KINDS`, or a picture brought to the photo's size; and what was read for it.

    Raises:
      UserError: the file cannot be used.
    """
    kind = settings.init
    if kind in start.KINDS:
        content = jax.device_put(given.content)
        return start.image(kind, settings.seed, content, [style.picture for style in given.styles]), []
    if not kind or (kind.isidentifier() and not pathlib.Path(kind).exists()):
        raise UserError(
            f"--init={kind}: no such file, and no start image of this name; there are {', '.join(start.KINDS)}"
        )
    image = pictures.read(kind, _size(given.photo.shape), settings.resize, smallest=pictures.MIN_SIDE)
    return jax.device_put(image), [Source("init", kind, image.shape)]
