import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextflow_jax.data.corpus.raw import (
    Drop,
    RawDocument,
    RawImage,
    RawText,
    RefusedDocument,
    checked,
    pack,
    unpack,
)
from nextflow_jax.data.documents import ROLES, TASKS
from nextflow_jax.data.records import BrokenRecord

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
ROLE = st.sampled_from(ROLES)
SIZES = st.tuples(st.integers(1, 9999), st.integers(1, 9999))
# Tuples, of which the tests make documents: the run-time checks of annotations draw random numbers of their own.
SEGMENTS = st.one_of(st.tuples(TEXTS, ROLE, st.booleans()), st.tuples(st.binary(), SIZES, ROLE, st.booleans()))
FIELDS = st.tuples(TEXTS, st.sampled_from(TASKS), st.lists(SEGMENTS, max_size=4), TEXTS, TEXTS, TEXTS)


def make_document(fields):
    key, task, segments, *facts = fields
    made = tuple(RawText(*one) if len(one) == 3 else RawImage(*one) for one in segments)
    return RawDocument(key, task, made, *facts)


@given(FIELDS)
def test_a_document_comes_back_as_it_was(fields):
    document = make_document(fields)
    assert unpack(pack(document)) == document


@given(FIELDS, st.data())
def test_bytes_that_are_no_document_are_broken_records(fields, data):
    packed = pack(make_document(fields))
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    with pytest.raises(BrokenRecord):
        unpack(cut)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x96\x01\x02\x03\x04\x05\x06"])
def test_other_msgpack_is_a_broken_record(data):
    with pytest.raises(BrokenRecord):
        unpack(data)


def document(*segments, task="text"):
    return RawDocument("a", task, segments)


@pytest.mark.parametrize(
    "refused, reason",
    [
        (document(RawText("a", "response"), task="dance"), "unknown task"),
        (document(RawText("a", "prompt")), "nothing to learn"),
        (document(RawText("a", "response", loss=False)), "nothing to learn"),
        (document(RawText(" \n", "response")), "nothing to learn"),
        (document(), "nothing to learn"),
        (document(RawText("a\0", "prompt"), RawText("a", "response")), "control characters"),
        (document(RawText("\udc80", "response")), "not utf-8"),
    ],
)
def test_a_document_that_cannot_be_used_is_refused(refused, reason):
    with pytest.raises(RefusedDocument) as error:
        checked(refused)
    assert error.value.reason == reason


def test_a_usable_document_is_returned():
    one = document(RawText("näïve 猫", "prompt"), RawImage(b"x", (1, 1), "response"))
    assert checked(one) is one


def test_a_drop_needs_a_known_reason():
    with pytest.raises(KeyError):
        Drop("a", "I did not like it")
