"""What the flags name as input: layers with their weights, and pictures with their masks, at each size of a run."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

from experiments import launch
from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures, start
from jaxstyle.losses import objective, recipes

#: Of a term's weight times that of a layer: losses of 1e13 then fit into float32.
MAX_WEIGHT = 1e25

Image = Float[np.ndarray, "height width 3"]
Mask = Float[np.ndarray, "height width"]

#: Longer side in pixels of the smallest size that a run begins with by default.
SMALLEST = 256


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


def read_recipe(known: Sequence[str]) -> recipes.Recipe:
    """The layers and weights that the flags give; where they give none, what suits --loss.

    Raises:
      UserError: a layer that is not `known`, or a weight that is none.
    """
    given: dict[str, Any] = {}
    for field, flag in (("content_layers", launch.CONTENT_LAYER), ("style_layers", launch.STYLE_LAYER)):
        if flag.value:
            given[field] = dict(parse_layer(flag.name, text, known) for text in flag.value)
        elif field == "style_layers" and launch.STYLE_LOSS.value in recipes.STYLE_LAYERS:
            given[field] = recipes.STYLE_LAYERS[launch.STYLE_LOSS.value]
    for flag in (launch.CONTENT_WEIGHT, launch.STYLE_WEIGHT, launch.TV_WEIGHT):
        if flag.value is not None:
            if not flag.value <= np.finfo(np.float32).max:
                raise UserError(f"--{flag.name}={flag.value}: must be a number that float32 can hold")
            given[flag.name] = flag.value
    if launch.PADDING.value:
        given["padding"] = launch.PADDING.value
    return recipes.RECIPES[launch.LOSS.value]._replace(**given)


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


def record_recipe(recipe: recipes.Recipe, shape: Sequence[int]) -> None:
    """Writes a recipe back to the flags, so that the record of a run does not depend on defaults."""
    for flag, value in (
        (launch.CONTENT_LAYER, [f"{name}:{weight:.9g}" for name, weight in recipe.content_layers.items()]),
        (launch.STYLE_LAYER, [f"{name}:{weight:.9g}" for name, weight in recipe.style_layers.items()]),
        (launch.CONTENT_WEIGHT, recipes.content_weight(recipe, shape)),
        (launch.STYLE_WEIGHT, recipe.style_weight),
        (launch.TV_WEIGHT, recipe.tv_weight),
        (launch.PADDING, recipe.padding),
    ):
        flags.FLAGS[flag.name].value = value


def parse_style(text: str) -> tuple[str, float]:
    """`PATH` or `PATH:share`; a file that has the whole name is taken as it is.

    Raises:
      UserError: the share is none.
    """
    path, _, last = text.rpartition(":")
    try:
        share = float(last)
    except ValueError:
        return text, 1.0
    if not path or pathlib.Path(text).exists():
        return text, 1.0
    if not 0 < share < math.inf:
        raise UserError(f"--style={text}: the share must be a number greater than 0, not {last!r}")
    return path, share


def scaled(size: pictures.Size, factor: float) -> pictures.Size:
    """A size times a factor, each side at least 1."""
    if isinstance(size, int):
        return max(1, round(factor * size))
    return tuple(max(1, round(factor * side)) for side in size)


def default_scales(size: pictures.Size) -> int:
    """As many as `SMALLEST` allows; one for a --loss of one size, and from a start picture, to keep its detail."""
    if launch.LOSS.value != "gatys" or launch.INIT.value not in start.KINDS:
        return 1
    longer = size if isinstance(size, int) else max(size)
    return max(1, min(launch.STEPS.value, 1 + int(2 * math.log2(longer / SMALLEST))))


def sizes() -> list[pictures.Size]:
    """The value of --size at each of the --scales, √2 times the one before; the last is --size itself.

    Their number is written back to the flag, so that the record of a run does not depend on the default.

    Raises:
      UserError: --size is none, or there are more --scales than --steps, or more than --loss has.
    """
    size, steps, loss = pictures.parse_size(launch.SIZE.value), launch.STEPS.value, launch.LOSS.value
    count = launch.SCALES.value or default_scales(size)
    if count > steps:
        raise UserError(f"--scales={count}: --steps={steps} must be as many or more, a step for each")
    if count > 1 and loss != "gatys":
        raise UserError(f"--scales={count}: --loss={loss} is of one size; take 1")
    flags.FLAGS["scales"].value = count
    return [scaled(size, 2 ** (-k / 2)) for k in reversed(range(count))]


class Pictures(NamedTuple):
    """Pictures at one size, as the objective is given them, and the photo in its own colours.

    `paths` are the files and samples that were read, with the shapes that they were brought to.
    """

    photo: Image
    content: Image
    content_mask: Mask | None
    styles: list[objective.Style]
    paths: dict[str, tuple[int, ...]]


def read_pictures(size: pictures.Size) -> Pictures:
    """The pictures that the flags name.

    Raises:
      UserError: a file cannot be used, or there are not as many masks as style pictures.
    """
    resize, preserve = launch.RESIZE.value, color.PRESERVE[launch.PRESERVE_COLOR.value]
    photo, paths = pictures.read(launch.CONTENT.value, size, resize), {}
    paths[launch.CONTENT.value] = photo.shape

    def mask(flag: str, path: str | None, shape: Sequence[int]) -> Mask | None:
        found = read_mask(flag, path, shape)
        if found is not None:
            paths[path] = found.shape
        return found

    texts, styles = launch.STYLE.value, []
    masks = (
        mask_paths(flag.name, flag.value, len(texts)) for flag in (launch.CONTENT_MASK, launch.STYLE_MASK)
    )
    for text, content_mask, style_mask in zip(texts, *masks, strict=True):
        name, share = parse_style(text)
        picture = pictures.read(name, scaled(size, launch.STYLE_SCALE.value), resize)
        paths[name] = picture.shape
        styles.append(
            objective.Style(
                preserve.prepare_style(picture, photo),
                share,
                mask("content_mask", content_mask, photo.shape),
                mask("style_mask", style_mask, picture.shape),
            )
        )
    content_mask = mask("content_weight_mask", launch.CONTENT_WEIGHT_MASK.value, photo.shape)
    return Pictures(photo, preserve.prepare_content(photo), content_mask, styles, paths)


def mask_paths(flag: str, given: Sequence[str] | None, count: int) -> Sequence[str]:
    """One for each of `count` style pictures; an empty text for none.

    Raises:
      UserError: there are more or fewer, and not none at all.
    """
    found = given or [""] * count
    if len(found) != count:
        raise UserError(
            f"--{flag}: {len(found)} given for {count} of --style; each style picture needs one, in the same "
            f"order; --{flag}= stands for none"
        )
    return found


def read_mask(flag: str, path: str | None, shape: Sequence[int]) -> Mask | None:
    """A mask brought to the size of a picture of shape (height, width, 3); None for no path.

    Raises:
      UserError: the file cannot be used, or has nothing but black.
    """
    if not path:
        return None
    height, width, _ = shape
    found = pictures.read(path, (width, height), "bilinear").mean(-1, dtype=np.float32) / 255
    if not found.any():
        raise UserError(f"--{flag}={path}: is black all over; what is white counts")
    return found


def read_start(given: Pictures) -> jax.Array:
    """The start image that --init names: one of `start.KINDS`, or a picture brought to the photo's size.

    Raises:
      UserError: the file cannot be used.
    """
    kind = launch.INIT.value
    if kind in start.KINDS:
        content = jnp.asarray(given.content)
        return start.image(kind, launch.SEED.value, content, [style.picture for style in given.styles])
    height, width, _ = given.photo.shape
    given.paths[kind] = given.photo.shape
    return jnp.asarray(pictures.read(kind, (width, height), launch.RESIZE.value))
