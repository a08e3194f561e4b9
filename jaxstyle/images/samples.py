"""Style pictures that the project draws itself, so that a demonstration needs no picture of others.

A drawing takes 3 s, so the pictures that it gave at 1024×768 come along as `night.webp` and `facets.webp`, without
loss. They stay the same bytes with any version of NumPy and Pillow, which may round a stroke differently.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from jaxstyle.images.brush import Picture
from jaxstyle.images.facets import facets
from jaxstyle.images.night import night

PAINTERS = {"night": night, "facets": facets}
"""By name of the picture, what draws it for (height, width), sides of 2 pixels or more: the same bytes each time."""


@functools.cache
def picture(name: str) -> Picture:
    """The sample of that name, one of `PAINTERS`, as it was drawn at 768×1024. Not to be written to."""
    with Image.open(Path(__file__).with_name(f"{name}.webp")) as image:
        pixels = np.array(image.convert("RGB"))
    pixels.flags.writeable = False
    return pixels
