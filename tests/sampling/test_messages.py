"""Chats as requests: the template's text and pictures in order, the mark that ends a turn, clear words for mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.errors import UserError
from nextflow_jax.sampling.messages import read_messages
from tests import tiny_models

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Tokenizer:
    """A character is a token, and so is <end>."""

    size, fingerprint, file_name = 0x110001, "", "tokenizer.json"

    def __init__(self, template=TEMPLATE):
        self.chat_template = template

    def encode(self, text):
        return [ord(character) for character in text.replace("<end>", "\uf8ff")]

    def decode(self, ids):
        return "".join(map(chr, ids)).replace("\uf8ff", "<end>")

    def pieces(self):
        raise NotImplementedError

    def save(self, path):
        raise NotImplementedError


def read(folder, content, tokenizer=None):
    path = folder / "chat.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_messages(path, tokenizer or Tokenizer())


def test_a_chat_is_a_document_whose_next_turn_is_the_answer(tmp_path):
    Image.fromarray(tiny_models.picture(1)).save(tmp_path / "sun.png")
    parts = [{"type": "text", "text": "look "}, {"type": "image", "image": "sun.png"}, {"type": "text", "text": "?"}]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "sun"},
        {"role": "user", "content": "draw it"},
    ]
    content = {"messages": messages, "generate": {"max_images": 2}, "settings": {"top_k": 3}}
    request = read(tmp_path, content)
    texts = [part for part in request.document if isinstance(part, str)]
    assert "".join(texts) == (
        "<system>be kind<end>\n<user>look ?<end>\n<assistant>sun<end>\n<user>draw it<end>\n<assistant>"
    )
    assert texts[0].endswith("look ") and np.array_equal(request.document[1], tiny_models.picture(1))
    assert request.end_mark == "<end>" and request.max_images == 2 and request.settings.top_k == 3
    assert read(tmp_path, messages).settings is None


def test_a_template_without_a_mark_has_none(tmp_path):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert read(tmp_path, [{"role": "user", "content": "a"}], Tokenizer(template)).end_mark == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ({}, '"messages" must list'),
        ([], '"messages" must list'),
        ([{"role": "user"}], "messages[0]: write"),
        ([{"content": "a"}], "messages[0]: write"),
        ([{"role": "user", "text": "a"}], "messages[0].text is not a key"),
        ([{"role": "user", "content": [{"type": "video", "text": "a"}]}], "messages[0].content[0] = "),
        ([{"role": "user", "content": [{"type": "image", "image": "none.png"}]}], "none.png: no such image file"),
        ({"messages": [{"role": "user", "content": "a"}], "generate": {"images": 1}}, "did you mean max_images"),
    ],
)
def test_a_wrong_chat_is_told_what_is_wrong(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert message in str(error.value)


def test_a_tokenizer_without_a_template_says_so(tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        read_messages(_written(tmp_path), tiny_models.text_tokenizer())


def _written(folder):
    path = folder / "chat.json"
    path.write_text(json.dumps([{"role": "user", "content": "a"}]))
    return path
