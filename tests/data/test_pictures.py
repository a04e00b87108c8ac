"""Sets of pictures: order, splits, twins and fingerprints, with a source made up here."""

import dataclasses
import sys

import numpy as np
import pytest

from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet, open_pictures
from nextflow_jax.errors import UserError


def info(key, split="train", pixels=None, **changes):
    plain = PictureInfo(key, split, {"en": f"the {key}"}, "group", "subgroup", key, key, {}, pixels or key)
    return dataclasses.replace(plain, **changes)


def make_set(infos):
    reads = []

    def read(position):
        reads.append(position)
        return np.full((2, 3, 3), position, np.uint8)

    return PictureSet(PicturesConfig(size=(2, 3)), infos, read, {}), reads


def test_pictures_come_in_order_and_pixels_only_when_asked_for():
    pictures, reads = make_set([info("b"), info("a", "validation"), info("c", "heldout")])
    assert pictures.keys() == ["b", "a", "c"]
    assert [pictures.split(name) for name in ("train", "validation", "heldout")] == [["b"], ["a"], ["c"]]
    assert pictures.info("a").captions == {"en": "the a"}
    assert [entry.key for entry in pictures.infos()] == pictures.keys()
    assert "a" in pictures and "z" not in pictures and len(pictures) == 3
    assert not reads
    assert [picture.image[0, 0, 0] for picture in pictures] == [0, 1, 2]
    assert pictures["c"].split == "heldout"
    np.testing.assert_array_equal(pictures.images(["c", "b", "c"])[:, 1, 2, 0], [2, 0, 2])
    assert pictures.images([]).shape == (0, 2, 3, 3)


def test_twins_are_all_others_with_the_same_pixels():
    pictures, _ = make_set([info("a", pixels="x"), info("b"), info("c", pixels="x"), info("d", "heldout", pixels="x")])
    assert pictures.twins == {"a": ("c", "d"), "c": ("a", "d"), "d": ("a", "c")}


@pytest.mark.parametrize(
    "changes", [{"pixels": "new"}, {"split": "heldout"}, {"captions": {"en": "new"}}, {"attributes": {"hair": "red"}}]
)
def test_the_fingerprint_covers_every_fact(changes):
    before, _ = make_set([info("a"), info("b")])
    same, _ = make_set([info("a"), info("b")])
    after, _ = make_set([info("a"), dataclasses.replace(info("b"), **changes)])
    assert before.fingerprint == same.fingerprint != after.fingerprint


def test_unknown_keys_and_splits_are_named():
    pictures, _ = make_set([info("a")])
    with pytest.raises(KeyError, match="no picture 'z' among the 1"):
        pictures["z"]
    with pytest.raises(UserError, match="split 'test' is not known"):
        pictures.split("test")


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nextflow_jax.data.openmoji.builder", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'nextflow_jax\[openmoji\]'"):
        open_pictures(PicturesConfig(root=str(tmp_path)))
