"""The regions that --regions=K finds in the photo and the style picture, as masks of both."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from jaxstyle.errors import UserError
from jaxstyle.images import pictures, regions, start
from jaxstyle.network import vgg
from jaxstyle.runs import processes

from . import inputs
from .cache import Cache
from .settings import Settings

#: Of the features by which regions are told apart, the first that at whose size they are found.
LAYERS = ("block3_conv1", "block4_conv1", "block5_conv1")

#: Longer side in pixels at which the pictures are looked at, whatever the size of the result.
SEEN = 256


class Found(NamedTuple):
    """A mask of each region, in both pictures at the sizes that they have in the result. 255 is inside."""

    photo: UInt8[np.ndarray, "regions height width"]
    style: UInt8[np.ndarray, "regions height' width'"]

    def __str__(self) -> str:
        """How much of the pictures each region has."""
        shares = ((round(100 * float(mask.mean()) / 255) for mask in masks) for masks in self)
        return ", ".join(
            f"{photo} % of the photo with {style} % of the style"
            for photo, style in zip(*shares, strict=True)
        )


def pairs(found: Found | None) -> inputs.Regions:
    """Of each region its masks; of none, none."""
    return list(zip(*found, strict=True)) if found else []


@processes.alone
def write(found: Found | None, directory: pathlib.Path) -> None:
    """Writes the masks to a run's folder, where they are not there already."""
    if found is None:
        return
    folder = directory / "regions"
    folder.mkdir(exist_ok=True)
    for name, masks in zip(("content", "style"), found, strict=True):
        for number, mask in enumerate(masks, start=1):
            if not (path := folder / f"{name}-{number}.png").exists():
                pictures.write(path, np.repeat(mask[..., None], 3, 2))


def find(settings: Settings, network: vgg.Network, cache: Cache) -> Found | None:
    """The regions, if the settings ask for some; found once.

    Raises:
      UserError: they ask for masks or several style pictures as well, or a picture cannot be used.
    """
    if settings.regions is None:
        return None
    if len(settings.style) > 1:
        raise UserError(
            f"--regions={settings.regions}: {len(settings.style)} given of --style; take one, whose regions are "
            "paired with the photo's"
        )
    for flag in ("content_mask", "style_mask"):
        if getattr(settings, flag):
            raise UserError(f"--regions={settings.regions}: --{flag} is given too; take one or the other")
    (style,), (scale,) = settings.style, inputs.style_scales(settings)
    paths, size = (settings.content, inputs.parse_style(style)[0]), pictures.parse_size(settings.size)
    sizes = size, inputs.scaled(size, scale)

    def make() -> Found:
        prepared = vgg.prepare(network, max(LAYERS), "direct", padding="edge")
        seen = [pictures.read(path, SEEN, smallest=pictures.MIN_SIDE) for path in paths]
        for path, picture in zip(paths, seen, strict=True):
            if min(picture.shape[:2]) < vgg.smallest_side(max(LAYERS)):
                raise UserError(f"--regions={settings.regions}: {path!r} is too narrow to find regions in")
        key = start.stream(settings.seed, "regions")
        labels = cache.evaluate(_labels, (settings.regions,), seen[0].shape, prepared, *seen, key)
        count = 1 + max(int(each.max()) for each in labels)
        shapes = (pictures.read(path, size).shape for path, size in zip(paths, sizes, strict=True))
        return Found(*(regions.masks(each, count, shape) for each, shape in zip(labels, shapes, strict=True)))

    return cache.get(("regions of", *paths, *sizes, settings.regions, settings.seed, settings.weights), make)


def _labels(
    count: int, network: vgg.PreparedNetwork, photo: jax.Array, style: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    maps = (vgg.features(network, picture, LAYERS) for picture in (photo, style))
    return regions.find(*([each[layer] for layer in LAYERS] for each in maps), count, key)
