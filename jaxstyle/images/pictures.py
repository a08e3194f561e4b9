"""Pictures: what Pillow opens, as float arrays, and back. This module reads and writes files.

An image is float32 `[height, width, 3]`, RGB, sRGB-encoded, in [0, 255]. Where a file is expected,
the name of a sample does as well: `sample:portrait` and `sample:cat` are photos that scikit-image
carries, the others (`sample:night`, `sample:facets`) are drawn by `jaxstyle.samples`.
"""

import functools
import hashlib
import importlib.util
import io
import os
import re
import stat
import struct
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from jaxstyle.errors import UserError
from jaxstyle.files import write_atomically

MIN_SIDE = 16  # of a file in pixels: VGG halves a picture four times before its last block
MAX_SIDE = 8192  # of a result in pixels
MAX_PIXELS = 2**26  # of a file: for these the hungriest decoder, JPEG 2000, takes 1.6 GB
MAX_BYTES = 2**28  # of a file
MAX_SECONDS = 8.0  # for decoding a file
MAX_SCANS = 100  # of a progressive JPEG, each a pass over the whole picture; libtiff's bound too

# Formats that Pillow decodes by itself. Not EPS, for which it would start Ghostscript, and not the
# containers and metafiles (PDF, FPX, MIC, WMF), which run other code.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "DIB"),
    *("JPEG2000", "PPM", "ICO", "PSD", "QOI", "PCX", "SGI", "TGA"),
)
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
FILTERS = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}
PHOTOS = {"portrait": "astronaut.png", "cat": "chelsea.png"}  # file names in scikit-image

Size = int | tuple[int, int]
"""The longer side in pixels, the aspect kept; or (width, height), both fixed."""

# How to turn a picture upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The head of a JPEG scan of 1 to 4 components; by chance in one of 2³⁶ places.
_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")


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
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def fit(size: Size, width: int, height: int) -> tuple[int, int]:
    """(width, height) of a picture of `width` × `height` pixels when it is brought to `size`.

    With the longer side given, the shorter keeps the aspect, rounded half up and never below 1.
    """
    if not isinstance(size, int):
        return size
    longer = max(width, height)
    return tuple(max(1, (2 * side * size + longer) // (2 * longer)) for side in (width, height))


def read(
    path: str | os.PathLike, size: Size | None = None, resize: str = "lanczos"
) -> Float[np.ndarray, "height width 3"]:
    """The picture of a file or of a sample, float32 RGB in [0, 255], at `size` or at its own.

    The first frame is turned upright by its EXIF orientation, converted to sRGB by its ICC profile,
    laid on white where it is transparent, and then resized with Pillow's filter of the name
    `resize`. The filter works on 8-bit values, whose rounding (half a level) is below what a
    photo's own encoding loses; the overshoot of lanczos and bicubic is clipped, so the result stays
    in range.

    NOTE: `nearest` hands on the file's own numbers and therefore leaves its ICC profile unapplied.
    The 2017 study read its pictures so, and some of them carry the profile of a monitor.

    A profile that is broken or does not fit the picture is ignored, as browsers do: the picture
    counts as sRGB then. Greyscale of 16 or 32 bits and of floats is divided by its full scale: the
    smallest of 65535 and 2³¹−1 for integers, of 1, 255 and 65535 for floats, that no value exceeds.

    Raises:
      UserError: no such file or sample, not a picture, damaged, sides below `MIN_SIDE`, more than
        `MAX_PIXELS` or `MAX_BYTES`, longer than `MAX_SECONDS` to decode; or no such filter.
    """
    if resize not in FILTERS:
        raise UserError(f"--resize={resize!r}: must be one of {', '.join(FILTERS)}")
    source = _source(path)
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source)
    else:
        image = _decode(_contents(source), repr(str(path)), managed=resize != "nearest")
    if size is not None:
        image = image.resize(fit(size, *image.size), FILTERS[resize])
    return np.asarray(image, np.float32)


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of the bytes of a picture's file; of a drawn sample, of its 8-bit pixels.

    Raises:
      UserError: there is no such file or sample, or it cannot be read.
    """
    source = _source(path)
    data = source.tobytes() if isinstance(source, np.ndarray) else _contents(source)
    return hashlib.sha256(data).hexdigest()


def check_writable(path: str | os.PathLike, bits: int = 8) -> None:
    """Tells early whether a picture can be written to a path.

    Raises:
      UserError: the suffix is not one of `SUFFIXES` or cannot hold so many bits, or there is no folder to write in.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{str(path)!r}: the name of a picture to write must end in {', '.join(SUFFIXES)}")
    if bits == 16 and path.suffix.lower() not in _DEEP:
        raise UserError(f"--bits=16: {str(path)!r} cannot hold them; {', '.join(_DEEP)} can")
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
      ValueError: the image has another shape or a pixel that is not finite.
    """
    check_writable(path)
    path = Path(path)
    name, suffix = repr(str(path)), path.suffix.lower()
    # In float64 adding one half is exact; in float32 it would lift 0.49999997 to 1.
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"an image is [height, width, 3], not {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise ValueError("the image has pixels that are not finite")
    if bits == 16:
        if suffix not in _DEEP:
            raise UserError(f"--bits=16: {name} cannot hold them; {', '.join(_DEEP)} can")
        data = _DEEP[suffix](np.floor(np.clip(pixels, 0, 255) * 257 + 0.5).astype(np.uint16), comment)
    else:
        data = _encode(pixels, SUFFIXES[suffix], comment, quality)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error.strerror or error}") from error


def write_animation(path: str | os.PathLike, frames: Sequence[Path], seconds: float = 0.2) -> None:
    """Writes an animated WebP that repeats, of picture files of which smaller ones are enlarged to the last.

    Each is shown for `seconds`, the last for ten times as long. The file appears whole or not at all.

    Raises:
      UserError: a frame cannot be read, or the file cannot be written.
    """
    height, width, _ = read(frames[-1]).shape
    pictures = [Image.fromarray(read(frame, (width, height)).astype(np.uint8)) for frame in frames]
    shown = [round(1000 * seconds)] * (len(frames) - 1) + [round(10_000 * seconds)]
    encoded = io.BytesIO()
    pictures[0].save(
        encoded, "WEBP", save_all=True, append_images=pictures[1:], duration=shown, loop=0, quality=90
    )
    try:
        write_atomically(Path(path), encoded.getvalue())
    except OSError as error:
        raise UserError(f"{str(path)!r}: cannot be written: {error.strerror or error}") from error


def _encode(
    pixels: Float[np.ndarray, "height width 3"], format_: str, comment: str | None, quality: int
) -> bytes:
    """A file of 8 bits a colour."""
    picture = Image.fromarray(np.floor(np.clip(pixels, 0, 255) + 0.5).astype(np.uint8))
    options = {
        "PNG": {"pnginfo": _png_chunks(comment)},
        "JPEG": {"quality": quality, "subsampling": 0, "icc_profile": _srgb_profile()},
        "WEBP": {"quality": quality, "icc_profile": _srgb_profile()},
        "TIFF": {"compression": "tiff_deflate", "icc_profile": _srgb_profile()},
    }[format_]
    encoded = io.BytesIO()
    picture.save(encoded, format_, **options)
    return encoded.getvalue()


def _deep_png(pixels: UInt16[np.ndarray, "height width 3"], comment: str | None) -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write. PNG specification, third edition, 5, 9 and 11."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Each row less the one above (filter 2), byte by byte: smooth pictures become small numbers.
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    filtered = np.insert(rows, 0, 2, axis=1).tobytes()
    chunks = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        *(chunk(kind, data) for kind, data, *_ in _png_chunks(comment).chunks),
        chunk(b"IDAT", zlib.compress(filtered, 9)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _deep_tiff(pixels: UInt16[np.ndarray, "height width 3"], comment: str | None) -> bytes:
    del comment  # as in 8 bits
    import tifffile  # here, since few runs need it

    encoded = io.BytesIO()
    profile = _srgb_profile()
    tifffile.imwrite(
        encoded,
        pixels,
        photometric="rgb",
        compression="zlib",
        iccprofile=profile,
        metadata=None,
        software=False,
    )
    return encoded.getvalue()


_DEEP = {".png": _deep_png, ".tif": _deep_tiff, ".tiff": _deep_tiff}


def _png_chunks(comment: str | None) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")  # PNG specification 11.3.2.5: sRGB, perceptual intent
    if comment is not None:
        # A file name that is not Unicode arrives as lone surrogates, which UTF-8 cannot hold.
        chunks.add_itxt("Comment", comment.encode("utf-8", "backslashreplace").decode())
    return chunks


@functools.cache
def _srgb_profile() -> bytes:
    """An ICC profile of sRGB whose bytes are always the same."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Bytes 24 to 35 hold the time of creation (ICC.1:2022, 7.2.8), different in each run.
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def _source(path: str | os.PathLike) -> Path | UInt8[np.ndarray, "height width 3"]:
    """The file that a path or the name of a sample photo means; for a drawn sample, its pixels."""
    kind, _, sample = str(path).partition(":")
    if kind != "sample":
        return Path(path)
    if sample in PHOTOS:
        package = importlib.util.find_spec("skimage")  # finds the files without importing the package
        if package is None:
            raise UserError(f"{str(path)!r}: needs scikit-image, which carries the picture")
        return Path(package.submodule_search_locations[0], "data", PHOTOS[sample])
    from jaxstyle.images import samples  # here, since few runs need what drawing imports

    if sample not in samples.STYLES:
        known = ", ".join(f"sample:{name}" for name in (*PHOTOS, *samples.STYLES))
        raise UserError(f"{str(path)!r}: no such sample; there are {known}")
    return samples.draw(sample)


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
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read: {reason}") from error


class _Timed(io.BytesIO):
    """A file in memory that can be read for `MAX_SECONDS`.

    Some of Pillow's decoders are Python loops (bitmaps in runs, PPM in text): slow on a file made
    to be slow. They ask for their input piece by piece, and here is the place to stop them.
    """

    def __init__(self, data: bytes):
        super().__init__(data)
        self._deadline = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"takes longer than {MAX_SECONDS:g} s to decode")
        return super().read(size)


def _decode(data: bytes, name: str, managed: bool) -> Image.Image:
    """The first frame of a file as an upright RGB picture; `managed` applies its ICC profile."""
    Image.init()
    formats = [format_ for format_ in FORMATS if format_ in Image.OPEN]  # older Pillows lack AVIF
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which does not matter here, and of decompression bombs,
        # which does: those inside an ICO show only while it is decoded.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(_Timed(data), formats=formats) as image:
                _check_size(image, name)  # before anything is decoded
                if image.info.get("progressive") and len(_SCAN.findall(data)) > MAX_SCANS:
                    raise UserError(f"{name}: has more than {MAX_SCANS} scans; save it anew")
                image.load()
                _check_size(image, name)  # an ICO tells its true size only now
                profile = image.info.get("icc_profile") if managed else None
                return _upright(_rgb_on_white(image, profile), _orientation(image))
        except UserError:
            raise
        except UnidentifiedImageError as error:
            known = ", ".join(formats)
            raise UserError(f"{name}: is not a picture, or a damaged one; read are {known}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UserError(
                f"{name}: has too many pixels; at most {MAX_PIXELS // 10**6} million are read"
            ) from error
        except MemoryError as error:
            raise UserError(f"{name}: needs more memory than there is; make it smaller") from error
        # Pillow's decoders meet malformed files with nearly any exception: struct.error,
        # zlib.error, SyntaxError, OverflowError, KeyError … Whatever it is, the file is at fault:
        # nothing of this program but the conversions below runs in here.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name}: cannot be decoded: {reason}; an intact picture is needed") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{name}: is {width}x{height} pixels; each side needs {MIN_SIDE} or more")
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: is {width}x{height} pixels; at most {MAX_PIXELS // 10**6} million are read")


def _rgb_on_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A decoded picture of any mode as RGB, its transparent parts white."""
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        image = _eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        grey = image.mode in {"1", "L", "LA", "La"}
        image = image.convert("LA" if grey else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if grey else "RGB")
    image = _srgb(image, profile)
    if alpha is None:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits as mode L, or LA if one value of it stands for transparent."""
    values = np.array(image, np.float32)
    largest = values.max()
    scales = (1, 255, 65535) if image.mode == "F" else (65535, 2**31 - 1)
    full = next((scale for scale in scales if largest <= scale), None)
    if full is None or not np.isfinite(values).all():
        raise ValueError(f"grey values up to {largest} have no known scale")
    clear = image.info.get("transparency")
    visible = None if clear is None else Image.fromarray(values != clear).convert("L")
    values *= 255 / full  # in place: large pictures are large
    values += 0.5
    grey = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
    if visible is not None:
        grey.putalpha(visible)
    return grey


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An opaque picture of any 8-bit mode as RGB, by its ICC profile if that is usable."""
    if image.mode == "LAB":
        source = ImageCms.createProfile("LAB")  # the mode says what the numbers mean
    elif profile is None:
        return image.convert("RGB")
    try:
        if image.mode != "LAB":
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if image.mode != "CMYK":
                grey = space == "GRAY" and image.mode in {"1", "L"}
                image = image.convert("L" if grey else "RGB")
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # broken, or of other channels than the picture
        return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _decode; here only a note is damaged and the picture is whole
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
