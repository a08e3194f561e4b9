"""JPEG XL by pillow-jxl-plugin (extra `jpegxl`), imported when it is first used, and its size before it decodes.

Of an animation its decoder gives the last frame.
"""

import importlib.util
import io
import struct

from PIL import Image

from jaxstyle.errors import UserError

_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM = b"\xff\x0a"
#: Width over height by its number in the header, where they are not both written.
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def known(data: bytes) -> bool:
    """Whether the bytes of a file are those of a JPEG XL picture."""
    return data.startswith((_CODESTREAM, _CONTAINER))


def size(data: bytes) -> tuple[int, int]:
    """Width and height as they are stored, from the head of a file: ISO/IEC 18181-1, SizeHeader; 18181-2, boxes.

    Raises:
      ValueError: it has no such head.
    """
    head = int.from_bytes(_codestream(data)[2:18].ljust(16, b"\0"), "little")  # the lowest bit is the first

    def take(bits: int) -> int:
        nonlocal head
        value, head = head & ((1 << bits) - 1), head >> bits
        return value

    eighths = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if eighths else 1 + take((9, 13, 18, 30)[take(2)])

    height, ratio = side(), take(3)
    if ratio == 0:
        return side(), height
    over, under = _RATIOS[ratio]
    return height * over // under, height


def _codestream(data: bytes) -> bytes:
    """The first of a file's codestream, which it is, or has in a box."""
    if data.startswith(_CODESTREAM):
        return data
    place = 0
    while place + 16 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start = place + 8
        if length == 1:  # a length of 64 bits follows
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        if kind in (b"jxlc", b"jxlp"):
            return data[start + 4 * (kind == b"jxlp") :]  # which begins with the number of the part
        if length < start - place:
            break  # the last box, or none
        place += length
    raise ValueError("no codestream")


def open_decoded(data: bytes, name: str) -> Image.Image:
    """The picture, which this decoder decodes as it opens it: to be called once the size is known to do.

    Raises:
      UserError: pillow-jxl-plugin is not installed.
    """
    if importlib.util.find_spec("pillow_jxl") is None:
        raise UserError(
            f"{name}: is JPEG XL; pip install 'jaxstyle[jpegxl]' brings what reads it, or save it as PNG or JPEG"
        )
    from pillow_jxl.JpegXLImagePlugin import JXLImageFile

    image = JXLImageFile(io.BytesIO(data))
    if not image.jpeg:  # its decoder has turned it upright; a JPEG that it carries is as it was
        image.info.pop("exif", None)
    return image
