"""Crops of bundled photographs: splits by whole photographs, ratios, captions, determinism."""

import numpy as np
import pytest

from nextflow_jax.data import photographs
from nextflow_jax.data.pictures import PicturesConfig, open_pictures
from nextflow_jax.errors import UserError


@pytest.fixture(scope="module")
def tiny():
    return open_tiny()


def open_tiny(**changes):
    return open_pictures(PicturesConfig(**{"name": "photographs", "size": (32, 32), "subset": "tiny", **changes}))


def test_no_photograph_is_in_two_splits_and_all_ten_are_there(tiny):
    split_of = {info.family: info.split for info in tiny.infos()}
    assert all(split_of[info.family] == info.split for info in tiny.infos())
    assert len(split_of) == 10 and sorted(split_of.values()).count("validation") == 3
    assert tiny.split("heldout") == []


def test_opening_again_gives_the_same(tiny):
    again = open_tiny()
    assert again.fingerprint == tiny.fingerprint
    np.testing.assert_array_equal(again.images(again.keys()), tiny.images(tiny.keys()))
    assert open_tiny(size=(32, 48)).fingerprint != tiny.fingerprint


def test_crops_are_colourful_and_differ(tiny):
    images = tiny.images(tiny.keys())
    assert images.shape == (len(tiny), 32, 32, 3) and images.dtype == np.uint8
    assert images.reshape(len(tiny), -1).std(axis=1).min() > 3
    assert len({info.pixels for info in tiny.infos()}) == len(tiny)


def test_captions_name_the_photograph_and_the_place(tiny):
    assert tiny.info("astronaut/1/0/0").captions["en"] == "an astronaut in an orange suit in front of a flag"
    corner = tiny.info("astronaut/2/1/0").captions["en"]
    assert corner == "the bottom left of an astronaut in an orange suit in front of a flag"


@pytest.mark.parametrize(("size", "steps"), [((64, 64), 1), ((64, 64), 2), ((48, 96), 2), ((100, 30), 1)])
def test_windows_stay_inside_with_the_ratio_and_are_never_enlarged(size, steps):
    found = list(photographs.windows((300, 451), size, photographs.Cutting((1, 2, 3, 4, 6), steps)))
    assert len({window.box for window in found}) == len(found) > 0
    for window in found:
        left, top, right, bottom = window.box
        assert min(left, top) >= 0 and right <= 451 and bottom <= 300
        assert bottom - top >= size[0] and right - left >= size[1]
        assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0], rel=0.04)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": "al"}, "did you mean all"),
        ({"languages": ("en", "de")}, "captions are"),
        ({"size": (320, 320)}, "larger than the photograph chelsea.png, 300x451"),
    ],
)
def test_what_there_is_not_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        open_tiny(**changes)


def test_a_package_without_the_photograph(monkeypatch, tmp_path):
    monkeypatch.setitem(photographs.FOLDERS, "scikit-learn", tmp_path)
    with pytest.raises(UserError, match="china.jpg is missing: scikit-learn"):
        open_tiny()
