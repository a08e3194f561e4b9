"""Pictures: what Pillow opens, as float arrays, and back. This module reads and writes files.

An image is float32 `[height, width, 3]`, RGB, sRGB-encoded, in [0, 255]. Where a file is expected,
the name of a sample does as well: `sample:portrait` and `sample:cat` are photos that scikit-image
carries, the others (`sample:night`, `sample:facets`) come from `jaxstyle.images.samples`.
"""

import hashlib
import importlib.util
import io
import numbers
import os
import re
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxstyle.errors import UserError
from jaxstyle.files import write_atomically
from jaxstyle.images import decode, encode, samples

MIN_SIDE = 16  # in pixels of a file that is painted from: VGG halves a picture four times
MAX_SIDE = 8192  # of a result in pixels
MAX_BYTES = 2**28  # of a file
#: What can be written.
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
#: Of the files of a folder that are taken for photos.
PHOTO_SUFFIXES = (*SUFFIXES, ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jxl")
FILTERS = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}
PHOTOS = {"portrait": "astronaut.png", "cat": "chelsea.png"}  # file names in scikit-image

Size = int | tuple[int, int]
"""The longer side in pixels, the aspect kept; or (width, height), both fixed."""


def parse_size(text: str) -> Size:
    """`512` as the longer side, `640x480` as (width, height); in pixels, from 1 to `MAX_SIDE`.

    Raises:
      UserError: the text is neither.
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip().lower())
    sides = [int(side) for side in match.groups() if side] if match else []
    if not sides or not all(1 <= side <= MAX_SIDE for side in sides):
        raise UserError(
            f"--size={text!r}: must be the longer side, as in 512, or WIDTHxHEIGHT, as in 640x480, "
            f"in pixels from 1 to {MAX_SIDE}"
        )
    return sides[0] if len(sides) == 1 else tuple(sides)


def fit(size: Size, width: int, height: int) -> tuple[int, int]:
    """(width, height) of a picture of `width` × `height` pixels when it is brought to `size`.

    With the longer side given, the shorter keeps the aspect, rounded half up and never below 1.

    Raises:
      UserError: it is neither a whole number of 1 or more nor two of them.
    """
    both = isinstance(size, tuple | list)
    sides = [*size] if both else [size]
    whole = all(isinstance(side, numbers.Integral) and side >= 1 for side in sides)
    if not whole or len(sides) != 1 + both:
        raise UserError(f"{size} pixels are no size of a picture")
    if both:
        return tuple(sides)
    size, longer = int(size), max(width, height)  # as NumPy's may be too short for what follows
    return tuple(max(1, (2 * side * size + longer) // (2 * longer)) for side in (width, height))


def read(
    path: str | os.PathLike,
    size: Size | None = None,
    resize: str = "lanczos",
    *,
    smallest: int = 1,
    ground: str = "white",
) -> Float[np.ndarray, "height width 3"]:
    """The picture of a file or of a sample, float32 RGB in [0, 255], at `size` or at its own.

    The first frame is turned upright by its EXIF orientation, converted to sRGB by its ICC profile,
    laid on white, or another `ground`, where it is transparent, and then resized with Pillow's filter of the name
    `resize`. The filter works on 8-bit values, whose rounding (half a level) is below what a
    photo's own encoding loses; the overshoot of lanczos and bicubic is clipped, so the result stays
    in range.

    NOTE: `nearest` hands on the file's own numbers and therefore leaves its ICC profile unapplied.
    The 2017 study read its pictures so, and some of them carry the profile of a monitor.

    A profile that is broken or does not fit the picture is ignored, as browsers do: the picture
    counts as sRGB then. Greyscale of 16 or 32 bits and of floats is divided by its full scale, 65535 or
    2³¹−1 for integers, 1, 255 or 65535 for floats, which is told from its largest value. A JPEG of too
    many pixels is decoded at a part of its size, if that has pixels enough for `size`.

    Raises:
      UserError: no such file or sample, an address of the web, not a picture, damaged, of which no scale
        fits, beyond the bounds of `MAX_BYTES` and of `decode`, or with a side of fewer than `smallest` pixels; or
        no such filter.
    """
    if resize not in FILTERS:
        raise UserError(f"--resize={resize!r}: must be one of {', '.join(FILTERS)}")
    source = _source(path)
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source)
    else:
        longer = None if size is None else max(fit(size, 1, 1))
        image = decode.decode(_contents(source), repr(str(path)), longer, resize != "nearest", ground)
    if min(image.size) < smallest:
        raise UserError(
            f"{str(path)!r}: is {image.width}x{image.height} pixels; each side needs {smallest} or more"
        )
    if size is not None:
        image = image.resize(fit(size, *image.size), FILTERS[resize])
    return np.asarray(image, np.float32)


def resized(
    pixels: UInt8[np.ndarray, "height width 3"], size: Size, resize: str
) -> Float[np.ndarray, "height width 3"]:
    """What `read` would give of a file that has these pixels."""
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(fit(size, *image.size), FILTERS[resize]), np.float32)


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of the bytes of a picture's file; of a drawn sample, of its 8-bit pixels.

    Raises:
      UserError: there is no such file or sample, or it cannot be read.
    """
    source = _source(path)
    data = source.tobytes() if isinstance(source, np.ndarray) else _contents(source)
    return hashlib.sha256(data).hexdigest()


def in_folder(folder: str | os.PathLike) -> list[Path]:
    """The photos of a folder by their suffixes, in order; hidden files, as macOS's companions `._a.jpg`, are none."""
    return sorted(
        file
        for file in Path(folder).iterdir()
        if file.suffix.lower() in PHOTO_SUFFIXES and not file.name.startswith(".")
    )


def check_writable(path: str | os.PathLike, bits: int = 8) -> None:
    """Tells early whether a picture can be written to a path.

    Raises:
      UserError: the suffix is not one of `SUFFIXES` or cannot hold so many bits, there is no folder to write in, or
        the path is one.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{str(path)!r}: the name of a picture to write must end in {', '.join(SUFFIXES)}")
    if bits == 16 and path.suffix.lower() not in encode.DEEP:
        raise UserError(f"--bits=16: {str(path)!r} cannot hold them; {', '.join(encode.DEEP)} can")
    if path.is_dir():
        raise UserError(f"{str(path)!r}: cannot be written: it is a directory")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{str(path)!r}: its folder is missing or cannot be written")


def write(
    path: str | os.PathLike,
    image: Float[np.ndarray, "height width 3"],
    comment: str | None = None,
    quality: int = 95,
    bits: int = 8,
) -> None:
    """Writes an image of any range, clipped to [0, 255] and rounded half up, tagged as sRGB.

    The suffix chooses the format, one of `SUFFIXES`. A PNG carries `comment` as the text chunk
    (iTXt) `Comment`; the other formats leave it out. `quality`, 1 to 100, is for JPEG and WebP; PNG
    and TIFF are lossless, and can have 16 bits a colour, 255 being 65535. The same arguments give
    the same bytes. The file appears whole or not at all.

    Raises:
      UserError: the suffix is another, or has no 16 bits, or the file cannot be written.
      ValueError: the image has another shape or a pixel that is not finite, or `bits` is neither 8 nor 16.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits are 8 or 16, not {bits}")
    check_writable(path, bits)
    path = Path(path)
    suffix = path.suffix.lower()
    # In float64 adding one half is exact; in float32 it would lift 0.49999997 to 1.
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"an image is [height, width, 3], not {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise ValueError("the image has pixels that are not finite")
    try:
        if bits == 16:
            deep = np.floor(np.clip(pixels, 0, 255) * 257 + 0.5).astype(np.uint16)
            data = encode.DEEP[suffix](deep, comment)
        else:
            data = encode.encode(pixels, SUFFIXES[suffix], comment, quality)
        write_atomically(path, data)
    except (OSError, ValueError) as error:  # some formats end at so many pixels
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)!r}: cannot be written: {reason}") from error


def read_result(path: Path, bits: int) -> Float[np.ndarray, "height width 3"]:
    """The picture that `write` made as a PNG of 8 or 16 bits, in [0, 255]: written again, it has the same pixels.

    Raises:
      UserError: it cannot be read.
    """
    if bits == 8:
        return read(path)
    try:
        return encode.deep_pixels(_contents(path)) / 257
    except (KeyError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{str(path)!r}: is not the picture of 16 bits that the run made") from error


def write_animation(path: str | os.PathLike, frames: Sequence[Path]) -> None:
    """Writes an animated WebP that repeats, of picture files of which smaller ones are enlarged to the last.

    Each is shown for 0.2 s, the last for 2 s. The file appears whole or not at all.

    Raises:
      UserError: a frame cannot be read, or the file cannot be written.
    """
    height, width, _ = read(frames[-1]).shape
    pictures = [Image.fromarray(read(frame, (width, height)).astype(np.uint8)) for frame in frames]
    milliseconds = [200] * (len(frames) - 1) + [2000]
    encoded = io.BytesIO()
    pictures[0].save(
        encoded, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, quality=90
    )
    try:
        write_atomically(Path(path), encoded.getvalue())
    except OSError as error:
        raise UserError(f"{str(path)!r}: cannot be written: {error.strerror or error}") from error


def _source(path: str | os.PathLike) -> Path | UInt8[np.ndarray, "height width 3"]:
    """The file that a path or the name of a sample photo means; for a drawn sample, its pixels."""
    if not str(path):
        raise UserError("'': names no picture; a picture file or a sample is needed")
    kind, _, sample = str(path).partition(":")
    if kind.lower() in ("http", "https", "ftp", "file") and sample.startswith("//"):
        raise UserError(f"{str(path)!r}: is an address; download the picture and name the file")
    if kind != "sample":
        return Path(path)
    if sample in PHOTOS:
        package = importlib.util.find_spec("skimage")  # finds the files without importing the package
        if package is None:
            raise UserError(f"{str(path)!r}: needs scikit-image, which carries the picture")
        return Path(package.submodule_search_locations[0], "data", PHOTOS[sample])
    if sample not in samples.NAMES:
        known = ", ".join(f"sample:{name}" for name in (*PHOTOS, *samples.NAMES))
        raise UserError(f"{str(path)!r}: no such sample; there are {known}")
    return samples.picture(sample)


def _contents(path: Path) -> bytes:
    """The bytes of a file, or a UserError that says why there are none to use."""
    name = repr(str(path))
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{name}: is a directory; a picture file is needed")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never end
            raise UserError(f"{name}: is not a regular file; a picture file is needed")
        if status.st_size == 0:
            raise UserError(f"{name}: is empty; a picture file is needed")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{name}: has {status.st_size >> 20} MiB; at most {MAX_BYTES >> 20} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
