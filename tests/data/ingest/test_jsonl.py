import json

import pytest

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawText
from nextflow_jax.data.ingest import jsonl
from nextflow_jax.data.ingest.config import SourceConfig
from tests.data.ingest.conftest import encode_picture, picture_bomb


def read(folder, records, **settings):
    folder.mkdir(exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path = folder / "file.jsonl"
    path.write_bytes(b"\n".join(lines))
    config = SourceConfig(name="web", paths=(str(path),), **settings)
    return [document for unit in jsonl.units(config) for document in jsonl.read(unit, config)]


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_captioned_picture(tmp_path):
    data = encode_picture(1, (20, 40))
    write(tmp_path, "a/1.png", data)
    record = {"image": "a/1.png", "text": "a cat", "id": 7, "label": "cat", "licence": "CC0"}
    assert read(tmp_path, [record]) == [
        RawDocument(
            "web/7",
            "text_to_image",
            (RawText("a cat", "prompt"), RawImage(data, (20, 40), "response")),
            "web",
            "CC0",
            "cat",
        )
    ]


@pytest.mark.parametrize("task, roles", [("image_to_text", ["prompt", "response"]), ("interleaved", ["response"] * 2)])
def test_the_sources_task_says_what_is_the_prompt(tmp_path, task, roles):
    write(tmp_path, "1.png", encode_picture(1))
    (document,) = read(tmp_path, [{"image": "1.png", "text": "a cat"}], task=task, licence="CC BY")
    assert [segment.role for segment in document.segments] == roles
    assert (document.task, document.licence, document.source) == (task, "CC BY", "web")


def test_text_alone(tmp_path):
    assert read(tmp_path, [{"text": "words"}])[0].segments == (RawText("words", "response"),)
    assert read(tmp_path, [{"text": "words"}])[0].task == "text"


def test_the_full_form(tmp_path):
    write(tmp_path, "1.png", encode_picture(1))
    segments = [
        {"image": "1.png", "role": "prompt"},
        {"text": "make it red", "role": "prompt", "loss": False},
        {"image": "1.png", "role": "response"},
    ]
    (document,) = read(tmp_path, [{"id": "e", "task": "edit", "segments": segments, "source": "shop"}])
    assert (document.key, document.task, document.source) == ("web/e", "edit", "shop")
    assert [type(segment) for segment in document.segments] == [RawImage, RawText, RawImage]
    assert [segment.loss for segment in document.segments] == [True, False, True]


def test_columns_may_have_other_names(tmp_path):
    write(tmp_path, "1.png", encode_picture(1))
    columns = (("text", "caption"), ("image", "file_name"))
    (document,) = read(tmp_path, [{"file_name": "1.png", "caption": "a cat"}], columns=columns)
    assert document.segments[0].text == "a cat"


def test_documents_without_an_id_are_known_by_their_place(tmp_path):
    keys = [document.key for document in read(tmp_path, [{"text": "a"}, {"text": "b"}])]
    assert keys == ["web/file.jsonl/0", f"web/file.jsonl/{len(json.dumps({'text': 'a'})) + 1}"]


REFUSED = {
    "not utf-8": b'{"text": "\xff\xfe"}',
    "bad record": b"{",
    "control characters": {"text": "a\0b"},
    "nothing to learn": {"text": "  "},
    "missing file": {"image": "none.png", "text": "a"},
    "empty": {"image": "empty.png", "text": "a"},
    "not an image": {"image": "text.png", "text": "a"},
    "too large": {"image": "bomb.png", "text": "a"},
    "too small": {"image": "tiny.png", "text": "a"},
    "too many bytes": b'{"text": "' + b"x" * 300_000 + b'"}',
    "unknown task": {"task": "dance", "segments": [{"text": "a", "role": "response"}]},
}
BAD_RECORDS = [
    b"[1, 2]",
    b"3",
    {"image": "1.png"},
    {"image": "1.png", "text": ["a"]},
    {"image": True, "text": "a"},
    {"segments": [{"text": "a", "role": "response"}]},
    {"task": "text", "segments": {}},
    {"task": "text", "segments": [{"role": "response"}]},
    {"task": "text", "segments": [{"text": "a", "image": "1.png", "role": "response"}]},
    {"task": "text", "segments": ["a"]},
    {"task": "text", "segments": [{"text": "a", "role": "response", "loss": 1}]},
    b'{"a":' * 100_000,
]
UNSAFE = [
    "/etc/passwd",
    "../secret.png",
    "a/../../secret.png",
    "link/secret.png",
    "ftp://host/x.png",
    "file:///etc/passwd",
    "C:\\x.png",
]


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_used_is_dropped_with_its_reason(tmp_path, reason):
    write(tmp_path, "empty.png", b"")
    write(tmp_path, "text.png", b"no picture")
    write(tmp_path, "bomb.png", picture_bomb())
    write(tmp_path, "tiny.png", encode_picture(0, (4, 4)))
    found = read(tmp_path, [{"text": "before"}, REFUSED[reason], {"text": "after"}], max_bytes=200_000)
    assert [isinstance(one, Drop) for one in found] == [False, True, False]
    assert found[1].reason == reason


@pytest.mark.parametrize("record", BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_records_of_another_form_are_dropped(tmp_path, record):
    write(tmp_path, "1.png", encode_picture(1))
    found = read(tmp_path, [record, {"text": "after"}])
    assert [getattr(one, "reason", None) for one in found] == ["bad record", None]


@pytest.mark.parametrize("name", UNSAFE)
def test_records_cannot_name_files_outside_their_folder(tmp_path, name):
    write(tmp_path, "secret.png", encode_picture(1))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (found,) = read(folder, [{"image": name, "text": "a"}])
    assert found == Drop("web/file.jsonl/0", "unsafe path")
