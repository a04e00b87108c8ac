"""Parquet files of every form that is documented, and broken ones."""

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage
from nextflow_jax.data.ingest import parquet
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.errors import UserError
from tests.data.ingest.conftest import encode_picture, picture_bomb

PICTURES = [encode_picture(seed, (20, 24 + seed)) for seed in range(8)]


def write(path, columns, group=100, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group, **options)


def read(path, **settings):
    config = SourceConfig(name="web", format="parquet", paths=(str(path),), **settings)
    return [one for unit in parquet.units(config) for one in parquet.read(unit, config)]


def shape(document):
    names = {data: number for number, data in enumerate(PICTURES)}
    return [names[one.data] if isinstance(one, RawImage) else one.text for one in document.segments]


def outcomes(found):
    return [one.reason if isinstance(one, Drop) else shape(one) for one in found]


def as_structs(pictures):
    return [{"bytes": data, "path": "1.png"} for data in pictures]


@pytest.mark.parametrize("pictures", [PICTURES[:2], as_structs(PICTURES[:2])], ids=["bytes", "structs"])
def test_pictures_in_the_file(tmp_path, pictures):
    columns = {"image": pictures, "text": ["one", "two"], "label": [3, 4], "id": ["x", None], "clip": [0.5, 0.1]}
    write(tmp_path / "a.parquet", columns)
    first, second = read(tmp_path / "a.parquet", licence="CC0")
    assert (first.key, second.key) == ("web/x", "web/a.parquet/1")
    assert (shape(first), first.label, first.licence, first.task) == (["one", 0], "3", "CC0", "text_to_image")
    assert shape(second) == ["two", 1]


@pytest.mark.parametrize("struct", [False, True])
def test_pictures_by_path_or_url(tmp_path, struct):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(PICTURES[1])
    fsspec.filesystem("memory").pipe("/bucket/2.png", PICTURES[2])
    names = ["1.png", "memory://bucket/2.png", "3.png", "../a.parquet", "https2://host/1.png"]
    images = [{"bytes": None, "path": name} for name in names] if struct else names
    write(tmp_path / "a.parquet", {"image": images, "text": ["t"] * len(names)})
    found = read(tmp_path / "a.parquet", image_root=str(tmp_path / "pictures"), url_schemes=("memory",))
    assert outcomes(found) == [["t", 1], ["t", 2], "missing file", "unsafe path", "unsafe path"]


def test_the_form_of_img2dataset(tmp_path):
    jpg = pyarrow.array([PICTURES[0], None, PICTURES[2]], pyarrow.binary())
    columns = {"key": ["000", "001", "002"], "caption": ["a", "b", "c"], "jpg": jpg, "status": ["s", "f", "s"]}
    write(tmp_path / "a.parquet", columns)
    found = read(tmp_path / "a.parquet", columns=(("id", "key"), ("text", "caption"), ("image", "jpg")))
    assert outcomes(found) == [["a", 0], "missing file", ["c", 2]]
    assert [one.key for one in found] == ["web/000", "web/001", "web/002"]


def test_the_form_of_laion(tmp_path):
    fsspec.filesystem("memory").pipe("/bucket/2.png", PICTURES[2])
    columns = {"URL": ["memory://bucket/2.png", "http://host/a"], "TEXT": ["a", "b"], "LICENSE": ["?", None]}
    write(tmp_path / "a.parquet", columns)
    renamed = (("text", "TEXT"), ("image", "URL"), ("licence", "LICENSE"))
    found = read(tmp_path / "a.parquet", columns=renamed, url_schemes=("memory",))
    assert outcomes(found) == [["a", 2], "unsafe path"]
    assert found[0].licence == "?"


@pytest.mark.parametrize("kind", [pyarrow.binary(), None], ids=["bytes", "structs"])
def test_the_form_of_omnicorpus(tmp_path, kind):
    texts = [["a", None, "b"], ["c"], [None, "d"], ["e", "f"], None]
    images = [[None, PICTURES[1], None], [None], [PICTURES[2], None], [None, PICTURES[0]], None]
    if kind is None:
        images = [some and [one and {"bytes": one, "path": None} for one in some] for some in images]
    images = pyarrow.array(images, kind and pyarrow.list_(kind))
    write(tmp_path / "a.parquet", {"texts": texts, "images": images})
    found = read(tmp_path / "a.parquet")
    assert outcomes(found) == [["a", 1, "b"], ["c"], [2, "d"], "bad record", "missing file"]
    assert [one.task for one in found[:3]] == ["interleaved", "text", "interleaved"]


def test_conversations_and_the_full_form(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    write(tmp_path / "a.parquet", {"image": as_structs(PICTURES[:1]), "conversations": [turns]})
    (found,) = read(tmp_path / "a.parquet")
    assert (found.task, shape(found)) == ("image_to_text", [0, "What?", "A cat."])
    segments = [
        {"text": "a", "image": None, "role": "prompt", "loss": False},
        {"text": None, "image": PICTURES[3], "role": "response", "loss": None},
    ]
    write(tmp_path / "a.parquet", {"task": ["text_to_image"], "segments": [segments]})
    (found,) = read(tmp_path / "a.parquet")
    assert (found.task, shape(found)) == ("text_to_image", ["a", 3])
    assert [one.loss for one in found.segments] == [False, True]


def test_text_alone_does_not_read_pictures(tmp_path):
    write(tmp_path / "a.parquet", {"text": ["a", "b"], "image": [b"", b"none"]})
    assert outcomes(read(tmp_path / "a.parquet", task="text")) == [["a"], ["b"]]
    write(tmp_path / "a.parquet", {"text": ["a"]})
    assert outcomes(read(tmp_path / "a.parquet", task="text")) == [["a"]]


def test_several_pictures_with_one_text(tmp_path):
    write(tmp_path / "a.parquet", {"text": ["a", "b"], "images": [PICTURES[:2], []]})
    assert outcomes(read(tmp_path / "a.parquet", task="edit")) == [[0, "a", 1], "missing file"]


def test_broken_rows_cost_only_themselves(tmp_path):
    strings = pyarrow.array([b"a", b"\xff\xfe", b"c\0", b" ", b"e", b"f", b"g", b"h"], pyarrow.binary())
    bad = pyarrow.Array.from_buffers(pyarrow.string(), len(strings), strings.buffers())
    images = [PICTURES[0], PICTURES[1], PICTURES[2], PICTURES[3], b"", b"words", picture_bomb(), b"x" * 60_000]
    write(tmp_path / "a.parquet", {"text": bad, "image": images})
    expected = [["a", 0], "not utf-8", "control characters", "bad record"]
    expected += ["empty", "not an image", "too large", "too many bytes"]
    found = read(tmp_path / "a.parquet", max_bytes=50_000)
    assert outcomes(found) == expected
    assert [one.key for one in found] == [f"web/a.parquet/{row}" for row in range(8)]


@pytest.mark.parametrize("column", ["text", "image"])
def test_values_of_another_type_are_dropped(tmp_path, column):
    columns = {"text": ["a"], "image": [PICTURES[0]], column: [3]}
    write(tmp_path / "a.parquet", columns)
    assert outcomes(read(tmp_path / "a.parquet")) == ["bad record"]


@pytest.mark.parametrize("unit_bytes", [1, 5000, 40_000, 10**9])
@pytest.mark.parametrize("scheme", ["", "memory"])
def test_every_row_is_read_once_however_the_file_is_divided(tmp_path, unit_bytes, scheme):
    noise = [np.random.default_rng(row).bytes(300) for row in range(200)]
    columns = {"text": [f"row {row}" for row in range(200)], "noise": noise}
    write(tmp_path / "a.parquet", columns, group=15)
    path = f"{tmp_path}/a.parquet"
    if scheme:
        path = "memory://bucket/a.parquet"
        fsspec.filesystem("memory").pipe(path, (tmp_path / "a.parquet").read_bytes())
    config = SourceConfig(name="web", paths=(path,), task="text", unit_bytes=unit_bytes)
    units = parquet.units(config)
    assert len(units) == {1: 14, 5000: 14, 40_000: 2, 10**9: 1}[unit_bytes]
    found = [one for unit in units for one in parquet.read(unit, config)]
    assert found == [one for unit in parquet.units(config) for one in parquet.read(unit, config)]
    assert [shape(one) for one in found] == [[text] for text in columns["text"]]
    assert [one.key for one in found] == [f"web/a.parquet/{row}" for row in range(200)]


@pytest.mark.parametrize("unit_bytes", [1, 10**9])
@pytest.mark.parametrize("damage", ["empty", "words", "cut", "start"])
def test_what_is_no_parquet_file_is_an_error_that_names_it(tmp_path, damage, unit_bytes):
    path = tmp_path / "a.parquet"
    write(path, {"text": ["a"] * 10})
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "words": b"words" * 50, "cut": data[:-20], "start": data[len(data) // 2 :]}[damage])
    if damage == "start":
        assert all(isinstance(one, Drop) for one in _read_or_refuse(path, unit_bytes))
        return
    with pytest.raises(UserError, match=r"a\.parquet is no readable Parquet file") as error:
        read(path, task="text", unit_bytes=unit_bytes)
    assert "\n" not in str(error.value)


def _read_or_refuse(path, unit_bytes):
    try:
        return read(path, task="text", unit_bytes=unit_bytes)
    except UserError as error:
        assert "a.parquet" in str(error)
        return []


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_row_group_costs_its_rows_each_of_which_is_counted(tmp_path, checksums):
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    columns = {"text": [rng.bytes(50).hex() for _ in range(90)]}
    write(path, columns, group=30, compression="zstd", use_dictionary=False, write_page_checksum=checksums)
    data = bytearray(path.read_bytes())
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 60] = bytes(60)
    path.write_bytes(bytes(data))
    found = read(path, task="text")
    assert outcomes(found) == [
        *([text] for text in columns["text"][:30]),
        *["unreadable source"] * 30,
        *([text] for text in columns["text"][60:]),
    ]
    assert len({one.key for one in found}) == 90


@pytest.mark.parametrize(
    "columns, settings, message",
    [
        ({"URL": ["a"], "TEXT": ["b"]}, {}, r"no column 'image' for image, 'text' for text; it has 'URL', 'TEXT'"),
        ({"text": ["a"]}, {}, "no column 'image' for image"),
        ({"text": ["a"], "image": [b""]}, {"columns": (("label", "class"),)}, "no column 'class' for label"),
        ({"words": ["a"]}, {"task": "text"}, "no column 'text' for text"),
    ],
)
def test_missing_columns_are_an_error_that_lists_what_there_is(tmp_path, columns, settings, message):
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "a.parquet", **settings)
    assert "set `columns`" in str(error.value)


def test_memory_does_not_grow_with_the_row_group(tmp_path):
    """A page is read at once, and a writer looks whether to end one every so many rows."""
    rng = np.random.default_rng(0)
    header = encode_picture(0)
    images = [header + rng.bytes(200_000) for _ in range(200)]
    columns = {"text": ["a"] * 200, "image": images}
    write(tmp_path / "a.parquet", columns, group=200, use_dictionary=False, write_batch_size=4)
    del images, columns
    before = pyarrow.total_allocated_bytes()
    config = SourceConfig(name="web", paths=(f"{tmp_path}/a.parquet",))
    most = 0
    for unit in parquet.units(config):
        for document in parquet.read(unit, config):
            assert isinstance(document, RawDocument)
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert 0 < most < 35_000_000


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", {"text": ["a"]})

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(parquet.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'nextflow_jax\[parquet\]'"):
        read(tmp_path / "a.parquet", task="text")
