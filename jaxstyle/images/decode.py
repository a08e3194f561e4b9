"""Bytes of a file in, a picture out, within bounds of pixels, memory and time."""

import io
import re
import time
import warnings

from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE

from jaxstyle.errors import UserError
from jaxstyle.images import convert, jpegxl

MAX_PIXELS = 2**26  # of a file: for these the hungriest decoder, JPEG 2000, takes 1.6 GB
MAX_JPEG_PIXELS = 2**28  # of a JPEG that is decoded at a part of its size: progressive, it takes 1.6 GB
MAX_SECONDS = 8.0  # for decoding a file
MAX_SCANS = 100  # of a progressive JPEG, each a pass over the whole picture; libtiff's bound too

# Formats that Pillow decodes by itself. Not EPS, for which it would start Ghostscript, and not the
# containers and metafiles (PDF, FPX, MIC, WMF), which run other code.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "DIB"),
    *("JPEG2000", "PPM", "ICO", "PSD", "QOI", "PCX", "SGI", "TGA"),
)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12, annex B
_COMMON = (b"mif1", b"msf1")
_RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw"),
    *(".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"),
)
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two of BigTIFF
_RAW_HEADS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")

# The head of a JPEG scan of 1 to 4 components; by chance in one of 2³⁶ places.
_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")


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


def decode(data: bytes, name: str, longer: int | None, managed: bool, ground: str = "white") -> Image.Image:
    """The first frame of a file as an upright RGB picture; for `managed` and `ground` see `convert.upright_rgb`.

    A JPEG of more than `MAX_PIXELS` is decoded at a half, a quarter or an eighth of its size, the first that is
    within the bound, unless fewer than `longer` pixels of its longer side would be left; None: never.

    Raises:
      UserError: what `name` is in place of a picture within the bounds.
    """
    _refuse_others(data, name)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which does not matter here, and of decompression bombs,
        # which does: those inside an ICO show only while it is decoded.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with _open(data, name, longer) as image:
                _check_size(image.size, name)  # before anything is decoded
                if image.info.get("progressive") and len(_SCAN.findall(data)) > MAX_SCANS:
                    raise UserError(f"{name}: has more than {MAX_SCANS} scans; save it anew")
                image.load()
                _check_size(image.size, name)  # an ICO tells its true size only now
                return convert.upright_rgb(image, managed, ground)
        except UserError:
            raise
        except UnidentifiedImageError as error:
            if data.startswith(_TIFF_HEADS):  # which allows more than anybody reads
                raise UserError(
                    f"{name}: is a TIFF of a kind that is not read, as with colours of floats, or a damaged one; "
                    "save it as RGB of 8 or 16 bits a colour"
                ) from error
            known = ", ".join((*FORMATS, "HEIF", "JPEG XL"))
            raise UserError(f"{name}: is not a picture, or a damaged one; read are {known}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UserError(
                f"{name}: has too many pixels; at most {MAX_PIXELS // 10**6} million are read"
            ) from error
        except MemoryError as error:
            raise UserError(f"{name}: needs more memory than there is; make it smaller") from error
        # Decoders meet malformed files with nearly any exception: struct.error,
        # zlib.error, SyntaxError, OverflowError, KeyError … Whatever it is, the file is at fault:
        # nothing of this program but the conversions runs in here.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name}: cannot be decoded: {reason}; an intact picture is needed") from error


def _refuse_others(data: bytes, name: str) -> None:
    """Says what to do with what a camera or a phone may give and nothing here reads."""
    raw = (
        name.lower().rstrip("'\"").endswith(_RAW) or data.startswith(_RAW_HEADS) or data[4:12] == b"ftypcrx "
    )
    if raw:  # many are TIFF files whose first picture is a tiny preview
        raise UserError(f"{name}: is a camera's raw file; export it as TIFF or JPEG")


def _is_heif(data: bytes) -> bool:
    """Whether a file is HEIF of another kind than AVIF, which may have their common brand as its own."""
    size, kind, brand = int.from_bytes(data[:4]), data[4:8], data[8:12]
    others = {data[k : k + 4] for k in range(16, min(size, 256), 4)}
    return kind == b"ftyp" and brand in _HEIF and not (brand in _COMMON and others & {b"avif", b"avis"})


def _open(data: bytes, name: str, longer: int | None) -> Image.Image:
    """The picture of a file, its size known and its pixels not decoded."""
    if _is_heif(data):
        from pillow_heif import HeifImageFile  # here, since few runs need it

        return HeifImageFile(_Timed(data))
    if jpegxl.known(data):
        _check_size(jpegxl.size(data), name)
        return jpegxl.open_decoded(data, name)
    if data.startswith(b"\xff\xd8\xff"):
        image = JpegImagePlugin.JpegImageFile(_Timed(data))  # Image.open would refuse what is drafted here
        width, height = image.size
        if MAX_PIXELS < width * height <= MAX_JPEG_PIXELS and longer is not None:
            scales = (s for s in (2, 4, 8) if -(-width // s) * -(-height // s) <= MAX_PIXELS)  # it rounds up
            scale = next(scales, 8)
            if max(width, height) // scale >= longer:
                image.draft(None, (width // scale, height // scale))
        return image
    Image.init()
    image = Image.open(_Timed(data), formats=[each for each in FORMATS if each in Image.OPEN])
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _keep_depth(image)
    return image


def _keep_depth(image: TiffImagePlugin.TiffImageFile) -> None:
    """Has colours of 16 bits that are stored apart, each in a plane of its own, read as such.

    Pillow keeps of their raw mode, `RGB;16L` for one, the letter of the plane, which reads bytes. Where they are
    compressed, libtiff reads them, to which this does not apply.
    """
    if set(image.tag_v2.get(BITSPERSAMPLE, ())) == {16}:
        depth = ";16L" if image.tag_v2.prefix == b"II" else ";16B"
        image.tile = [
            tile._replace(args=(tile.args[0] + depth, *tile.args[1:]))
            if tile.codec_name == "raw" and len(tile.args[0]) == 1
            else tile
            for tile in image.tile
        ]


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: is {width}x{height} pixels; at most {MAX_PIXELS // 10**6} million are read")
