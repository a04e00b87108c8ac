"""Documents put together from what records say."""

import pytest

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawText, RefusedDocument
from nextflow_jax.data.image_files import ImageLimits
from nextflow_jax.data.ingest.builder import build, captioned, decode_text, key_of, picture, read_named
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.errors import UserError
from tests.data.ingest.conftest import encode_picture, picture_bomb

CONFIG = SourceConfig(name="web", licence="CC0", max_bytes=50_000)
PICTURES = [encode_picture(seed, (20, 24 + seed)) for seed in range(3)]


def shape(document):
    return [(segment.role, getattr(segment, "text", None) or segment.size[1]) for segment in document.segments]


@pytest.mark.parametrize(
    "task, count, expected",
    [
        ("text_to_image", 1, [("prompt", "words"), ("response", 24)]),
        ("image_to_text", 2, [("prompt", 24), ("prompt", 25), ("response", "words")]),
        ("edit", 2, [("prompt", 24), ("prompt", "words"), ("response", 25)]),
        ("edit", 3, [("prompt", 24), ("prompt", 25), ("prompt", "words"), ("response", 26)]),
        ("frames", 2, [("response", "words"), ("response", 24), ("response", 25)]),
        ("interleaved", 1, [("response", "words"), ("response", 24)]),
        ("interleaved", 0, [("response", "words")]),
        ("text", 0, [("response", "words")]),
    ],
)
def test_each_task_has_its_order(task, count, expected):
    config = SourceConfig(name="web", licence="CC0", task=task)
    document = captioned("k", PICTURES[:count], "words", config, label="cat")
    assert shape(document) == expected
    assert (document.task, document.source, document.licence, document.label) == (task, "web", "CC0", "cat")
    other = captioned("k", PICTURES[:count], "words", config, licence="MIT", source="shop")
    assert (other.source, other.licence) == ("shop", "MIT")


@pytest.mark.parametrize(
    "task, count, text",
    [("text_to_image", 0, "words"), ("edit", 1, "words"), ("text", 1, "words"), ("image_to_text", 1, " \n")],
)
def test_what_a_task_needs_must_be_there(task, count, text):
    config = SourceConfig(task=task)
    assert build("k", lambda: captioned("k", PICTURES[:count], text, config)) == Drop("k", "bad record")


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"words", "not an image"),
        (picture_bomb(), "too large"),
        (encode_picture(0, (8, 40)), "too small"),
        (encode_picture(0)[:20], "not an image"),
        (bytes(50_001), "too many bytes"),
    ],
)
def test_pictures_that_cannot_be_used_have_a_reason(data, reason):
    assert len(picture_bomb()) < 1000
    found = build("k", lambda: captioned("k", [data], "words", CONFIG))
    assert found.reason == reason or (len(data) == 20 and found.reason == "damaged")


def test_the_sources_limits_hold():
    small = SourceConfig(limits=ImageLimits(max_pixels=400))
    assert build("k", lambda: captioned("k", PICTURES[:1], "words", small)) == Drop("k", "too large")
    assert picture(PICTURES[0], CONFIG, "prompt").size == (20, 24)


@pytest.mark.parametrize(
    "segments, task, reason",
    [
        ((RawText("a", "prompt"),), "text", "nothing to learn"),
        ((RawText("a", "response", loss=False),), "text", "nothing to learn"),
        ((), "text", "nothing to learn"),
        ((RawText("a", "response"),), "dance", "unknown task"),
        ((RawText("a\0", "response"),), "text", "control characters"),
        ((RawText("\ud800", "response"),), "text", "not utf-8"),
    ],
)
def test_documents_are_checked(segments, task, reason):
    assert build("k", lambda: RawDocument("k", task, segments)) == Drop("k", reason)


def test_text_is_utf8():
    assert decode_text("gr\u00fcn".encode("utf-8-sig")) == decode_text("gr\u00fcn") == "gr\u00fcn"
    with pytest.raises(RefusedDocument) as refused:
        decode_text("gr\u00fcn".encode("latin-1"))
    assert refused.value.reason == "not utf-8"


def test_keys_begin_with_the_source_and_are_utf8():
    assert key_of(CONFIG, "a/b.tar", 7) == "web/a/b.tar/7"
    with pytest.raises(UserError, match="is no UTF-8; rename the file"):
        key_of(CONFIG, b"\xff.tar".decode("utf-8", "surrogateescape"))


def test_records_name_pictures_below_their_file_or_the_image_root(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(PICTURES[1])
    unit = Unit(f"{tmp_path}/file.jsonl", 1)
    assert read_named("pictures/1.png", unit, CONFIG) == PICTURES[1]
    assert read_named("1.png", unit, SourceConfig(image_root=f"{tmp_path}/pictures")) == PICTURES[1]
    for name, reason in ((3, "bad record"), ("2.png", "missing file"), ("../2.png", "unsafe path")):
        with pytest.raises(RefusedDocument) as refused:
            read_named(name, unit, CONFIG)
        assert refused.value.reason == reason
