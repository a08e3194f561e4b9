"""Pictures that a page hands over: checked, kept in a folder, and shown small. Effects only."""

import functools
import hashlib
import io
import pathlib
import re
import unicodedata
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxstyle.errors import UserError
from jaxstyle.files import write_atomically
from jaxstyle.images import pictures, samples

MAX_BYTES = 2**26  # of an upload
#: Longer side in pixels of what is shown of a picture.
PREVIEW = 480

SAMPLES = tuple(f"sample:{name}" for name in (*pictures.PHOTOS, *samples.NAMES))


class Upload(NamedTuple):
    """A picture that is kept: its path, its name, and its size in pixels."""

    path: str
    name: str
    width: int
    height: int


def safe_name(name: str) -> str:
    """A file's name out of what a browser says: its letters, no folder, nothing hidden, 80 bytes or fewer."""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    stem, dot, suffix = re.sub(r"[^\w.,=+ -]", "_", name).strip(" .").rpartition(".")
    if not (dot and stem and re.fullmatch(r"\w{1,5}", suffix)):
        raise UserError(f"{name!r}: is no picture's name; one with an ending such as .jpg is needed")
    stem = stem.encode()[: 79 - len(suffix.encode())].decode("utf-8", "ignore").strip(" .")
    return f"{stem or 'picture'}.{suffix}"


def keep(folder: pathlib.Path, name: str, data: bytes) -> Upload:
    """Keeps a picture in a folder of its own, named by its bytes; the same bytes again are the same file.

    Raises:
      UserError: it is too large in bytes or pixels, too small, or no picture; or the folder cannot be written.
    """
    safe = safe_name(name)
    if len(data) > MAX_BYTES:
        raise UserError(f"{safe!r}: has {len(data) >> 20} MiB; at most {MAX_BYTES >> 20} are taken")
    place = folder / hashlib.sha256(data).hexdigest()[:12]
    path = place / safe
    new = not path.exists()
    try:
        if new:
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
    except OSError as error:
        raise UserError(f"{str(folder)!r}: cannot be written: {error.strerror}") from error
    try:
        image = pictures.read(path, smallest=pictures.MIN_SIDE)
    except UserError as error:
        if new:  # what was kept before was a picture, though it cannot be read now
            path.unlink()
            if not any(place.iterdir()):
                place.rmdir()
        raise UserError(str(error).replace(repr(str(path)), repr(safe))) from error
    height, width, _ = image.shape
    return Upload(str(path), safe, width, height)


def known(picture: str, folder: pathlib.Path) -> bool:
    """Whether a page may name this picture: a sample, or what was kept in the folder."""
    path = pathlib.Path(picture)
    place = path.parent
    kept = place.parent == folder and re.fullmatch("[0-9a-f]{12}", place.name) and path.is_file()
    return picture in SAMPLES or bool(kept)


@functools.lru_cache(maxsize=64)
def preview(picture: str) -> bytes:
    """A JPEG of a picture, its longer side `PREVIEW` pixels or fewer.

    Raises:
      UserError: it cannot be read.
    """
    pixels = np.uint8(pictures.read(picture))
    image = Image.fromarray(pixels)
    image.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
