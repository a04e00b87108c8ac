"""Requests from JSON documents, and what a wrong document is told."""

import json

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.errors import UserError
from nextflow_jax.sampling.documents import read_document
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models


def write(folder, content):
    path = folder / "document.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


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


def test_settings_of_a_document_stand_on_the_defaults(tmp_path):
    defaults = SamplingSettings(top_k=7, guidance=4.0)
    content = {"segments": [{"text": "a"}], "settings": {"guidance": [1.0, 2.0], "guidance_drops": "all"}}
    request = read_document(write(tmp_path, content), defaults)
    assert request.settings == SamplingSettings(top_k=7, guidance=(1.0, 2.0), guidance_drops="all")
    assert read_document(write(tmp_path, {"segments": [{"text": "a"}]}), defaults).settings is None
    thought = {"begin_with_image": True, "max_thought_tokens": 9, "keep_thought": False, "size": "portrait"}
    request = read_document(write(tmp_path, {"segments": [{"text": "a"}], "generate": thought}))
    assert (request.max_thought_tokens, request.keep_thought, request.size) == (9, False, "portrait")
    for settings, message in (
        ({"guidence": 2}, "settings.guidence is not a key of a document; did you mean guidance"),
        ({"guidance_drops": 3}, "settings.guidance_drops = 3"),
    ):
        with pytest.raises(UserError, match=message):
            read_document(write(tmp_path, {"segments": [{"text": "a"}], "settings": settings}))
