"""Files of pictures, made: 8-bit pixels by Pillow, 16-bit ones as PNG and TIFF; tagged as sRGB."""

import functools
import io
import struct
import zlib

import numpy as np
from jaxtyping import Float, UInt16
from PIL import Image, ImageCms, PngImagePlugin


def encode(
    pixels: Float[np.ndarray, "height width 3"], format_: str, comment: str | None, quality: int
) -> bytes:
    """A file of 8 bits a colour."""
    picture = Image.fromarray(np.floor(np.clip(pixels, 0, 255) + 0.5).astype(np.uint8))
    options = {
        "PNG": {"pnginfo": _png_chunks(comment)},
        "JPEG": {"quality": quality, "subsampling": 0, "icc_profile": srgb_profile()},
        "WEBP": {"quality": quality, "icc_profile": srgb_profile()},
        "TIFF": {"compression": "tiff_deflate", "icc_profile": srgb_profile()},
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


def deep_pixels(data: bytes) -> UInt16[np.ndarray, "height width 3"]:
    """The pixels of a PNG that `DEEP` made; Pillow would read 8 bits of the 16."""
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        at += size + 12
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)[:, 1:]
    return np.cumsum(rows, 0, np.uint8).view(">u2").reshape(height, width, 3).astype(np.uint16)


def _deep_tiff(pixels: UInt16[np.ndarray, "height width 3"], comment: str | None) -> bytes:
    del comment  # as in 8 bits
    import tifffile  # here, since few runs need it

    encoded = io.BytesIO()
    tifffile.imwrite(
        encoded,
        pixels,
        photometric="rgb",
        compression="zlib",
        iccprofile=srgb_profile(),
        metadata=None,
        software=False,
    )
    return encoded.getvalue()


DEEP = {".png": _deep_png, ".tif": _deep_tiff, ".tiff": _deep_tiff}


def _png_chunks(comment: str | None) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")  # PNG specification 11.3.2.5: sRGB, perceptual intent
    if comment is not None:
        # A file name that is not Unicode arrives as lone surrogates, which UTF-8 cannot hold.
        chunks.add_itxt("Comment", comment.encode("utf-8", "backslashreplace").decode())
    return chunks


@functools.cache
def srgb_profile() -> bytes:
    """An ICC profile of sRGB whose bytes are always the same."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Bytes 24 to 35 hold the time of creation (ICC.1:2022, 7.2.8), different in each run.
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]
