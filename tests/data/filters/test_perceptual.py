import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from nextflow_jax.data.filters.perceptual import perceptual_hash
from tests.data.filters.conftest import draw_shapes, encode


def distance(one, other):
    return (one ^ other).bit_count()


def by_definition(pixels):
    """The hash of a 32 x 32 RGB picture: DCT-II coefficients as their double sum says, one after the other."""
    n = 32
    red, green, blue = (pixels[..., i].astype(int) for i in range(3))
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    coefficients = []
    for u, v in itertools.product(range(8), repeat=2):
        total = math.fsum(
            int(grey[y, x])
            * math.cos(math.pi * u * (2 * y + 1) / (2 * n))
            * math.cos(math.pi * v * (2 * x + 1) / (2 * n))
            for y, x in itertools.product(range(n), repeat=2)
        )
        scale = (1 / n if u == 0 else 2 / n) * (1 / n if v == 0 else 2 / n)
        coefficients.append(total * math.sqrt(scale))
    levels = [int(value / 8) for value in coefficients[1:]]
    median = sorted(levels)[31]
    bits = "0" + "".join("1" if level > median else "0" for level in levels)
    return int(bits, 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_hash_is_that_of_the_definition(seed):
    pixels = np.asarray(draw_shapes(seed).resize((32, 32)))
    bits, colour = perceptual_hash(Image.fromarray(pixels))
    assert bits == by_definition(pixels)
    np.testing.assert_allclose(colour, pixels.reshape(-1, 3).mean(0), atol=0.5)


def saved(picture, format, **settings):
    return Image.open(io.BytesIO(encode(picture, format, **settings))).convert("RGB")


COPIES = {
    "half size": lambda picture: picture.resize((128, 128), Image.Resampling.LANCZOS),
    "odd size": lambda picture: picture.resize((187, 187), Image.Resampling.BICUBIC),
    "twice the size": lambda picture: picture.resize((512, 512), Image.Resampling.BICUBIC),
    "JPEG": lambda picture: saved(picture, "JPEG", quality=75),
    "poor JPEG": lambda picture: saved(picture, "JPEG", quality=30),
    "WebP": lambda picture: saved(picture, "WEBP", quality=60),
    "palette": lambda picture: saved(picture.quantize(64), "PNG"),
    "small JPEG": lambda picture: saved(picture.resize((96, 96)), "JPEG", quality=60),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near_their_originals(copy, drawings):
    distances = []
    for picture in drawings:
        (bits, colour), (other, other_colour) = perceptual_hash(picture), perceptual_hash(COPIES[copy](picture))
        distances.append(distance(bits, other))
        assert max(abs(a - b) for a, b in zip(colour, other_colour)) <= 3
    assert np.mean(np.asarray(distances) <= 4) >= 0.95 and max(distances) <= 8


def test_different_pictures_are_far_apart(drawings):
    hashes = [perceptual_hash(picture)[0] for picture in drawings]
    distances = np.asarray([distance(one, other) for one, other in itertools.combinations(hashes, 2)])
    assert distances.min() > 4 and np.median(distances) > 24


def test_a_mirrored_picture_is_another(drawings):
    assert all(
        distance(perceptual_hash(picture)[0], perceptual_hash(ImageOps.mirror(picture))[0]) > 4 for picture in drawings
    )


def test_flat_pictures_differ_in_colour_alone():
    """The noise that a JPEG adds to a flat picture is below the dead zone."""
    flat = [Image.new("RGB", (100, 80), colour) for colour in ("white", "black", "#ff0000")]
    noisy = np.full((80, 100, 3), 128) + np.random.default_rng(0).integers(-2, 3, (80, 100, 1))
    flat.append(Image.fromarray(noisy.astype(np.uint8)))
    hashes = [perceptual_hash(picture) for picture in flat]
    assert {bits for bits, _ in hashes} == {0}
    assert [colour for _, colour in hashes[:3]] == [(255, 255, 255), (0, 0, 0), (255, 0, 0)]


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (16, 500), (500, 16)])
def test_pictures_of_any_size_and_ratio_have_a_hash(size):
    bits, _ = perceptual_hash(draw_shapes(0).resize(size))
    assert 0 <= bits < 2**63, "the highest bit is that of the mean, which is not compared"
