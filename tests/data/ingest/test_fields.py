"""The forms of records, whatever file they come from."""

import pytest

from nextflow_jax.data.corpus.raw import Drop, RawImage
from nextflow_jax.data.ingest.builder import build
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.fields import assemble, optional, parse_object
from tests.data.ingest.conftest import encode_picture

PICTURES = {name: encode_picture(number, (20, 24 + number)) for number, name in enumerate("abc")}


def made(fields, **settings):
    config = SourceConfig(name="web", **settings)
    return build("k", lambda: assemble("k", fields, config, PICTURES.__getitem__))


def shape(document):
    """A picture is its name, a text itself."""
    names = {data: name for name, data in PICTURES.items()}
    return [names[one.data] if isinstance(one, RawImage) else one.text for one in document.segments]


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"texts": ["one", None, "two", None], "images": [None, "a", None, "b"]}, ["one", "a", "two", "b"]),
        ({"texts": ["one", None, "two"], "images": ["a"]}, ["one", "a", "two"]),
        ({"texts": [None, "one"], "image": "a"}, ["a", "one"]),
        ({"texts": [None, None, "one"], "images": ["a", None, None]}, ["a", "one"]),
        ({"texts": [None, None, "one"], "image": ["b", "a"]}, ["b", "a", "one"]),
    ],
)
def test_interleaved_lists(fields, expected):
    document = made(fields)
    assert document.task == "interleaved"
    assert shape(document) == expected
    assert {segment.role for segment in document.segments} == {"response"}


@pytest.mark.parametrize("images", [None, [], [None, None]])
def test_interleaved_lists_without_pictures_are_text(images):
    document = made({"texts": ["one", "two"], "images": images})
    assert (document.task, shape(document)) == ("text", ["one", "two"])


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": ["one", "two"], "images": ["a", None]},
        {"texts": ["one", None], "images": ["a", "b", "c"]},
        {"texts": ["one", None]},
        {"texts": ["one", 2]},
        {"texts": "one"},
        {"texts": ["one"], "images": "a"},
        {"texts": ["one"], "label": ["cat"]},
        {"conversations": {}},
        {},
        {"text": None, "image": "a"},
        {"text": "one", "image": "a", "licence": True},
    ],
)
def test_other_forms_are_refused(fields):
    assert made(fields) == Drop("k", "bad record")


def test_one_text_with_several_pictures():
    assert shape(made({"text": "words", "images": ["a", "b"]}, task="edit")) == ["a", "words", "b"]
    assert shape(made({"text": "words", "image": ["a", "b"]}, task="frames")) == ["words", "a", "b"]


def test_a_source_of_text_reads_no_picture():
    document = made({"text": b"words", "image": "none"}, task="text")
    assert (document.task, shape(document)) == ("text", ["words"])


def test_names_of_columns():
    columns = (("texts", "t"), ("images", "i"), ("licence", "terms"), ("label", "class"))
    document = made({"t": ["one", None], "i": [None, "c"], "terms": "MIT", "class": 3}, columns=columns)
    assert (shape(document), document.licence, document.label) == (["one", "c"], "MIT", "3")


@pytest.mark.parametrize("value, text", [(None, ""), ("a", "a"), (b"a", "a"), (7, "7"), (2.5, "2.5")])
def test_optional_fields(value, text):
    assert optional({"id": value}, "id") == text


@pytest.mark.parametrize("name", ["label", "licence", "source"])
@pytest.mark.parametrize("value", ["\ud800", b"\xff"])
def test_facts_must_be_utf8(name, value):
    assert made({"text": "words", name: value}) == Drop("k", "not utf-8")


def test_objects():
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    for data, reason in ((b"[]", "bad record"), (b"{", "bad record"), (b'{"a": "\xff"}', "not utf-8")):
        assert build("k", lambda data=data: parse_object(data)).reason == reason
