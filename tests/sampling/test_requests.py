"""Requests from JSON documents, and what a wrong document is told."""

import json

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.errors import UserError
from nextflow_jax.sampling.documents import read_document
from nextflow_jax.sampling.requests import caption, edit, text_to_image
from nextflow_jax.sampling.resolutions import parse_resolution as parse_size
from tests import tiny_models


def write(folder, content):
    path = folder / "document.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_tasks_are_requests_with_the_right_caps():
    picture = tiny_models.picture(0)
    drawing, telling, editing = text_to_image("sun", seed=3), caption(picture), edit(picture, "make it blue")
    assert drawing.begin_with_image and drawing.max_images == 1 and drawing.max_text_tokens == 0 and drawing.seed == 3
    assert not telling.begin_with_image and telling.max_images == 0 and telling.max_text_tokens > 0
    assert editing.begin_with_image and editing.document[0] is picture and editing.document[1] == "make it blue"


def test_a_document_is_read_with_its_pictures(tmp_path):
    Image.fromarray(tiny_models.picture(1)).save(tmp_path / "sun.png")
    options = {"max_images": 2, "max_text_tokens": 9, "size": "8x16", "begin_with_image": True}
    segments = [{"text": "make it blue"}, {"image": "sun.png"}]
    request = read_document(write(tmp_path, {"segments": segments, "generate": options}))
    assert request.document[0] == "make it blue" and np.array_equal(request.document[1], tiny_models.picture(1))
    assert (request.max_images, request.max_text_tokens, request.size, request.begin_with_image) == (
        2,
        9,
        (8, 16),
        True,
    )
    plain = read_document(write(tmp_path, {"segments": segments}))
    assert plain.size is None and not plain.begin_with_image


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([], "expects an object"),
        ({}, '"segments" must list'),
        ({"segments": []}, '"segments" must list'),
        ({"segment": [{"text": "a"}]}, "segment is not a key of a document; did you mean segments"),
        ({"segments": [{"txt": "a"}]}, "segments[0].txt is not a key of a document; did you mean text"),
        ({"segments": [{"text": "a", "image": "b.png"}]}, "segments[0] = "),
        ({"segments": [{"text": "a"}, {}]}, "segments[1] = "),
        ({"segments": [{"text": 3}]}, "segments[0] = "),
        ({"segments": [{"image": "nowhere.png"}]}, "nowhere.png: no such image file"),
        ({"segments": [{"image": "document.json"}]}, "not a readable image"),
        ({"segments": [{"text": "a"}], "generate": {"max_image": 1}}, "did you mean max_images"),
        ({"segments": [{"text": "a"}], "generate": {"max_images": "1"}}, "max_images = '1': expects int"),
        ({"segments": [{"text": "a"}], "generate": {"max_images": True}}, "max_images = True: expects int"),
        ({"segments": [{"text": "a"}], "generate": {"size": "large"}}, "size 'large': write HEIGHTxWIDTH"),
    ],
)
def test_a_wrong_document_is_told_what_is_wrong(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        read_document(write(tmp_path, content))
    assert message in str(error.value)


def test_a_missing_document_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.json: no such file"):
        read_document(tmp_path / "nowhere.json")


def test_sizes_are_height_times_width():
    assert parse_size("32x48") == (32, 48)
    for text in ("32", "32x", "axb", "32x48x2", "-1x3"):
        with pytest.raises(UserError, match="HEIGHTxWIDTH"):
            parse_size(text)
