"""Drawing: fitted, centred, on the background; the same picture at every size."""

import numpy as np
import pytest

from nextflow_jax.data.openmoji.names import list_emoji
from nextflow_jax.data.openmoji.rasterise import decode_png, encode_png, rasterise


@pytest.fixture(scope="module")
def face():
    return next(entry.svg for entry in list_emoji() if entry.characters == "😀")


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (24, 25)])
def test_pictures_that_are_not_square_are_fitted_and_centred(face, size):
    height, width = size
    image = rasterise(face, size, "#204060")
    square = rasterise(face, (24, 24), "#204060")
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    top, left = (height - 24) // 2, (width - 24) // 2
    np.testing.assert_array_equal(image[top : top + 24, left : left + 24], square)
    outside = np.ones(size, bool)
    outside[top : top + 24, left : left + 24] = False
    assert (image[outside] == (0x20, 0x40, 0x60)).all()


def test_background_shows_where_nothing_is_drawn(face):
    black, white = (rasterise(face, (32, 32), colour) for colour in ("#000000", "#ffffff"))
    assert (black[0, 0] == 0).all() and (white[0, 0] == 255).all()
    np.testing.assert_array_equal(black[12, 16], white[12, 16])
    assert (black[12, 16] != 0).any()


def test_sizes_show_the_same_picture(face):
    small, large = rasterise(face, (32, 32), "#ffffff"), rasterise(face, (128, 128), "#ffffff")
    averaged = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    same, upside_down = np.abs(averaged - small).mean(), np.abs(averaged[::-1] - small).mean()
    assert same < 6
    assert same < 0.3 * upside_down


def test_png_loses_nothing():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)
