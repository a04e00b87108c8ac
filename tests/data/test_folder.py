"""A folder of the user's pictures: keys, captions, splits, and hostile files counted, never dropped in silence."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.data.captioned import make_documents
from nextflow_jax.data.image_files import ImageLimits
from nextflow_jax.data.pictures import BrokenPicture, FolderConfig, PicturesConfig, open_pictures
from nextflow_jax.errors import UserError
from tests.data.test_image_files import HOSTILE

TOLERANT = FolderConfig(validation_share=0.25, max_failed_share=0.5, limits=ImageLimits(400 * 400, 4))


def write(root, name, size=(40, 24), seed=0):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def config_of(root, folder=TOLERANT, **changes):
    return PicturesConfig(name="folder", root=str(root), size=(12, 20), folder=folder, **changes)


@pytest.fixture
def root(tmp_path):
    for index in range(20):
        write(tmp_path, f"set_{index % 2}/my-red_cat {index}.png", seed=index)
    return tmp_path


def test_keys_captions_and_sizes(root):
    (root / "set_0" / "my-red_cat 4.txt").write_bytes(b"A cat\non a  \xff mat.")
    (root / "notes.md").write_text("not a picture")
    (root / ".hidden.png").write_bytes(b"")
    write(root, "wide.jpg", (80, 10))
    pictures = open_pictures(config_of(root))
    assert len(pictures) == 21 and pictures.keys() == sorted(pictures.keys())
    info = pictures.info("set_1/my-red_cat 7.png")
    assert info.captions == {"en": "my red cat 7"} and info.group == "set_1"
    assert pictures.info("set_0/my-red_cat 4.png").captions["en"] == "A cat on a \ufffd mat."
    assert pictures.native_size("wide.jpg") == (10, 80) and pictures.native_size(info.key) == (24, 40)
    assert pictures.images(["wide.jpg", info.key]).shape == (2, 12, 20, 3)
    assert pictures.images(["wide.jpg"], (4, 32)).shape == (1, 4, 32, 3)
    assert pictures.metadata["other_files"] == 2 and pictures.metadata["refused"] == {}
    assert len(make_documents(pictures, "train", ["text_to_image"], 0)) == len(pictures.split("train"))


def test_splits_stay_when_files_are_added_and_twins_are_found(root):
    before = open_pictures(config_of(root))
    assert 0 < len(before.split("validation")) < 12
    (root / "other").mkdir()
    (root / "other" / "copy.png").write_bytes((root / "set_0" / "my-red_cat 0.png").read_bytes())
    after = open_pictures(config_of(root))
    assert set(before.split("validation")) <= set(after.split("validation"))
    assert after.twins["other/copy.png"] == ("set_0/my-red_cat 0.png",)
    assert before.fingerprint != after.fingerprint == open_pictures(config_of(root)).fingerprint


def test_refused_files_are_counted_and_named(root, capsys):
    for name, data in HOSTILE.items():
        (root / f"{name}.png").write_bytes(data)
    pictures = open_pictures(config_of(root))
    said = capsys.readouterr().err
    headers = {"damaged": 1, "empty": 1, "not an image": 2, "too large": 2, "too small": 2}
    assert pictures.metadata["refused"] == headers
    assert (
        "32 image files, 8 refused (damaged 1, empty 1, not an image 2, too large 2, too small 2), 0 other files"
        in said
    )
    with pytest.raises(BrokenPicture, match="truncated png.png: damaged.*; remove or repair the file"):
        pictures.images(["truncated png.png"])
    good = pictures.without_broken()
    assert len(good) == 20 and good.images(good.keys(), (6, 10)).shape == (20, 6, 10, 3)
    key = good.keys()[5]
    np.testing.assert_array_equal(good.images([key]), pictures.images([key]))
    assert pictures.metadata["refused"] == headers | {"damaged": 4, "no pixel range": 1}
    assert "picture refused" in capsys.readouterr().err


def test_too_many_refused_files_stop_the_run(root):
    strict = dataclasses.replace(TOLERANT, max_failed_share=0.05)
    (root / "a.png").write_bytes(HOSTILE["truncated jpeg"])
    pictures = open_pictures(config_of(root, strict))
    (root / "b.png").write_bytes(HOSTILE["empty"])
    pictures = open_pictures(config_of(root, strict))
    with pytest.raises(UserError, match=r"22 image files, 2 refused .* more than .*max_failed_share = 0.05; e.g."):
        pictures.images(["a.png"])
    (root / "c.png").write_bytes(HOSTILE["text"])
    with pytest.raises(UserError, match="23 image files, 2 refused"):
        open_pictures(config_of(root, strict))


def test_folders_that_cannot_be_used(tmp_path, root):
    with pytest.raises(UserError, match="no such folder"):
        open_pictures(config_of(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no picture that can be used \(0 image files"):
        open_pictures(config_of(tmp_path / "empty"))
    with pytest.raises(UserError, match="max_files = 3"):
        open_pictures(config_of(root, dataclasses.replace(TOLERANT, max_files=3)))


def test_shares_are_shares():
    faults = FolderConfig(validation_share=1.5, max_failed_share=-0.1, max_files=0).faults()
    assert [fault.field for fault in faults] == ["validation_share", "max_failed_share", "max_files"]
