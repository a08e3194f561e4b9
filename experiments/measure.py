"""Measures results by more than the loss that was optimised -> one JSON line a result.

python -m experiments.measure --result=runs/me --result=runs/compare
python -m experiments.measure --result=other.png --content=me.jpg --style=painting.jpg

A result is the folder of a run, whose record says what it was made of; a folder of runs, for all of them; that of a
comparison, for all its arms; or any picture, for which the flags say it. `lpips` is the learned perceptual distance
to the photo: how much of it is left, 0 all. `style` is the mean relative distance of Gram matrices at layers that no
default of the program optimises, `style_by_layer` each: how much of the style has come, 0 all. `palette` is the
distance of colours, in units of CIE Lab: how much of the style's palette has come, 0 all.

Pictures are compared at the size of the result. Colours are treated as in the run: with --preserve_color the style is
that which the run was given, and with masks that of each region, weighted as in the run. `experiments.verify` tells
whether the pictures of a record are still the same.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import flags

from jaxstyle import quality
from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures
from jaxstyle.network import vgg, weights

from . import inputs, launch, settings
from .cache import Cache
from .settings import Settings

_RESULT = flags.DEFINE_multi_string(
    "result",
    ["runs/portrait-night"],
    "Folder of a run, of runs or of a comparison, or a picture; repeatable.",
)


class Yardstick(NamedTuple):
    """The network and the heads by which all results are measured, whatever network made them."""

    network: vgg.PreparedNetwork
    heads: Mapping[str, jax.Array]


def results(path: pathlib.Path) -> list[pathlib.Path]:
    """The pictures and the folders of ended runs that a result stands for.

    Raises:
      UserError: there is none, or a run has not ended.
    """
    if os.path.isfile(path):
        return [path]
    folders = [path]
    if os.path.isdir(path) and not (path / "image.png").exists():
        records = sorted(path.glob("arms/*/run.flags")) or sorted(path.glob("*/run.flags"))
        folders = [record.parent for record in records] or folders
    for folder in folders:
        for name in ("run.flags", "image.png"):
            if not os.path.isfile(folder / name):
                raise UserError(
                    f"--result={path}: {str(folder / name)!r} is no file; a picture or the folder of a run that has "
                    "ended is needed"
                )
    return folders


def recorded(folder: pathlib.Path) -> Settings:
    """What a run's record says; where it is silent, the defaults.

    Raises:
      UserError: it cannot be read, names no photo, or has a value that a flag refuses.
    """
    path = folder / "run.flags"
    try:
        return settings.parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r}: cannot be read: {error}; an intact record is needed") from error
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error


def measure(path: pathlib.Path, given: Settings, yardstick: Yardstick, cache: Cache) -> dict[str, Any]:
    """The row of one picture.

    Args:
      path: of the picture.
      given: what it was made of.
      yardstick: what it is measured by.
      cache: of compiled programs.

    Raises:
      UserError: a picture cannot be read or is too small, or there is not the memory for one so large.
    """
    result = pictures.read(path)
    height, width, _ = result.shape
    photo = pictures.read(given.content, (width, height), given.resize)
    # As in a run, both sides of a style picture are fixed where those of the result were.
    keeps_aspect = isinstance(pictures.parse_size(given.size), int)
    size = inputs.scaled(max(width, height) if keeps_aspect else (width, height), given.style_scale)
    smallest, styles = vgg.smallest_side(max(quality.HELD_OUT_LAYERS)), []
    for style, (source, *_) in inputs.read_styles(given, photo, size):
        if min(source.shape[:2]) < smallest:
            raise UserError(
                f"{str(path)!r}: at its size {source.path} has {source.shape[1]}x{source.shape[0]} pixels; "
                f"each side must have {smallest} or more to be measured"
            )
        styles.append(style)
    network, heads = yardstick
    distance = cache.evaluate(quality.lpips, (), result.shape, network, heads, result, photo)
    # With the photo's colours kept the styles are prepared; a result is compared to them as the photo was.
    seen = color.PRESERVE[given.preserve_color].prepare_content(result)
    layers = cache.evaluate(quality.style_distances, (), result.shape, network, seen, styles)
    layers = {layer: float(value) for layer, value in layers.items()}
    palette = cache.evaluate(quality.palette_distance, (), result.shape, seen, styles)
    return {
        "lpips": float(distance),
        "style": sum(layers.values()) / len(layers),
        "style_by_layer": layers,
        "palette": float(palette),
    }


def main() -> None:
    given, cache = settings.read(), Cache()
    found = [each for path in _RESULT.value for each in results(pathlib.Path(path))]
    network = vgg.prepare(weights.load("vgg16-torchvision").network, max(quality.LPIPS_LAYERS), "direct")
    yardstick = Yardstick(network, weights.lpips_heads())
    for each in found:
        if each.is_dir():
            row = measure(each / "image.png", recorded(each), yardstick, cache)
        else:
            row = measure(each, given, yardstick, cache)
        print(json.dumps({"result": str(each), **row}), flush=True)


if __name__ == "__main__":
    launch.run(main)
