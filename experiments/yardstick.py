"""Results by more than the loss that was optimised: perceptual distance, style at layers held out, palette."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxstyle import quality
from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures
from jaxstyle.network import vgg, weights

from . import inputs
from .cache import Cache
from .settings import Settings


class Yardstick(NamedTuple):
    """The network and the heads by which all results are measured, whatever network made them."""

    network: vgg.PreparedNetwork
    heads: Mapping[str, jax.Array]


def load() -> Yardstick:
    """Torchvision's VGG16 and the heads of LPIPS."""
    network = vgg.prepare(weights.load("vgg16-torchvision").network, max(quality.LPIPS_LAYERS), "direct")
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
    photo = pictures.read(given.content, (width, height), given.resize)
    # As in a run, both sides of a style picture are fixed where those of the result were.
    keeps_aspect = isinstance(pictures.parse_size(given.size), int)
    size = inputs.scaled(max(width, height) if keeps_aspect else (width, height), given.style_scale)
    smallest, styles = vgg.smallest_side(max(quality.HELD_OUT_LAYERS)), []
    if min(height, width) < smallest:
        raise UserError(
            f"{str(path)!r}: has {width}x{height} pixels; each side must have {smallest} or more to be measured"
        )
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
