import dataclasses

import pytest

from nextflow_jax.data.corpus.raw import RawDocument, RawText
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.inspect.corpus_check import check_corpus
from nextflow_jax.errors import UserError
from tests.data.inspect.conftest import NASTY, captioned, damage, png, reads_nothing, write_corpus
from tests.data.inspect.test_shard_check import number, table


def test_a_whole_corpus_is_whole_and_counted(corpus_directory):
    findings = check_corpus(corpus_directory)
    assert findings.broken == () and findings.checked == findings.records == 9
    train, validation = table(findings, "Documents")
    assert (train["split"], train["documents"], train["pictures"], train["licence"]) == ("train", "6", "6", "CC0")
    assert number(train["characters"]) == 6 * len(f"{NASTY} 0")
    total = sum(len(png(i, (20, 30))) for i in range(9))
    assert number(train["picture bytes"]) + number(validation["picture bytes"]) == total
    shorter, longer = table(findings, "Pictures")
    assert (shorter["least"], shorter["pictures"], longer["most"]) == ("20", "9", "30")
    labels = [each for each in findings.tables if each.title.startswith("Labels")]
    assert labels[0].rows == (("kind 0", "5"), ("kind 1", "4"))


def test_drops_are_shown_with_their_meaning(corpus_directory):
    (row,) = table(check_corpus(corpus_directory), "Dropped documents")
    assert (row["reason"], row["meaning"], row["documents"]) == (
        "not utf-8",
        "its document has text that is not UTF-8",
        "2",
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GIF", "not an image"),
        (png(0, (20, 30))[:300], "damaged"),
        (png(0, (30, 20)), "is a picture of"),
    ],
)
def test_a_picture_that_cannot_be_decoded_is_named(data, reason, tmp_path):
    documents = [captioned(number) for number in range(5)] + [captioned(5, data=data, size=(20, 30))]
    findings = check_corpus(write_corpus(tmp_path / "corpus", documents))
    (broken,) = findings.broken
    assert broken.key == documents[5].key and reason in broken.reason
    assert findings.checked == 6


def test_a_document_that_extraction_would_refuse_is_named(tmp_path):
    silent = RawDocument("web/silent", "text", (RawText("words", "prompt"),), "web")
    (broken,) = check_corpus(write_corpus(tmp_path / "corpus", [captioned(0), silent])).broken
    assert broken.key == "web/silent" and "nothing to learn" in broken.reason


def test_a_damaged_record_and_its_part_are_named(corpus_directory):
    path = next(corpus_directory.glob("part-00001*"))
    damage(path, lambda: reads_nothing(open_corpus(corpus_directory).source("validation"), 2))
    of_part, of_record = check_corpus(corpus_directory).broken
    assert of_part.key == path.name and "SHA-256" in of_part.reason
    assert (of_record.key, of_record.where) == ("document 2", "validation, document 2")


def test_some_documents_are_evenly_spread(corpus_directory):
    findings = check_corpus(corpus_directory, max_records=3)
    assert 3 <= findings.checked <= 4 and findings.records == 9


def test_a_corpus_without_pictures_is_counted(tmp_path):
    documents = [
        dataclasses.replace(captioned(0), key=f"t{i}", task="text", segments=(RawText("a b", "response"),))
        for i in range(3)
    ]
    findings = check_corpus(write_corpus(tmp_path / "corpus", documents, parts=1))
    assert not findings.broken and table(findings, "Pictures") == []
    assert table(findings, "Characters of a document") == [{"characters": "2-3", "text": "3"}]


def test_a_missing_part_is_refused(corpus_directory):
    next(corpus_directory.glob("part-*")).unlink()
    with pytest.raises(UserError, match="is missing"):
        check_corpus(corpus_directory)
