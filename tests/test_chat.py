"""Chats: transformers' text, pictures in their places, answers told apart, templates that can do no harm.

The references are made by tests/goldens/make_chat.py.
"""

import datetime
import json
import pathlib

import numpy as np
import pytest

from nextflow_jax import chat
from nextflow_jax.chat import PicturePart, TextPart
from nextflow_jax.errors import UserError

GOLDENS = json.loads((pathlib.Path(__file__).parent / "goldens" / "chat.json").read_text(encoding="utf-8"))
TEMPLATES = GOLDENS["templates"]
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: f"{case['template']} {sorted(case['options'])}")
def test_rendered_as_by_transformers(case):
    options = {"add_generation_prompt": False, **case["options"]}
    assert chat.render(case["messages"], TEMPLATES[case["template"]], **options) == case["text"]


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: f"{case['template']} {sorted(case['options'])}")
def test_a_document_is_the_rendered_text_with_pictures_in_their_places(case):
    options = {"add_generation_prompt": False, **case["options"]}
    if options.pop("add_vision_id", False):
        pytest.skip("numbers before pictures are the template's own way of writing them")
    parts = chat.to_document(case["messages"], TEMPLATES[case["template"]], **options)
    assert "".join(part.text if isinstance(part, TextPart) else PLACE for part in parts) == case["text"]
    answers = [message["content"] for message in case["messages"] if message["role"] == "assistant"]
    texts = [answer if isinstance(answer, str) else answer[0]["text"] for answer in answers]
    responses = [part.text for part in parts if part.role == "response"]
    assert len(responses) == len(texts) and all(text in response for text, response in zip(texts, responses))


def test_pictures_are_handed_on_whatever_they_are():
    picture = np.zeros((2, 2, 3), np.uint8)
    content = [{"type": "text", "text": "make"}, {"type": "image", "image": picture}, {"type": "text", "text": "blue"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "image", "image": 7}]}]
    for name in ("tools", "vision"):
        parts = chat.to_document(messages, TEMPLATES[name], add_generation_prompt=False)
        pictures = [part for part in parts if isinstance(part, PicturePart)]
        assert pictures[0].picture is picture and pictures[1] == PicturePart(7, "response")
        assert parts[0].text.endswith("<|im_start|>user\nmake") and parts[2].text.startswith("blue<|im_end|>")
        assert parts[-1] == TextPart("<|im_end|>\n", "response")


def test_where_a_folder_keeps_its_template(tmp_path):
    assert chat.read_chat_template(tmp_path) == ""
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    for file, value, expected in (
        ("tokenizer_config.json", json.dumps({"chat_template": named}), "d"),
        ("tokenizer_config.json", json.dumps({"chat_template": "t"}), "t"),
        ("chat_template.json", json.dumps({"chat_template": "j"}), "j"),
        ("chat_template.jinja", "x\n", "x\n"),
    ):
        (tmp_path / file).write_text(value)
        assert chat.read_chat_template(tmp_path) == expected
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text("[")
    with pytest.raises(UserError, match=r"chat_template.json: not a JSON object"):
        chat.read_chat_template(tmp_path)


def test_the_day_is_known_to_templates():
    assert chat.render([], "{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


USER = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "template, messages, message",
    [
        ("", USER, "has no chat template; put a chat_template.jinja"),
        ("{% if %}", USER, "no valid Jinja template"),
        (TEMPLATES["tools"], [{"role": "judge", "content": "x"}], "refuses these messages: unknown role judge"),
        ("{{ messages[0].content + 1 }}", USER, "fails on these messages: TypeError"),
        ("{{ ''.__class__.__mro__ }}", USER, "refuses these messages"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", USER, "takes no name like '__class__'"),
        ("{{ messages.append(1) }}", USER, "refuses these messages"),
    ],
)
def test_what_a_template_may_not(template, messages, message):
    with pytest.raises(UserError, match=message) as refused:
        chat.render(messages, template)
    assert "\n" not in str(refused.value)


def test_documents_that_cannot_be_told():
    pictures = [{"role": "user", "content": [{"type": "image", "image": 1}]}]
    with pytest.raises(UserError, match=r"puts pictures \[\] of 1"):
        chat.to_document(pictures, "{{ messages | length }}")
    with pytest.raises(UserError, match=r"puts pictures \[0, 0\] of 1"):
        chat.to_document(pictures, "{{ messages[0].content }}{{ messages[0].content }}")
    with pytest.raises(UserError, match="type 'video'; known are 'text' and 'image'"):
        chat.to_document([{"role": "user", "content": [{"type": "video"}]}], TEMPLATES["vision"])
    answers = [*USER, {"role": "assistant", "content": "a"}, *USER]
    with pytest.raises(UserError, match="changes earlier messages"):
        chat.to_document(answers, "{{ messages | length }}")
