"""What a decoder gives, of any mode, as upright 8-bit sRGB on white or another ground."""

import io

import numpy as np
from PIL import ExifTags, Image, ImageCms

_PHOTOMETRIC, _BITS = 262, 258  # tags of TIFF 6.0

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


def upright_rgb(image: Image.Image, managed: bool, ground: str = "white") -> Image.Image:
    """A decoded picture of any mode as RGB, on a `ground` of this colour where it is transparent.

    `managed` applies its ICC profile.
    """
    turn = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile") if managed else None
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        image = _eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        grey = image.mode in {"1", "L", "LA", "La"}
        image = image.convert("LA" if grey else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if grey else "RGB")
    image = _srgb(image, profile)
    if alpha is not None:
        laid = Image.new("RGB", image.size, ground)
        laid.paste(image, mask=alpha)
        image = laid
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits as mode L, or LA if one value of it stands for transparent."""
    values = np.array(image, np.float32)
    full = _full_scale(image, float(values.min()), float(values.max()))
    clear = image.info.get("transparency")
    visible = None if clear is None else Image.fromarray(values != clear).convert("L")
    values *= 255 / full  # in place: large pictures are large
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero, which Pillow regards in 8 bits alone
        np.subtract(255, values, out=values)
    values += 0.5
    grey = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
    if visible is not None:
        grey.putalpha(visible)
    return grey


def _full_scale(image: Image.Image, least: float, largest: float) -> int:
    """The value of white: the first of the mode's scales that is as large as the values.

    Floats may exceed it by a half, as filters overshoot, and be as far below zero; none but the smallest scale fits
    values that all are below a sixteenth of it, which would come out nearly black.

    Raises:
      ValueError: none fits.
    """
    if image.mode.startswith("I;"):
        return 4095 if _tag(image, _BITS) == (12,) else 65535
    scales, excess = ((1, 255, 65535), 0.5) if image.mode == "F" else ((65535, 2**31 - 1), 0)
    for scale in scales:
        # float32 rounds 2³¹ − 1 up.
        if largest <= np.float32(scale) * (1 + excess) and (scale == scales[0] or largest >= scale / 16):
            if least < -excess * scale:
                break
            return scale
    raise ValueError(f"grey values from {least:g} to {largest:g} have no known scale")


def _tag(image: Image.Image, number: int) -> object:
    """A tag of a TIFF file; None of other files."""
    return image.tag_v2.get(number) if hasattr(image, "tag_v2") else None


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An opaque picture of any 8-bit mode as RGB, by its ICC profile if that is usable."""
    if image.mode != "LAB" and profile is None:
        return image.convert("RGB")
    try:
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")  # the mode says what the numbers mean
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode != "CMYK":
                grey = source.profile.xcolor_space.strip() == "GRAY" and image.mode in {"1", "L"}
                image = image.convert("L" if grey else "RGB")
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # broken, or of other channels than the picture
        return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `decode`; here only a note is damaged and the picture is whole
        return 1
