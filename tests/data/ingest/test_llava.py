"""Conversation files: arrays that are streamed, lines, and both broken."""

import gzip
import json
import tracemalloc

import pytest

from nextflow_jax.data.corpus.raw import Drop, RawDocument
from nextflow_jax.data.ingest import llava
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.errors import UserError
from tests.data.ingest.conftest import encode_picture, picture_bomb

TURNS = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]
TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def read(folder, data, name="talk.json", **settings):
    folder.mkdir(exist_ok=True)
    (folder / "1.png").write_bytes(encode_picture(1))
    (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    config = SourceConfig(name="chat", format="llava", paths=(f"{folder}/talk*",), **settings)
    return [one for unit in llava.units(config) for one in llava.read(unit, config)]


def outcomes(found):
    return [one.reason if isinstance(one, Drop) else one.task for one in found]


RECORDS = [
    {"id": "x", "image": "1.png", "conversations": TURNS},
    {"id": "x", "conversations": TALK, "label": "small talk", "licence": "MIT"},
    {"id": "y", "image": ["1.png", "1.png"], "conversations": [*TURNS, *TURNS]},
]
TASKS = ["image_to_text", "text", "interleaved"]


def lines(records):
    return "\n".join(map(json.dumps, records)).encode()


@pytest.mark.parametrize(
    "name, data",
    [
        ("talk.json", json.dumps(RECORDS).encode()),
        ("talk.json", b"\xef\xbb\xbf \n" + json.dumps(RECORDS, indent=2).encode() + b"\n"),
        ("talk.json.gz", gzip.compress(json.dumps(RECORDS).encode())),
        ("talk.jsonl", lines(RECORDS)),
        ("talk.jsonl.gz", gzip.compress(lines(RECORDS))),
    ],
    ids=["array", "array after a mark", "packed array", "lines", "packed lines"],  # gzip's bytes have the time in them
)
def test_arrays_and_lines(tmp_path, name, data):
    found = read(tmp_path, data, name)
    assert outcomes(found) == TASKS
    assert [(one.role, one.loss) for one in found[0].segments] == [("prompt", False)] * 2 + [("response", True)]
    assert (found[1].label, found[1].licence, found[1].source) == ("small talk", "MIT", "chat")
    keys = [one.key for one in found]
    assert len(set(keys)) == 3
    assert all(key.startswith(f"chat/{name}/") for key in keys)
    assert keys == [one.key for one in read(tmp_path, data, name)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 18])
def test_arrays_are_read_in_pieces_of_any_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(llava, "_CHUNK", chunk)
    records = [
        {"conversations": [{"from": "human", "value": 'gr\u00fcn \U0001f408 \\"]},{['}, *TALK[1:]]},
        7,
        RECORDS[1],
        -12.5,
    ]
    data = json.dumps(records, ensure_ascii=False).encode()
    found = read(tmp_path, data)
    assert outcomes(found) == ["text", "bad record", "text", "bad record"]
    assert found[0].segments[0].text == 'gr\u00fcn \U0001f408 \\"]},{['


def test_lines_are_divided_into_units(tmp_path):
    records = [RECORDS[1]] * 50
    (tmp_path / "talk.jsonl").write_bytes(lines(records))
    config = SourceConfig(name="chat", format="llava", paths=(f"{tmp_path}/talk.jsonl",), unit_bytes=1000)
    assert len(llava.units(config)) > 3
    assert len(read(tmp_path, lines(records), "talk.jsonl", unit_bytes=1000)) == 50


def test_lines_and_arrays_together_are_in_the_order_of_their_names(tmp_path):
    (tmp_path / "talk2.json").write_text(json.dumps(RECORDS[:2]))
    found = read(tmp_path, lines(RECORDS[:1]), "talk1.jsonl")
    assert [one.key for one in found] == ["chat/talk1.jsonl/0", "chat/talk2.json/0", "chat/talk2.json/1"]


REFUSED = {
    "bad record": {"image": "1.png", "conversations": TALK},
    "missing file": {"image": "2.png", "conversations": TURNS},
    "unsafe path": {"image": "../1.png", "conversations": TURNS},
    "too large": {"image": "bomb.png", "conversations": TURNS},
    "empty": {"image": "empty.png", "conversations": TURNS},
    "unknown task": {"conversations": [{"from": "cat", "value": "meow"}]},
    "nothing to learn": {"conversations": TALK[:1]},
    "not utf-8": {"conversations": [TALK[0], {"from": "gpt", "value": "\ud800"}]},
    "control characters": {"conversations": [TALK[0], {"from": "gpt", "value": "a\0"}]},
}
BAD = ["text", None, [], {}, {"image": 1, "conversations": TURNS}, {"conversations": "Hi"}, {"id": "1", "text": "Hi"}]


@pytest.mark.parametrize("reason, record", [*REFUSED.items(), *(("bad record", record) for record in BAD)])
@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_broken_records_cost_only_themselves(tmp_path, name, reason, record):
    (tmp_path / "bomb.png").write_bytes(picture_bomb())
    (tmp_path / "empty.png").write_bytes(b"")
    records = [RECORDS[0], record, RECORDS[1]]
    data = json.dumps(records).encode() if name == "talk.json" else lines(records)
    assert outcomes(read(tmp_path, data, name)) == ["image_to_text", reason, "text"]


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_text_that_is_no_utf8_costs_only_its_record(tmp_path, name):
    bad = json.dumps(RECORDS[1]).encode().replace(b"Hello", "gr\u00fcn".encode("latin-1"))
    good = json.dumps(RECORDS[0]).encode()
    data = b"[" + b",".join([good, bad, good]) + b"]" if name == "talk.json" else b"\n".join([good, bad, good])
    assert outcomes(read(tmp_path, data, name)) == ["image_to_text", "not utf-8", "image_to_text"]


WHOLE = json.dumps(RECORDS).encode()
NO_ARRAYS = {
    "it ends": b"",
    "there is '{', not '\\['": WHOLE[1:],
    "it ends in a value that is no JSON after 2 conversations": WHOLE[:-10],
    "it ends after 3 conversations": WHOLE[:-1],
    "not ',', after 1 conversations": b'[{"conversations": []} {}]',
    "value that is no JSON after 1 conversations": b'[{"conversations": []}, {]',
    "value that is no JSON after 0 conversations": b'[{"a":' * 100_000,
    "larger than max_bytes = 1,000, after 1 conversations": b'[1, "' + b"x" * 3000,
}


@pytest.mark.parametrize("rule, data", NO_ARRAYS.items())
def test_broken_arrays_are_errors_that_say_where(tmp_path, monkeypatch, rule, data):
    monkeypatch.setattr(llava, "_CHUNK", 100)
    most = 1000 if "max_bytes" in rule else 1_000_000
    with pytest.raises(UserError, match=rf"talk\.json is no whole JSON array: .*{rule}") as error:
        read(tmp_path, data, max_bytes=most)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_compressed_arrays_are_errors(tmp_path, damage):
    data = bytearray(gzip.compress(json.dumps([{"conversations": [{"n": n * n}]} for n in range(900)]).encode()))
    if damage == "cut":
        del data[-50:]
    else:
        data[300:340] = bytes(40)
    with pytest.raises(UserError, match=r"talk\.json\.gz"):
        read(tmp_path, bytes(data), "talk.json.gz")


def test_memory_does_not_grow_with_the_array(tmp_path):
    record = {"conversations": [TALK[0], {"from": "gpt", "value": "words " * 10_000}]}
    (tmp_path / "talk.json").write_text(json.dumps([record] * 200))
    config = SourceConfig(name="chat", paths=(f"{tmp_path}/talk.json",))
    (unit,) = llava.units(config)
    assert unit.size > 12_000_000
    tracemalloc.start()
    assert sum(isinstance(one, RawDocument) for one in llava.read(unit, config)) == 200
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4_000_000
