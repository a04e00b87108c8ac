"""Sizes: in pixels, by ratio, from a picture, from the text."""

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.sampling.resolutions import nearest_size, parse_resolution, resolve, written_size
from nextflow_jax.scales import ScheduleFamily, level_family
from tests import tiny_models

TINY = tiny_models.FAMILY
SQUARE, WIDE = TINY.sizes
LARGE = level_family(1024)


def test_pixels_are_height_times_width():
    assert parse_resolution("32x48") == (32, 48)
    for text in ("32", "32x", "axb", "32x48x2", "-1x3", "large", "0:3", "3:", "3:2:1", ""):
        with pytest.raises(UserError, match="HEIGHTxWIDTH"):
            parse_resolution(text)
    for text in ("16:9", "1.5:1", "portrait", "auto", "condition"):
        assert parse_resolution(text) == text


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (None, SQUARE),
        ((8, 16), WIDE),
        ("8x16", WIDE),
        ("square", SQUARE),
        ("2:1", WIDE),
        ("panorama", WIDE),
        ("tall", SQUARE),
        ("4:3", SQUARE),
        ("16:9", WIDE),
    ],
)
def test_a_size_is_known_or_nearest_by_ratio(wanted, size):
    resolution = resolve(wanted, TINY, [])
    assert resolution.size == size and resolution.possible(TINY) == (size,)
    assert resolution.after(["<size 8x16>"], TINY) == size, "marks count only where they are asked for"


def test_the_published_sizes_have_every_named_ratio_within_three_percent():
    for name, (width, height) in {"16:9": (16, 9), "9:16": (9, 16), "portrait": (2, 3), "4:1": (4, 1)}.items():
        rows, columns = resolve(name, LARGE, []).size
        assert abs(columns / rows / (width / height) - 1) < 0.03, name
    assert resolve("square", LARGE, []).size == (1024, 1024)


def test_of_equal_ratios_the_largest_is_taken_whatever_the_order():
    for sizes in [((8, 8), (16, 16), (8, 16)), ((16, 16), (8, 16), (8, 8))]:
        assert nearest_size(1, 1, ScheduleFamily((1, 2), 8, sizes)) == (16, 16)


def test_a_condition_gives_its_size():
    assert resolve("condition", TINY, [SQUARE, WIDE]).size == WIDE
    with pytest.raises(UserError, match="the prompt has no picture"):
        resolve("condition", TINY, [])


def test_unknown_pixels_are_refused_by_the_known_ones():
    with pytest.raises(UserError, match="picture size 16x8 is not supported; this model knows 12x12, 8x16"):
        resolve("16x8", TINY, [])


def test_the_last_readable_mark_decides():
    assert written_size(["a red sun"], TINY) is None
    assert written_size(["<size 8x16>", "or <size square> ..."], TINY) == SQUARE
    assert written_size(["<size square> <size 2:1>", "<size any>"], TINY) == WIDE
    assert written_size(["<size 100x190>"], TINY) == WIDE, "unknown pixels: the nearest ratio"
    for words in ("<size >", "<size 0x3>", "size 8x16", "<size 8 x 16>"):
        assert written_size([words], TINY) is None


def test_the_text_decides_and_else_the_last_picture():
    resolution = resolve("auto", TINY, [WIDE])
    assert resolution.possible(TINY) == TINY.sizes
    assert resolution.after(["sun"], TINY) == WIDE and resolution.after(["<size 1:1>"], TINY) == SQUARE
    assert resolve("auto", TINY, []).after([], TINY) == SQUARE
