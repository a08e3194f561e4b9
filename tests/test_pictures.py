"""Pictures: what is read is what a viewer shows; what is written is whole; what is bad says so in a line."""

import errno
import hashlib
import io
import itertools
import os
import pathlib
import struct
import subprocess
import sys
import time
import types
import warnings
import zlib

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 - so that Pillow writes them
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageOps

from jaxstyle.errors import UserError
from jaxstyle.images import decode, jpegxl, pictures, samples
from jaxstyle.images.encode import srgb_profile

NATIVE = (32, 24)  # width, height of the pictures made here


@pytest.fixture
def photo():
    """Smooth 8-bit pixels [24, 32, 3] in which no two corners or channels are alike."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([8 * x, 10 * y, 255 - 4 * x - 4 * y], axis=-1).astype(np.uint8)


@pytest.fixture
def saved(tmp_path):
    """Saves a Pillow picture under the name and returns its path."""

    def save(image, name, **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Columns are the primaries' XYZ at D50.
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 563 / 256


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space, tags):
    """An ICC profile by the letter of ICC.1:2001-04, with one gamma for every curve ("TRC")."""
    tags = {"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)} | tags
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data = data or b"curv" + struct.pack(">IIHH", 0, 1, round(GAMMA * 256), 0)
        table += name.encode() + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = (
        struct.pack(">II", offset + len(body), 0)
        + b"\x02\x40\0\0mntr"
        + space
        + b"XYZ "
        + bytes(12)
        + b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


def adobe_rgb_profile():
    primaries = {f"{c}XYZ": b"XYZ \0\0\0\0" + fixed(*ADOBE_RGB[:, i]) for i, c in enumerate("rgb")}
    return profile(b"RGB ", primaries | {f"{c}TRC": None for c in "rgb"})


def display_p3_profile():
    """What phones tag their photos with: P3's primaries at D50, and the parametric curve of IEC 61966-2-1."""
    columns = {
        "r": (0.51512, 0.2412, -0.00105),
        "g": (0.29198, 0.69225, 0.04189),
        "b": (0.1571, 0.06657, 0.78407),
    }
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    primaries = {f"{name}XYZ": b"XYZ \0\0\0\0" + fixed(*column) for name, column in columns.items()}
    return profile(b"RGB ", primaries | {f"{name}TRC": curve for name in columns})


def grey_profile():
    return profile(b"GRAY", {"kTRC": None})


def encode(linear):
    """The curve of IEC 61966-2-1."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def adobe_rgb_to_srgb(pixels):
    return encode((pixels / 255.0) ** GAMMA @ ADOBE_RGB.T @ np.linalg.inv(SRGB).T)


# --- size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("640x480", (640, 480)), (" 8X8192 ", (8, 8192))])
def test_size_is_the_longer_side_or_both(text, size):
    assert pictures.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "12.5", "0x9", "5x", "x5", "1x2x3", "99999", "8193", "٣٠", "1e3"]
)
def test_a_size_that_is_none_names_the_flag(text):
    with pytest.raises(UserError, match="--size"):
        pictures.parse_size(text)


@pytest.mark.parametrize(
    ("size", "native", "fitted"),
    [
        (512, (1728, 1152), (512, 341)),  # 341.33
        (512, (1152, 1728), (341, 512)),
        (100, (200, 101), (100, 51)),  # 50.5, half up
        (64, (16, 16), (64, 64)),
        (64, (9000, 20), (64, 1)),  # 0.14
        ((300, 300), (1728, 1152), (300, 300)),
    ],
)
def test_the_shorter_side_keeps_the_aspect(size, native, fitted):
    assert pictures.fit(size, *native) == fitted


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.png", "a.tif", "a.bmp", "a.ppm", "a.tga", "a.ico", "a.pcx", "a.sgi", "a.qoi"]
)
def test_lossless_formats_give_back_their_pixels(saved, photo, name):
    options = {"sizes": [NATIVE]} if name == "a.ico" else {}
    image = pictures.read(saved(Image.fromarray(photo), name, **options), NATIVE)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, photo)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.jp2", "a.avif"])
def test_lossy_formats_come_close(saved, photo, name):
    image = pictures.read(saved(Image.fromarray(photo), name, quality=95), NATIVE)
    assert np.abs(image - photo).mean() < 3


@pytest.mark.parametrize("filter_", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_resizing_is_pillows_on_8_bits(saved, photo, filter_):
    path = saved(Image.fromarray(photo), "a.png")
    expected = Image.fromarray(photo).resize((11, 7), Image.Resampling[filter_.upper()])
    np.testing.assert_array_equal(pictures.read(path, (11, 7), filter_), np.asarray(expected))


def test_one_size_is_the_longer_side(saved, photo):
    assert pictures.read(saved(Image.fromarray(photo), "a.png"), 16).shape == (12, 16, 3)


@pytest.mark.parametrize("name", ["dog.jpg", "starry_night.jpg", "slav.jpg", "scream.jpg"])
def test_nearest_is_what_the_2017_study_had(study, name):
    with Image.open(study / name) as image:
        expected = np.asarray(image.resize((300, 300), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(pictures.read(study / name, (300, 300), "nearest"), expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(saved, photo, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(photo), name, exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert upright.size == (NATIVE if orientation < 5 else NATIVE[::-1])
    np.testing.assert_array_equal(pictures.read(path, upright.size), np.asarray(upright))


def test_orientation_6_turns_a_quarter_to_the_right(saved, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(photo), "a.png", exif=exif)
    np.testing.assert_array_equal(pictures.read(path, NATIVE[::-1]), np.rot90(photo, -1))


@pytest.mark.parametrize("note", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_broken_exif_does_not_spoil_the_picture(saved, photo, note):
    path = saved(Image.fromarray(photo), "a.png", exif=note)
    np.testing.assert_array_equal(pictures.read(path, NATIVE), photo)


def test_orientation_is_found_beside_a_broken_note_without_a_warning(saved, photo):
    beyond = struct.pack("<HHII", 0x010E, 2, 1000, 5000)  # a description that would start past the end
    quarter = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + beyond + quarter + bytes(4)
    path = saved(Image.fromarray(photo), "a.png", exif=exif)
    np.testing.assert_array_equal(pictures.read(path, NATIVE[::-1]), np.rot90(photo, -1))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_wide_gamut_is_converted_to_srgb(saved, name):
    inside = np.random.default_rng(0).integers(90, 160, (24, 32, 3), dtype=np.uint8)
    path = saved(Image.fromarray(inside), name, icc_profile=adobe_rgb_profile())
    converted = adobe_rgb_to_srgb(inside)
    assert np.abs(converted - inside).max() > 15  # the profile matters
    np.testing.assert_allclose(pictures.read(path, NATIVE), converted, atol=1.0)


@pytest.mark.parametrize("name", ["a.jpg", "a.heic", "a.jxl", "a.png"])
def test_a_phones_display_p3_is_shown_in_its_own_colours(tmp_path, name):
    """Published pairs: sRGB's red is (234, 51, 35) in Display P3, its green (117, 251, 76); grey is grey."""
    colours = {(234, 51, 35): (255, 0, 0), (117, 251, 76): (0, 255, 0), (119, 119, 119): (119, 119, 119)}
    photo = Image.new("RGB", (48, 48))
    for i, colour in enumerate(colours):
        photo.paste(colour, (16 * i, 0, 16 * i + 16, 48))
    options = {} if name == "a.png" else {"quality": 100}
    if name == "a.heic":
        photo = pillow_heif.from_pillow(photo)
        photo[0].info["icc_profile"] = display_p3_profile()
    else:
        options["icc_profile"] = display_p3_profile()
    if name == "a.jxl":  # whose encoder writes no profile, but carries a JPEG
        photo.save(tmp_path / "a.jpg", **options)
        photo, options = Image.open(tmp_path / "a.jpg"), {"lossless_jpeg": True}
    photo.save(tmp_path / name, **options)
    found = pictures.read(tmp_path / name)
    for i, expected in enumerate(colours.values()):
        np.testing.assert_allclose(found[24, 16 * i + 8], expected, atol=12 if name != "a.png" else 4)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_profile_of_grey_serves_grey(saved, mode):
    ramp = np.linspace(0, 255, 32 * 24).reshape(24, 32).astype(np.uint8)
    grey = (
        Image.fromarray(257 * ramp.astype(np.uint16))
        if mode == "I;16"
        else Image.fromarray(ramp).convert(mode)
    )
    pixels = pictures.read(saved(grey, "a.png", icc_profile=grey_profile()), NATIVE)
    np.testing.assert_allclose(pixels[..., 0], encode((ramp / 255.0) ** GAMMA), atol=1.5)
    assert np.abs(pixels[..., 0] - ramp).max() > 2  # the profile matters


def test_nearest_leaves_the_profile_unapplied(saved, photo):
    path = saved(Image.fromarray(photo), "a.png", icc_profile=adobe_rgb_profile())
    np.testing.assert_array_equal(pictures.read(path, NATIVE, "nearest"), photo)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_a_profile_of_rgb_serves_every_mode_that_becomes_rgb(saved, mode):
    grey = Image.new("RGB", NATIVE, (100, 100, 100)).convert(mode)
    path = saved(grey, "a.png", icc_profile=adobe_rgb_profile())
    expected = adobe_rgb_to_srgb(np.asarray(grey.convert("RGB"), float))
    np.testing.assert_allclose(pictures.read(path, NATIVE), expected, atol=1.0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("profile", [b"garbage", bytes(200), adobe_rgb_profile()[:300], "lab"])
def test_a_profile_that_is_broken_or_does_not_fit_counts_as_srgb(saved, photo, mode, profile):
    if profile == "lab":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(photo).convert(mode)
    path = saved(image, "a.tif", icc_profile=profile)
    np.testing.assert_array_equal(pictures.read(path, NATIVE), np.asarray(image.convert("RGB")))


def test_a_profile_of_rgb_does_not_fit_cmyk(saved, photo):
    image = Image.fromarray(photo).convert("CMYK")
    path = saved(image, "a.tif", icc_profile=adobe_rgb_profile())
    np.testing.assert_array_equal(pictures.read(path, NATIVE), np.asarray(image.convert("RGB")))


def test_alpha_is_laid_on_white(saved, photo):
    alpha = np.linspace(0, 255, photo.shape[0] * photo.shape[1]).reshape(photo.shape[:2]).astype(np.uint8)
    image = Image.fromarray(np.dstack([photo, alpha]))
    cover = alpha[..., None] / 255
    expected = cover * photo + (1 - cover) * 255
    for name in ("a.png", "a.tif", "a.tga"):
        np.testing.assert_allclose(pictures.read(saved(image, name), NATIVE), expected, atol=0.51)
    lossless = saved(image, "a.webp", lossless=True, exact=True)
    np.testing.assert_allclose(pictures.read(lossless, NATIVE), expected, atol=0.51)


def test_grey_with_alpha_is_laid_on_white(saved):
    path = saved(Image.new("LA", NATIVE, (100, 51)), "a.png")
    np.testing.assert_array_equal(pictures.read(path, NATIVE), 224)  # 0.2·100 + 0.8·255


@pytest.mark.parametrize(("name", "transparent"), [("a.png", 1), ("a.gif", 1), ("b.png", b"\xff\0")])
def test_a_palettes_transparent_colour_becomes_white(saved, name, transparent):
    image = Image.new("P", NATIVE, 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 8, 24))
    pixels = pictures.read(saved(image, name, transparency=transparent), NATIVE)
    np.testing.assert_array_equal(pixels[:, :8], 255)
    np.testing.assert_array_equal(pixels[:, 8:], np.broadcast_to([10, 20, 30], (24, 24, 3)))


def test_a_transparent_colour_of_rgb_becomes_white(saved, photo):
    photo[3, 4] = 1, 2, 3
    pixels = pictures.read(saved(Image.fromarray(photo), "a.png", transparency=(1, 2, 3)), NATIVE)
    photo[3, 4] = 255
    np.testing.assert_array_equal(pixels, photo)


def test_cmyk_jpeg_has_its_colours(saved):
    path = saved(Image.new("CMYK", NATIVE, (0, 255, 255, 0)), "a.jpg", quality=100)
    np.testing.assert_allclose(pictures.read(path, NATIVE)[0, 0], [255, 0, 0], atol=2)


@pytest.mark.parametrize("filter_", ["lanczos", "nearest"])
def test_lab_is_converted(saved, filter_):
    path = saved(Image.new("LAB", NATIVE, (round(0.5 * 255), 128, 128)), "a.tif")  # zero is at 128
    np.testing.assert_allclose(pictures.read(path, NATIVE, filter_), 119, atol=1.5)  # sRGB of L* = 50


def test_one_bit_is_black_and_white(saved):
    image = Image.new("1", NATIVE, 0)
    image.putpixel((5, 6), 1)
    pixels = pictures.read(saved(image, "a.png"), NATIVE)
    assert pixels[6, 5].tolist() == [255, 255, 255]
    assert pixels.sum() == 3 * 255


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.pgm"])
def test_grey_of_16_bits_is_scaled_not_clipped(saved, name):
    values = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    pixels = pictures.read(saved(Image.fromarray(values), name), NATIVE)
    np.testing.assert_array_equal(pixels[..., 0], np.round(values / 257))
    assert (pixels == pixels[..., :1]).all()


def test_big_endian_grey_of_16_bits(tmp_path):
    values = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(">u2")
    tags = [
        (256, 32),
        (257, 24),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 24),
        (279, values.nbytes),
    ]
    directory = struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHII", t, 4, 1, v) for t, v in tags)
    (tmp_path / "a.tif").write_bytes(
        b"MM\0*" + struct.pack(">I", 8 + values.nbytes) + values.tobytes() + directory + bytes(4)
    )
    pixels = pictures.read(tmp_path / "a.tif", NATIVE)
    np.testing.assert_array_equal(pixels[..., 0], np.round(values / 257))


def test_a_transparent_value_of_16_bits_becomes_white(saved):
    values = np.full((24, 32), 1000, np.uint16)
    values[2, 3] = 7
    pixels = pictures.read(saved(Image.fromarray(values), "a.png", transparency=7), NATIVE)
    assert pixels[2, 3].tolist() == [255, 255, 255]
    assert np.delete(pixels[..., 0], 2 * 32 + 3).tolist() == [4] * (32 * 24 - 1)  # 1000 / 257


@pytest.mark.parametrize(
    ("dtype", "full"),
    [(np.int32, 65535), (np.int32, 2**31 - 1), (np.float32, 1), (np.float32, 255), (np.float32, 65535)],
)
def test_grey_of_32_bits_and_floats_is_scaled(saved, dtype, full):
    ramp = np.linspace(0, 1, 32 * 24).reshape(24, 32)
    pixels = pictures.read(saved(Image.fromarray((ramp * full).astype(dtype)), "a.tif"), NATIVE)
    np.testing.assert_allclose(pixels[..., 0], 255 * ramp, atol=0.51)


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e9])
def test_floats_without_a_scale_are_refused(saved, odd):
    values = np.full((24, 32), 0.5, np.float32)
    values[0, 0] = odd
    with pytest.raises(UserError, match=r"a\.tif.*known scale"):
        pictures.read(saved(Image.fromarray(values), "a.tif"), NATIVE)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_frame_is_read(saved, name):
    frames = [Image.new("RGB", NATIVE, colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if name == "a.webp" else {}
    path = saved(frames[0], name, save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(pictures.read(path, NATIVE), np.broadcast_to([255, 0, 0], (24, 32, 3)))


def test_reading_leaves_pillow_and_warnings_as_they_were(saved, photo):
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    pictures.read(saved(Image.fromarray(photo), "a.png"), NATIVE)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# --- samples ---------------------------------------------------------------------------------------------


def test_the_sample_photos_are_scikit_images():
    from skimage import data

    np.testing.assert_array_equal(pictures.read("sample:portrait", (512, 512)), data.astronaut())
    np.testing.assert_array_equal(pictures.read("sample:cat", (451, 300)), data.chelsea())


@pytest.mark.parametrize("name", samples.NAMES)
def test_the_sample_styles_are_drawn_and_resized(name):
    drawn = Image.fromarray(samples.picture(name))
    np.testing.assert_array_equal(
        pictures.read(f"sample:{name}", (40, 30)),
        np.asarray(drawn.resize((40, 30), Image.Resampling.LANCZOS)),
    )
    assert pictures.sha256(f"sample:{name}") == hashlib.sha256(drawn.tobytes()).hexdigest()


def test_an_unknown_sample_names_the_known(tmp_path):
    with pytest.raises(
        UserError, match=r"sample:dawn.*sample:portrait, sample:cat, sample:night, sample:facets"
    ):
        pictures.read("sample:dawn", 64)


def test_sha256_is_that_of_the_file(saved, photo):
    path = saved(Image.fromarray(photo), "a.png")
    assert pictures.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="no such file"):
        pictures.sha256(path.with_name("b.png"))


# --- bad input -------------------------------------------------------------------------------------------


def refusal(path, *arguments):
    """The one line that tells a user why the picture is not read."""
    with pytest.raises(UserError) as caught:
        pictures.read(path, *(arguments or (64,)))
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_what_is_no_file_is_refused(tmp_path):
    assert "'gone.png': no such file" in refusal("gone.png")
    assert "directory" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / ("b" * 300))
    assert "null" in refusal("a\0b.png")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "not a regular file" in refusal("/dev/zero")


def test_an_unreadable_file_is_refused(saved, photo, monkeypatch):
    def deny(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    path = saved(Image.fromarray(photo), "a.png")
    monkeypatch.setattr(pathlib.Path, "read_bytes", deny)  # root, who runs some CI, may read everything
    assert refusal(path) == f"{str(path)!r}: cannot be read: Permission denied"


def test_what_is_no_picture_is_refused(tmp_path, saved):
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    assert "a.png': is empty" in refusal(path)
    path.write_bytes(b"hello, world\n" * 20)
    assert "a.png': is not a picture" in refusal(path)


def test_what_is_too_small_to_paint_from_is_told(saved):
    path = saved(Image.new("RGB", (15, 40)), "a.png")
    with pytest.raises(UserError, match="is 15x40 pixels; each side needs 16"):
        pictures.read(path, 100, smallest=16)


@pytest.mark.parametrize("shape", [(1, 1, 3), (9, 40, 3)])
def test_what_is_written_can_be_read_however_small(tmp_path, shape):
    pictures.write(tmp_path / "a.png", np.full(shape, 77.0))
    assert (pictures.read(tmp_path / "a.png") == np.full(shape, 77.0)).all()
    frames = [tmp_path / "a.png", tmp_path / "a.png"]
    pictures.write_animation(tmp_path / "a.webp", frames)
    assert pictures.read(tmp_path / "a.webp").shape == shape


def test_a_filter_that_is_none_is_refused(saved, photo):
    line = refusal(saved(Image.fromarray(photo), "a.png"), 64, "sinc")
    assert line.startswith("--resize='sinc'")
    assert "nearest" in line
    assert "lanczos" in line


def test_a_file_name_with_a_newline_makes_one_line(tmp_path):
    assert r"two\nlines<script>'.png" in refusal(tmp_path / "two\nlines<script>'.png")


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp", "a.jp2", "a.avif", "a.ppm"]
)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(saved, name, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert name in refusal(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    start = time.monotonic()
    path = tmp_path / "bomb.png"
    for sides in [(60000, 60000), (2**31 - 1, 2**31 - 1), (9000, 9500), (8193, 8192)]:
        path.write_bytes(png_that_claims(*sides))
        assert "at most 67 million" in refusal(path)
    for side in (11000, 60000):  # hidden in an icon
        bomb = png_that_claims(side, side)
        entry = struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, len(bomb), 22)
        path.write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + bomb)
        assert "at most 67 million" in refusal(path)
    path.write_bytes(b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6))
    assert "at most 67 million" in refusal(path)
    assert time.monotonic() - start < 2


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**40)  # sparse
    assert "MiB; at most 256 are read" in refusal(tmp_path / "a.png")


def test_a_file_that_decodes_slowly_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P3 1000 1000 255\n" + b"1 " * 3_000_000)
    # A clock that goes on by a second at each look. The header is read byte by byte.
    looks = itertools.count()
    monkeypatch.setattr(decode, "time", types.SimpleNamespace(monotonic=lambda: next(looks)))
    monkeypatch.setattr(decode, "MAX_SECONDS", 20)
    assert "takes longer than 20 s" in refusal(path)
    assert next(looks) < 25


def test_a_jpeg_of_many_scans_is_refused(tmp_path):
    # Grey, 64x64, one DC scan and many AC scans, each of which says in two bytes that all 64 blocks are empty.
    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    head = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, b"\x08\0\x40\0\x40\1\1\x11\0")
    head += segment(0xC4, b"\0\1" + bytes(16)) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(8)
    later = segment(0xDA, b"\1\1\0\1\x3f\0") + bytes(2)
    path = tmp_path / "a.jpg"
    path.write_bytes(head + first + 50 * later + b"\xff\xd9")
    np.testing.assert_array_equal(pictures.read(path, (64, 64)), 128)
    path.write_bytes(head + first + 150 * later + b"\xff\xd9")
    assert "more than 100 scans" in refusal(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_a_tiff_whose_colours_are_of_a_kind_that_is_not_read_is_told_to_be_one(tmp_path, dtype, big):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((24, 32, 3), dtype), photometric="rgb", bigtiff=big)
    told = refusal(tmp_path / "a.tif")
    assert "a.tif': is a TIFF of a kind that is not read" in told
    assert told.endswith("save it as RGB of 8 or 16 bits a colour")


def test_no_program_is_started_for_postscript(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) show\n%%EOF\n")
    assert "is not a picture" in refusal(path)


def test_avif_under_the_common_brand_of_its_family_is_read(tmp_path):
    valid, path = io.BytesIO(), tmp_path / "a.avif"
    Image.new("RGB", (32, 24), (200, 100, 50)).save(valid, "AVIF")
    data = valid.getvalue()
    path.write_bytes(data[:8] + b"mif1" + data[12:])
    np.testing.assert_allclose(pictures.read(path), np.full((24, 32, 3), (200, 100, 50)), atol=4)


@pytest.mark.parametrize(
    "name", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "TGA", "ICO"]
)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    rng = np.random.default_rng(sum(name.encode()))
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    valid = io.BytesIO()
    icon = (
        {"sizes": [(32, 32)]} if name == "ICO" else {"icc_profile": adobe_rgb_profile(), "exif": Image.Exif()}
    )
    noise.save(valid, name, **icon)
    refused = 0
    for i in range(40):
        data = np.frombuffer(valid.getvalue(), np.uint8).copy()
        reach = len(data) if i % 2 else min(len(data), 200)  # half of them in the head
        data[rng.integers(0, reach, 1 + i % 5)] = rng.integers(0, 256, 1 + i % 5)
        path = tmp_path / f"{i}.{name}"
        path.write_bytes(data)
        try:
            image = pictures.read(path, 32)
        except UserError as error:
            refused += str(error).isprintable()
        else:
            assert max(image.shape) == 32
            assert ((image >= 0) & (image <= 255)).all()
    assert refused > 0


# --- writing ---------------------------------------------------------------------------------------------


def smooth(seed=0):
    y, x = np.mgrid[0:40, 0:50]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    return (127.5 + 120 * np.sin(0.1 * x[..., None] + 0.15 * y[..., None] + phase)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF", "a.jpg", "a.JPEG", "a.webp"])
def test_what_is_written_is_read_again(tmp_path, name):
    pictures.write(tmp_path / name, smooth())
    error = np.abs(pictures.read(tmp_path / name, (50, 40)) - smooth())
    if name.lower().endswith(("png", "tif", "tiff")):
        assert error.max() <= 0.5
    else:
        assert error.mean() < 3


def test_any_range_is_clipped_and_rounded_half_up(tmp_path):
    values = [-1e30, -0.5, 0.49999997, 0.5, 1.5, 2.5, 126.5, 254.4, 254.5, 255.5, 300, 1e30]
    expected = [0, 0, 0, 1, 2, 3, 127, 254, 255, 255, 255, 255]
    image = np.broadcast_to(np.float32(values)[None, :, None], (20, 12, 3))
    pictures.write(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as written:
        assert np.asarray(written)[0, :, 0].tolist() == expected
        assert written.mode == "RGB"


def test_the_same_image_gives_the_same_bytes_at_another_time(tmp_path):
    def written():
        srgb_profile.cache_clear()
        paths = [tmp_path / name for name in ("a.png", "a.jpg", "a.webp", "a.tif")]
        for path in paths:
            pictures.write(path, smooth(), comment="--size=512")
        return [path.read_bytes() for path in paths]

    def profile():
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    first, earlier = written(), profile()
    while profile() == earlier:  # its time of creation counts seconds
        time.sleep(0.05)
    assert written() == first


def test_pictures_are_tagged_as_srgb(tmp_path):
    for name in ("a.jpg", "a.webp", "a.tif"):
        pictures.write(tmp_path / name, smooth())
        with Image.open(tmp_path / name) as image:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
    pictures.write(tmp_path / "a.png", smooth())
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["srgb"] == 0


@pytest.mark.parametrize("comment", ["--size=512\n--style=Müller/星月夜.jpg\n", ""])
def test_a_png_carries_the_comment(tmp_path, comment):
    pictures.write(tmp_path / "a.png", smooth(), comment=comment)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"Comment": comment}


def test_a_comment_with_a_name_that_is_not_unicode_is_escaped(tmp_path):
    pictures.write(tmp_path / "a.png", smooth(), comment=os.fsdecode(b"--style=\xff.jpg"))
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"Comment": r"--style=\udcff.jpg"}


def test_lower_quality_makes_a_smaller_file(tmp_path):
    for name in ("a.jpg", "a.webp"):
        pictures.write(tmp_path / name, smooth())
        fine = (tmp_path / name).stat().st_size
        pictures.write(tmp_path / name, smooth(), quality=30)
        assert (tmp_path / name).stat().st_size < fine


@pytest.mark.parametrize("name", ["a.xyz", "a", "png", "a.gif"])
def test_an_unknown_suffix_names_the_known(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name}'.*\.png, \.jpg"):
        pictures.write(tmp_path / name, smooth())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "image", [np.full((20, 20, 3), np.nan), np.zeros((20, 20)), np.zeros((1, 20, 20, 3))]
)
def test_what_is_no_image_is_a_mistake_of_the_program(tmp_path, image):
    with pytest.raises(ValueError, match=r"finite|height, width, 3"):
        pictures.write(tmp_path / "a.png", image)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.png': its folder is missing"):
        pictures.write(tmp_path / "missing" / "a.png", smooth())
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match=r"b\.png'.*cannot be written"):
        pictures.write(tmp_path / "b.png", smooth())
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, call, failure):
    def fail(*arguments):
        raise failure

    path = tmp_path / "a.png"
    pictures.write(path, smooth(0))
    before = path.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        pictures.write(path, smooth(1))
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_picture_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    pictures.write(tmp_path / "a.png", smooth())
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sixteen_bits_are_kept_and_tagged_as_srgb(tmp_path):
    image = np.random.default_rng(0).uniform(-5, 260, (17, 23, 3)).astype(np.float32)
    expected = np.floor(np.clip(np.float64(image), 0, 255) * 257 + 0.5).astype(np.uint16)
    png, tiff = tmp_path / "deep.png", tmp_path / "deep.tiff"
    for path in (png, tiff):
        pictures.write(path, image, "made by a test", bits=16)
        before = path.read_bytes()
        pictures.write(path, image, "made by a test", bits=16)
        assert path.read_bytes() == before
    np.testing.assert_array_equal(tifffile.imread(tiff), expected)
    with Image.open(tiff) as opened:
        assert "sRGB" in ImageCms.getProfileDescription(io.BytesIO(opened.info["icc_profile"]))
    with Image.open(png) as opened:  # Pillow verifies the checksums, and keeps the upper eight bits
        assert opened.text["Comment"] == "made by a test"
        assert opened.info["srgb"] == 0
        np.testing.assert_array_equal(np.asarray(opened), expected >> 8)


def test_a_sixteen_bit_png_has_its_lower_bits_too(tmp_path):
    image = np.full((20, 20, 3), 100 + 3 / 257, np.float32)
    pictures.write(tmp_path / "deep.png", image, bits=16)
    data = (tmp_path / "deep.png").read_bytes()
    start = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[start - 4 : start])
    rows = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + length]), np.uint8).reshape(
        20, 1 + 20 * 6
    )
    assert (rows[:, 0] == 2).all()  # each row less the one above
    raw = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    np.testing.assert_array_equal(raw.reshape(20, 20, 3, 2).view(">u2")[..., 0], 100 * 257 + 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_result_that_is_read_and_written_again_is_the_same(tmp_path, bits):
    image = np.random.default_rng(0).uniform(0, 255, (17, 23, 3)).astype(np.float32)
    for name, pixels in (
        ("a.png", lambda: image),
        ("b.png", lambda: pictures.read_result(tmp_path / "a.png", bits)),
    ):
        pictures.write(tmp_path / name, pixels(), "made by a test", bits=bits)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_result_of_sixteen_bits_that_was_replaced_is_told(tmp_path):
    pictures.write(tmp_path / "a.png", np.zeros((20, 20, 3)))
    with pytest.raises(UserError, match=r"a\.png.*16 bits"):
        pictures.read_result(tmp_path / "a.png", 16)


def test_formats_without_sixteen_bits_say_so(tmp_path):
    with pytest.raises(UserError, match=r"--bits=16: .*deep\.jpg"):
        pictures.write(tmp_path / "deep.jpg", np.zeros((20, 20, 3), np.float32), bits=16)


def test_an_animation_shows_each_frame_at_the_size_of_the_last(tmp_path):
    frames = []
    for number, side in enumerate((20, 20, 30)):
        frames.append(tmp_path / f"{number}.png")
        pictures.write(frames[-1], np.full((side, side, 3), 60 * number, np.float32))
    pictures.write_animation(tmp_path / "made.webp", frames)
    with Image.open(tmp_path / "made.webp") as opened:
        assert (opened.n_frames, opened.size, opened.info["loop"]) == (3, (30, 30), 0)
        for number in range(3):
            opened.seek(number)
            opened.load()
            assert abs(np.asarray(opened.convert("RGB"), int).mean() - 60 * number) < 3
            assert opened.info["duration"] == (2000 if number == 2 else 200)


# --- photos as they come ------------------------------------------------------------------------------------------


def test_floats_that_overshoot_one_are_of_scale_one(tmp_path):
    values = np.linspace(-0.02, 1.03, 24 * 32, dtype=np.float32).reshape(24, 32)
    tifffile.imwrite(tmp_path / "a.tiff", values)
    expected = np.round(255 * np.clip(values, 0, 1))
    np.testing.assert_allclose(pictures.read(tmp_path / "a.tiff")[..., 0], expected, atol=1)


def test_white_may_be_zero_in_16_bits(tmp_path):
    values = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    tifffile.imwrite(tmp_path / "a.tiff", values, photometric="miniswhite")
    expected = 255 - values / 257
    np.testing.assert_allclose(pictures.read(tmp_path / "a.tiff")[..., 0], expected, atol=1)


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"tile": (16, 16)}, {"rowsperstrip": 5}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_of_16_bits_may_be_stored_apart(tmp_path, compression, options):
    values = np.arange(3 * 40 * 48, dtype=np.uint16).reshape(3, 40, 48) * 11
    tifffile.imwrite(
        tmp_path / "a.tiff",
        values,
        photometric="rgb",
        planarconfig="separate",
        compression=compression,
        **options,
    )
    found = pictures.read(tmp_path / "a.tiff")
    np.testing.assert_allclose(found, np.moveaxis(values, 0, -1) / 257, atol=1)


@pytest.mark.parametrize("turn", [1, 6])
def test_a_phones_heic_is_read_upright_and_once(tmp_path, turn):
    x = np.linspace(0, 255, 64)
    pixels = np.stack(np.broadcast_arrays(x[None, :], x[:48, None], 90.0), -1).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    photo = Image.fromarray(pixels)
    pillow_heif.from_pillow(photo).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    found = pictures.read(tmp_path / "a.heic")
    expected = pixels if turn == 1 else np.rot90(pixels, -1)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


def test_a_huge_jpeg_is_decoded_at_a_part_of_its_size(tmp_path):
    width, height = 12_000, 9_000  # 108 million pixels
    x = np.linspace(0, 255, width).astype(np.uint8)
    Image.fromarray(np.broadcast_to(x, (height, width))).save(tmp_path / "a.jpg", quality=50)
    found = pictures.read(tmp_path / "a.jpg", 400)
    assert found.shape == (300, 400, 3)
    np.testing.assert_allclose(found[150, :, 0], np.linspace(0, 255, 400), atol=3)


@pytest.mark.parametrize(("size", "height"), [(50, 49), ((50, 48), 48), ([50, 48], 48)])
def test_a_part_of_a_jpeg_is_rounded_up_as_it_is_decoded(tmp_path, monkeypatch, size, height):
    """Half of 201x199 is 101x100, which is more than 10 000 pixels: it is decoded at a quarter."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 100 * 100)
    Image.new("RGB", (201, 199)).save(tmp_path / "a.jpg")
    assert pictures.read(tmp_path / "a.jpg", size).shape == (height, 50, 3)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.nef", b"MM\0*\0\0\0\x08", "raw file; export it as TIFF or JPEG"),
        ("a.raf", b"FUJIFILMCCD-RAW 0201", "raw file; export it as TIFF or JPEG"),
        ("a.jxl", b"\xff\x0a\xfa\x1f", "cannot be decoded"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "cannot be decoded"),
    ],
)
def test_what_cannot_be_read_is_told_with_what_helps(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data + bytes(100))
    assert says in refusal(tmp_path / name)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (35, 20), (7, 600), (12_000, 5)])
def test_jpeg_xl_has_its_pixels_and_its_size_is_known_before(tmp_path, size, boxed):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = tmp_path / "a.jxl"
    Image.fromarray(pixels).save(file, lossless=True, use_container=boxed)
    assert jpegxl.size(file.read_bytes()) == size
    np.testing.assert_array_equal(pictures.read(file), pixels)


def test_jpeg_xl_of_a_phone_held_upright_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo = Image.new("RGB", (64, 32), "red")
    photo.paste("blue", (32, 0, 64, 32))
    photo.save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as jpeg:  # whose bytes are carried
        jpeg.save(tmp_path / "carried.jxl", lossless_jpeg=True)
    found = pictures.read(tmp_path / "carried.jxl")
    assert found.shape == (64, 32, 3)
    np.testing.assert_array_equal(found, pictures.read(tmp_path / "a.jpg"))


def test_jpeg_xl_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    large = 0b11 << 1 | (2**20 - 1) << 3 | 1 << 33  # 2²⁰ pixels a side: no eighths, 30 bits, as wide as high
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + large.to_bytes(8, "little"))
    assert "is 1048576x1048576 pixels" in refusal(tmp_path / "a.jxl")


def test_what_reads_jpeg_xl_is_told_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jxl")
    assert "pip install 'jaxstyle[jpegxl]' brings what reads it" in refusal(tmp_path / "a.jxl")


@pytest.mark.parametrize("kind", ["https", "Https"])  # as a telephone's keyboard begins a line
def test_an_address_is_told_to_be_downloaded(kind):
    assert "download the picture and name the file" in refusal(f"{kind}://example.org/a.jpg")


def test_the_photos_of_a_folder_are_those_that_show(tmp_path):
    for name in ("b.JPG", "a.heic", "._b.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in pictures.in_folder(tmp_path)] == ["a.heic", "b.JPG"]
