"""Results by more than the loss that was optimised: what is left of the photo, what has come of style and palette."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures
from jaxstyle.losses import objective
from jaxstyle.network import vgg, weights
from jaxstyle.quality import palette, photo, style

from . import inputs, regions, task
from .cache import Cache
from .settings import Settings

#: Of distributions that are equal but for rounding: the effectiveness of the style itself is finite.
LEAST_DIVERGENCE = 1e-6


class Yardstick(NamedTuple):
    """The network and the heads by which all results are measured, whatever network made them."""

    network: vgg.PreparedNetwork
    heads: Mapping[str, jax.Array]


def load() -> Yardstick:
    """Torchvision's VGG16 and the heads of LPIPS."""
    network = vgg.prepare(weights.load("vgg16-torchvision").network, max(photo.LAYERS), "direct")
    return Yardstick(network, weights.lpips_heads())


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
    content = pictures.read(given.content, (width, height), given.resize)
    # As in a run, both sides of a style picture are fixed where those of the result were.
    keeps_aspect = isinstance(pictures.parse_size(given.size), int)
    size = max(width, height) if keeps_aspect else (width, height)
    smallest, styles = vgg.smallest_side(max(style.HELD_OUT_LAYERS)), []
    if min(height, width) < smallest:
        raise UserError(
            f"{str(path)!r}: has {width}x{height} pixels; each side must have {smallest} or more to be measured"
        )
    # The network of a run is read for what it is needed for alone: its file may be gone.
    found = given.regions and regions.find(given, task.load(given, cache).network, cache)
    for each, (source, *_) in inputs.read_styles(given, content, size, regions.pairs(found)):
        if min(source.shape[:2]) < smallest:
            raise UserError(
                f"{str(path)!r}: at its size {source.path} has {source.shape[1]}x{source.shape[0]} pixels; "
                f"each side must have {smallest} or more to be measured"
            )
        styles.append(each)
    network, heads = yardstick
    # With the photo's colours kept the styles are prepared; a result is compared to them as the photo was.
    seen = color.PRESERVE[given.preserve_color].prepare_content(result)

    found = cache.evaluate(_measures, (), result.shape, network, heads, result, seen, content, styles)
    found = jax.tree.map(float, found)
    layers = found["style_by_layer"]
    effectiveness = {
        layer: -math.log(max(divergence, LEAST_DIVERGENCE))
        for layer, divergence in found["divergences"].items()
    }
    return {
        "lpips": found["lpips"],
        "self_similarity": found["self_similarity"],
        "style": sum(layers.values()) / len(layers),
        "style_by_layer": layers,
        "effectiveness": sum(effectiveness.values()) / len(effectiveness),
        "effectiveness_by_layer": effectiveness,
        "sifid": found["sifid"],
        "palette": found["palette"],
    }


class Measured:
    """The rows of runs by the names of their folders, kept in `measured.json` of a directory."""

    def __init__(self, directory: pathlib.Path, cache: Cache):
        self._path, self._cache = directory / "measured.json", cache
        self._yardstick = cache.get("yardstick", load)
        self.rows = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}

    def add(self, folder: pathlib.Path, given: Settings, **facts: Any) -> None:
        """Measures a run that has no row; facts of it stand before what was measured."""
        if folder.name not in self.rows:
            row = measure(folder / "image.png", given, self._yardstick, self._cache)
            self.rows[folder.name] = facts | row
            files.write_atomically(self._path, json.dumps(self.rows, indent=1).encode())


def _measures(
    network: vgg.PreparedNetwork,
    heads: Mapping[str, jax.Array],
    result: jax.Array,
    seen: jax.Array,
    content: jax.Array,
    styles: Sequence[objective.Style],
) -> dict[str, Any]:
    """All that is computed of pictures, in one program, which takes each through the network once."""
    return {
        "lpips": photo.lpips(network, heads, result, content),
        "style_by_layer": style.style_distances(network, seen, styles),
        "palette": palette.palette_distance(seen, styles),
        "self_similarity": photo.self_similarity_distance(network, result, content),
        "divergences": style.divergences(network, seen, styles),
        "sifid": style.sifid(network, seen, styles),
    }
