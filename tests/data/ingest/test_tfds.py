"""Data sets that TFDS built, without tensorflow."""

import io
import shutil
import subprocess
import sys

import pytest

from nextflow_jax.data.corpus.raw import Drop, RawImage
from nextflow_jax.data.ingest import tfds
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.errors import UserError
from tests.data.ingest.conftest import encode_picture, picture_bomb

tensorflow_datasets = pytest.importorskip("tensorflow_datasets")

PICTURES = [encode_picture(seed, (20, 24 + seed)) for seed in range(8)]
HOSTILE = {5: picture_bomb(), 6: b"words"}
TEXTS = {4: "", 8: b"caf\xe9"}


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Eight pictures, of which two are none, and one more with a caption that is no UTF-8."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "mask": features.Image(shape=(None, None, 1)),
                    "text": features.Text(),
                    "captions": {"en": features.Text(), "all": features.Sequence(features.Text())},
                    "objects": features.Sequence({"name": features.Text()}),
                    "label": features.ClassLabel(names=["cat", "dog"]),
                    "terms": features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples((*range(7), 8)), "test": self._generate_examples(range(7, 8))}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield (
                number,
                {
                    "image": io.BytesIO(HOSTILE.get(number, PICTURES[number % 8])),
                    "mask": io.BytesIO(b"no picture that anybody reads"),
                    "text": TEXTS.get(number, f"picture {number}"),
                    "captions": {"en": f"english {number}", "all": [f"first {number}", "second"]},
                    "objects": [{"name": "tail"}] * (number % 2),
                    "label": number % 2,
                    "terms": "CC0",
                },
            )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a version. Not to be changed."""
    root = tmp_path_factory.mktemp("tfds")
    tensorflow_datasets.disable_progress_bar()
    Tiny(data_dir=root, file_format="array_record").download_and_prepare()
    return root / "tiny" / "1.0.0"


@pytest.fixture
def copy(built, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(built, tmp_path / "copy")


def read(path, **settings):
    config = SourceConfig(name="tiny", format="tfds", paths=(str(path),), **settings)
    return [one for unit in tfds.units(config) for one in tfds.read(unit, config)]


def shape(document):
    names = {data: number for number, data in enumerate(PICTURES)}
    return [names[one.data] if isinstance(one, RawImage) else one.text for one in document.segments]


def outcomes(found):
    return [one.reason if isinstance(one, Drop) else shape(one) for one in found]


WHOLE = [*([f"picture {n}", n] for n in range(4)), "bad record", "too large", "not an image", "not utf-8"]


def test_a_folder_gives_all_splits_with_pictures_as_they_are_stored(built):
    found = read(built)
    assert outcomes(found) == [["picture 7", 7], *WHOLE]
    assert [one.label for one in found[:3]] == ["dog", "cat", "dog"]
    assert found[0].key == "tiny/1.0.0/tiny-test.array_record-00000-of-00001/0"
    assert [one.key.rpartition("/")[2] for one in found[1:]] == [str(number) for number in range(8)]
    assert found == read(built)


def test_a_pattern_gives_one_split(built):
    assert outcomes(read(f"{built}/*-train.array_record*")) == WHOLE
    assert len(read(f"{built.parent}/*")) == 9


@pytest.mark.parametrize("unit_bytes", [1, 300, 1000])
def test_every_record_is_read_once_however_the_files_are_divided(built, unit_bytes):
    config = SourceConfig(name="tiny", format="tfds", paths=(str(built),), unit_bytes=unit_bytes)
    assert len(tfds.units(config)) > 2
    assert read(built, unit_bytes=unit_bytes) == read(built)


@pytest.mark.parametrize(
    "column, text",
    [("captions/en", "english 1"), ("captions/all", "first 1"), ("objects/name", "tail"), ("label", "dog")],
)
def test_features_inside_others_and_class_names(built, column, text):
    found = read(f"{built}/*-train*", columns=(("text", column), ("licence", "terms")))
    assert (shape(found[1]), found[1].licence) == ([text, 1], "CC0")


def test_a_feature_that_may_be_empty(built):
    found = read(f"{built}/*-train*", columns=(("text", "objects/name"),))
    assert outcomes(found)[:3] == ["bad record", ["tail", 1], "bad record"]


def test_text_alone(built):
    found = read(f"{built}/*-train*", task="text")
    assert outcomes(found)[:2] == [["picture 0"], ["picture 1"]]
    assert outcomes(found)[4:] == ["nothing to learn", ["picture 5"], ["picture 6"], "not utf-8"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"columns": (("text", "caption"),)}, "no feature 'caption'; it has captions, image, label, mask"),
        ({"columns": (("text", "captions/de"),)}, "no feature 'captions/de'"),
        ({"columns": (("image", "text"),)}, "feature 'text' is no picture"),
        ({"columns": (("image", "none"),)}, "no feature 'none'"),
    ],
)
def test_features_that_are_not_there_are_an_error(built, settings, message):
    with pytest.raises(UserError, match=message):
        read(built, **settings)


def test_folders_that_are_no_data_set_are_errors(copy, tmp_path):
    for path, message in (
        ("gs://bucket/tiny/1.0.0", "local folders only"),
        (f"{tmp_path}/none", "names no file"),
        (str(tmp_path), "no data set of TFDS as ArrayRecord files"),
    ):
        with pytest.raises(UserError, match=message):
            read(path)
    (copy / "tiny-train.array_record-00000-of-00001").rename(copy / "tiny-train.array_record-00000-of-00002")
    with pytest.raises(UserError, match=r"of the 2 files of tiny-train.array_record there are 1"):
        read(copy)
    (copy / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"no readable features\.json"):
        read(f"{copy}/*-train*")


@pytest.mark.parametrize("damage", ["empty", "cut", "words"])
def test_files_that_are_no_array_record_are_errors_of_one_line(copy, damage):
    path = copy / "tiny-train.array_record-00000-of-00001"
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "words": b"words" * 1000}[damage])
    with pytest.raises(UserError, match="is no whole ArrayRecord file") as error:
        read(copy)
    assert "\n" not in str(error.value)


def test_damaged_records_are_counted(copy):
    path = copy / "tiny-train.array_record-00000-of-00001"
    data = bytearray(path.read_bytes())
    at = data.find(b"\x89PNG")
    at = at if at > 0 else 40_000 % len(data)
    data[at : at + 40] = bytes(40)
    path.write_bytes(bytes(data))
    found = read(f"{copy}/*-train*")
    assert len(found) == 8
    assert any(isinstance(one, Drop) and one.reason in ("unreadable source", "not an image") for one in found[:4])


def test_tensorflow_is_not_imported(built):
    program = (
        "import sys\n"
        "from nextflow_jax.data.ingest import tfds\n"
        "from nextflow_jax.data.ingest.config import SourceConfig\n"
        f"config = SourceConfig(name='tiny', format='tfds', paths=({str(built)!r},))\n"
        "assert len([1 for unit in tfds.units(config) for _ in tfds.read(unit, config)]) == 9\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
