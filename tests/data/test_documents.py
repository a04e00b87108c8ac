"""Documents refuse what no later stage could use."""

import pytest

from nextflow_jax.data.documents import Document, Image, Text, document_texts, with_pictures_at_most
from nextflow_jax.errors import UserError


def test_texts_and_pictures_keep_their_order():
    segments = (Text("a", "prompt"), Image("x", "response"), Text("b", "prompt"), Image("x", "response"))
    document = Document("d", "interleaved", segments)
    assert document.image_keys() == ("x", "x")
    assert list(document_texts([document, document])) == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("task", "segments", "message"),
    [
        ("draw", (Text("a", "response"),), "document d: task 'draw' is not known"),
        ("text", (Text("a", "prompt"),), "document d has no segment with role 'response'"),
        ("text", (), "document d has no segment"),
    ],
)
def test_unusable_documents_are_refused(task, segments, message):
    with pytest.raises(UserError, match=message):
        Document("d", task, segments)


@pytest.mark.parametrize(("most", "kept"), [(0, None), (1, None), (2, 4), (3, 7), (9, 7)])
def test_pictures_beyond_the_limit_go_with_the_words_before_them(most, kept):
    first = (Text("one", "prompt"), Image("a", "prompt"))
    others = (Text("two", "response"), Image("b", "response"), Text("and", "response"), Text("three", "response"))
    document = Document("d", "frames", (*first, *others, Image("c", "response")))
    cut = with_pictures_at_most(document, most)
    assert (cut and cut.segments) == (kept and document.segments[:kept])


def test_unknown_roles_are_refused():
    with pytest.raises(Exception, match="system"):
        Document("d", "text", (Text("a", "system"), Text("b", "response")))
