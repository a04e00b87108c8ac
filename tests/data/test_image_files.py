"""Every odd kind of image file: decoded to the right pixels, or refused with its reason."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.data.image_files import REASONS, ImageLimits, RefusedImage, fit, read_image, read_size

LIMITS = ImageLimits(max_pixels=400 * 400, min_side=4)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def halves(mode="RGB", left=RED, right=BLUE, size=(40, 24)):
    """A picture of (width, height) with two colours side by side."""
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(path, data, size=(12, 20), limits=LIMITS, background="#ffffff"):
    path.write_bytes(data)
    return read_image(path, size, background, limits)


def assert_halves(image, left=RED, right=BLUE, tolerance=12):
    middle = image.shape[1] // 2
    for columns, colour in ((slice(2, middle - 3), left), (slice(middle + 3, -2), right)):
        assert np.abs(image[2:-2, columns].astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_every_format(kind, tmp_path):
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    assert_halves(read(tmp_path / "a.png", encoded(halves(), kind, **options)))


@pytest.mark.parametrize(("background", "expected"), [("#ffffff", (255, 255, 255)), ("#102030", (16, 32, 48))])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_the_background(mode, background, expected, tmp_path):
    clear = halves("RGBA", (255, 255, 255, 255), (0, 255, 0, 0))
    options = {}
    if mode == "P":
        clear, options = halves("P", 0, 1), {"transparency": 1}
        clear.putpalette([255, 255, 255, 0, 255, 0])
    else:
        clear = clear.convert(mode)
    image = read(tmp_path / "a.png", encoded(clear, **options), background=background)
    assert_halves(image, (255, 255, 255), expected)


def test_palettes_and_grey_pictures(tmp_path):
    assert_halves(read(tmp_path / "p.png", encoded(halves().quantize(4))))
    assert_halves(read(tmp_path / "l.png", encoded(halves("L", 10, 200))), (10,) * 3, (200,) * 3)
    assert_halves(read(tmp_path / "1.png", encoded(halves("1", 0, 1))), (0,) * 3, (255,) * 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_brightness(kind, tmp_path):
    values = np.full((24, 40), 10 * 256, np.uint16)
    values[:, 20:] = 200 * 256 + 255
    assert_halves(read(tmp_path / "a.png", encoded(Image.fromarray(values), kind)), (10,) * 3, (200,) * 3)


def test_cmyk(tmp_path):
    data = encoded(halves().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_halves(read(tmp_path / "a.jpg", data), tolerance=30)


def test_exif_rotation_turns_the_picture_and_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(halves(), "JPEG", quality=95, subsampling=0, exif=exif)
    image = read(tmp_path / "a.jpg", data, size=(20, 12))
    assert read_size(tmp_path / "a.jpg", LIMITS) == (40, 24)
    assert_halves(image.swapaxes(0, 1))


def test_an_animation_gives_its_first_frame(tmp_path):
    data = encoded(halves(), "GIF", save_all=True, append_images=[halves(left=GREEN, right=GREEN)])
    assert_halves(read(tmp_path / "a.gif", data))


def test_a_large_jpeg_decoded_coarsely_looks_the_same(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    smooth = Image.fromarray(noise).resize((384, 384), Image.Resampling.BICUBIC)
    fast = read(tmp_path / "a.jpg", encoded(smooth, "JPEG", quality=98), size=(24, 24))
    slow = read(tmp_path / "a.png", encoded(smooth), size=(24, 24))
    assert np.abs(fast.astype(int) - slow).mean() < 2


@pytest.mark.parametrize(("wanted", "box"), [((20, 20), (10, 0, 30, 20)), ((10, 40), (0, 5, 40, 15))])
def test_fitting_cuts_the_middle(wanted, box):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 40, 3), np.uint8))
    np.testing.assert_array_equal(fit(noise, wanted), np.asarray(noise.crop(box)))


def test_fitting_averages_over_the_whole_footprint():
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(fit(Image.fromarray(stripes), (10, 10))[:, 1:-1].astype(int) - 100).max() <= 3


def truncated(data):
    return data[: len(data) * 6 // 10]


NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 255, (60, 80, 3), np.uint8))
HOSTILE = {
    "empty": b"",
    "text": b"this is no picture",
    "truncated png": truncated(encoded(NOISE)),
    "truncated jpeg": truncated(encoded(NOISE, "JPEG")),
    "truncated webp": truncated(encoded(NOISE, "WEBP", lossless=True)),
    "flipped bytes": encoded(NOISE)[:200] + bytes(400) + encoded(NOISE)[600:],
    "many pixels": encoded(Image.new("1", (30000, 30000))),
    "more pixels than the limit": encoded(Image.new("1", (401, 400))),
    "one pixel wide": encoded(Image.new("RGB", (1, 300))),
    "one pixel high": encoded(Image.new("RGB", (300, 1))),
    "floating point": encoded(Image.new("F", (40, 40)), "TIFF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n",
}
EXPECTED = {
    "empty": "empty",
    "text": "not an image",
    "many pixels": "too large",
    "more pixels than the limit": "too large",
    "one pixel wide": "too small",
    "one pixel high": "too small",
    "floating point": "no pixel range",
    "postscript": "not an image",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_a_reason(name, tmp_path):
    with pytest.raises(RefusedImage) as refused:
        read(tmp_path / "a.png", HOSTILE[name])
    assert refused.value.reason == EXPECTED.get(name, "damaged")
    assert str(tmp_path / "a.png") in str(refused.value) and "\n" not in str(refused.value)
    assert REASONS[refused.value.reason] in str(refused.value)


def test_files_that_cannot_be_opened(tmp_path):
    os.symlink(tmp_path / "nowhere", tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(RefusedImage) as refused:
            read_size(path, LIMITS)
        assert refused.value.reason == "unreadable"


def test_limits():
    assert not list(LIMITS.faults())
    assert [fault.field for fault in ImageLimits(max_pixels=10**10, min_side=0).faults()] == ["max_pixels", "min_side"]
