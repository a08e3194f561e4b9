"""Style pictures that the project draws itself, so that a demonstration needs no picture of others.

A drawing takes 3 s (tests/drawing/), so the pictures that it gave at 1024×768 come along as `night.webp` and
`facets.webp`, without loss. They stay the same bytes with any version of NumPy and Pillow, which may round a stroke
differently.
"""

import functools
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NAMES = ("night", "facets")


@functools.cache
def picture(name: str) -> UInt8[np.ndarray, "768 1024 3"]:
    """The sample of that name, one of `NAMES`. Not to be written to."""
    with Image.open(Path(__file__).with_name(f"{name}.webp")) as image:
        pixels = np.array(image.convert("RGB"))
    pixels.flags.writeable = False
    return pixels
