import json

import numpy as np
import pytest

from nextflow_jax.data.atomic_files import is_partial
from nextflow_jax.data.corpus import writer
from nextflow_jax.data.corpus.manifest import is_corpus, read_corpus_manifest
from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawText
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.filters.config import FiltersConfig
from nextflow_jax.data.filters.fingerprints import fingerprint
from nextflow_jax.data.filters.selection import select
from nextflow_jax.data.records import BrokenRecord
from nextflow_jax.errors import UserError
from tests.data.conftest import flip_byte


def make_document(number):
    text = RawText(f"text number {number} " * 3, "response")
    return RawDocument(f"source/{number}", "text", (text,), "source")


def make_corpus(directory, counts=(5, 0, 4)):
    """A corpus of parts with so many documents each, odd ones training, the rest validation; and a drop a part."""
    directory.mkdir(exist_ok=True)
    paths = [directory / writer.part_file(part, len(counts)) for part in range(len(counts))]
    first = 0
    for path, count in zip(paths, counts):
        documents = [make_document(number) for number in range(first, first + count)]
        pairs = [(document, fingerprint(document, FiltersConfig())) for document in documents]
        writer.write_part(path, "source", [*pairs, Drop("source/x", "not utf-8")])
        first += count
    selection = select(writer.load_columns(paths), FiltersConfig(), 0)
    numbers = np.arange(first)
    splits = {"train": numbers[numbers % 2 == 1], "validation": numbers[numbers % 2 == 0]}
    writer.finish_corpus(directory, paths, selection, splits, {"seed": 0})
    return directory


def test_documents_are_read_by_number_over_parts_and_empty_parts(tmp_path):
    corpus = open_corpus(make_corpus(tmp_path / "c"), verify="full")
    assert corpus.splits == ("train", "validation")
    train = corpus.source("train")
    assert [train[i] for i in range(len(train))] == [make_document(number) for number in (1, 3, 5, 7)]
    assert [one.key for one in map(corpus.source("validation").__getitem__, [4, 0])] == ["source/8", "source/0"]


def test_counts_are_in_the_manifest(tmp_path):
    manifest = read_corpus_manifest(make_corpus(tmp_path / "c"))
    assert manifest.read == {"source": 12}
    assert manifest.dropped == {"source": {"not utf-8": 3}}
    assert manifest.splits == {"train": 4, "validation": 5}


def test_a_finished_corpus_has_nothing_left_of_its_making(tmp_path):
    directory = make_corpus(tmp_path / "c")
    names = {path.name for path in directory.iterdir()}
    assert names == {*(writer.part_file(part, 3) for part in range(3)), "selection.npz", "corpus.json"}
    assert not any(is_partial(path) for path in directory.iterdir())


def test_the_fingerprint_is_that_of_the_documents(tmp_path):
    same = [open_corpus(make_corpus(tmp_path / name)).fingerprint for name in "ab"]
    assert same[0] == same[1] != open_corpus(make_corpus(tmp_path / "c", (5, 4))).fingerprint


def test_a_damaged_record_is_broken_alone(tmp_path):
    directory = make_corpus(tmp_path / "c", (1, 3))
    path = directory / writer.part_file(0, 2)
    flip_byte(path, path.read_bytes().find(b"source/0") + 2)
    source = open_corpus(directory).source("validation")
    with pytest.raises(BrokenRecord):
        source[0]
    assert source[1] == make_document(2)
    first, second = source.read([0, 1])
    assert isinstance(first, BrokenRecord) and second == source[1]


def test_several_documents_are_read_in_the_order_asked_for(tmp_path):
    source = open_corpus(make_corpus(tmp_path / "c")).source("train")
    numbers = [len(source) - 1, 0, 1]
    assert source.read(numbers) == [source[number] for number in numbers]
    assert source.read(range(0)) == []


DAMAGE = {
    "is missing": lambda part: part.unlink(),
    "has 0 bytes, the manifest says": lambda part: part.write_bytes(b""),
    "bytes, the manifest says": lambda part: part.write_bytes(part.read_bytes()[:-7]),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_missing_and_truncated_parts_are_found_when_it_is_opened(tmp_path, message):
    directory = make_corpus(tmp_path / "c")
    DAMAGE[message](directory / writer.part_file(2, 3))
    with pytest.raises(UserError, match=message):
        open_corpus(directory)


def test_flipped_bytes_are_found_by_checksums(tmp_path):
    directory = make_corpus(tmp_path / "c")
    flip_byte(directory / writer.part_file(0, 3), 100)
    open_corpus(directory)
    with pytest.raises(UserError, match="part-00000-of-00003.array_record is damaged"):
        open_corpus(directory, verify="full")


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: flip_byte(path, 50), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_selection_is_an_error(tmp_path, damage):
    directory = make_corpus(tmp_path / "c")
    damage(directory / "selection.npz")
    with pytest.raises(UserError, match="selection.npz is (missing|damaged)"):
        open_corpus(directory)


def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path):
    directory = make_corpus(tmp_path / "c")
    path = directory / "corpus.json"
    good = json.loads(path.read_text())
    for text in ("", "[]", "{", json.dumps({**good, "parts": [{}]}), json.dumps({**good, "more": 1})):
        path.write_text(text)
        with pytest.raises(UserError, match="corpus.json is not readable"):
            open_corpus(directory)
    path.write_text(json.dumps({**good, "schema_version": 9}))
    with pytest.raises(UserError, match="schema version 9, not 1"):
        open_corpus(directory)


def test_an_unfinished_corpus_is_an_error_that_says_what_to_do(tmp_path):
    assert not is_corpus(tmp_path)
    with pytest.raises(UserError, match="make it with python -m nextflow_jax.data.ingest"):
        open_corpus(tmp_path)


def test_an_unknown_split_is_an_error_that_names_those_there_are(tmp_path):
    with pytest.raises(UserError, match="did you mean train"):
        open_corpus(make_corpus(tmp_path / "c")).source("trian")
