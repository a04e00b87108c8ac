"""Documents of captioned pictures."""

import pytest

from nextflow_jax.data.captioned import make_documents
from nextflow_jax.data.documents import TASKS, Image, Text
from nextflow_jax.errors import UserError
from tests.training import small


@pytest.fixture(scope="module")
def drawn():
    return small.open_drawn(small.PICTURES)


def test_both_directions_for_every_picture_and_language(drawn):
    documents = make_documents(drawn, "validation", TASKS, seed=0)
    assert {document.task for document in documents} == {"text_to_image", "image_to_text"}
    assert len(documents) == len({document.key for document in documents}) == 2 * 2 * len(drawn.split("validation"))
    (one,) = [document for document in documents if document.key == "text_to_image/de/p17"]
    assert one.segments == (Text("Quadrat 17", "prompt"), Image("p17", "response"))
    (other,) = [document for document in documents if document.key == "image_to_text/de/p17"]
    assert other.segments == (Image("p17", "prompt"), Text("Quadrat 17", "response"))


def test_unknown_names(drawn):
    with pytest.raises(UserError, match="did you mean text_to_image"):
        make_documents(drawn, "train", ["text_to_imag"], 0)
    with pytest.raises(UserError, match="split 'test' is not known"):
        make_documents(drawn, "test", ["text_to_image"], 0)
