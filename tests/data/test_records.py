import dataclasses

import msgpack
import numpy as np
import pytest

from nextflow_jax.data.records import BrokenRecord, EncodedDocument, EncodedImage, EncodedText, decode, encode


def same(a, b):
    """Equality of documents, arrays included."""
    if (a.key, a.task, a.source, a.licence) != (b.key, b.task, b.source, b.licence):
        return False
    if [type(segment) for segment in a.segments] != [type(segment) for segment in b.segments]:
        return False
    for left, right in zip(a.segments, b.segments):
        for name, value in vars(left).items():
            if not np.array_equal(value, getattr(right, name)):
                return False
    return True


def test_documents_survive_the_round_trip_wide_pictures_included(samples):
    documents = samples.documents(40)
    assert {segment.size for d in documents for segment in d.segments if isinstance(segment, EncodedImage)} == {
        (12, 12),
        (8, 16),
    }
    for document in documents:
        assert same(decode(encode(document)), document)


def test_source_licence_and_loss_survive(samples):
    for document in samples.documents(8):
        segments = tuple(dataclasses.replace(each, loss=bool(i % 2)) for i, each in enumerate(document.segments))
        document = dataclasses.replace(document, segments=segments, source="emoji/größe", licence="CC BY-SA 4.0")
        again = decode(encode(document))
        assert same(again, document) and [type(segment.loss) for segment in again.segments] == [bool] * len(segments)


def test_records_of_version_1_bear_loss_everywhere_and_name_no_source():
    codes = np.asarray([3, 1, 2], "<u2")
    segments = [[0, "prompt", 4, codes.astype("<u4").tobytes()], [1, "response", 8, 16, 2, codes.tobytes(), None]]
    picture = EncodedImage((8, 16), *[codes.astype(np.int32)] * 2, "response", loss=True)
    words = EncodedText(codes.astype(np.int32), "prompt", loss=True)
    expected = EncodedDocument("k#0", "edit", (words, picture), source="", licence="")
    assert same(decode(msgpack.packb(["k#0", "edit", segments])), expected)


def test_indices_past_16_bits_survive():
    ids = np.asarray([0, 65535, 65536, 152063], np.int32)
    document = EncodedDocument("k", "text", (EncodedText(ids, "response"),))
    assert same(decode(encode(document)), document)


def test_a_code_takes_two_bytes_and_equal_inputs_none(samples):
    rng = np.random.default_rng(0)
    n = 10_000
    codes = rng.integers(0, 2**15, (2, n)).astype(np.int32)
    plain = EncodedDocument("k", "t", (EncodedImage((4, 4), codes[0], codes[0], "response"),))
    corrected = EncodedDocument("k", "t", (EncodedImage((4, 4), codes[1], codes[0], "response"),))
    assert 2 * n <= len(encode(plain)) < 2 * n + 50
    assert 4 * n <= len(encode(corrected)) < 4 * n + 50


def test_foreign_bytes_are_broken_records(samples):
    good = encode(samples.documents(1)[0])
    foreign = [
        b"",
        b"\x00",
        good[:-3],
        good + b"x",
        msgpack.packb({"a": 1}),
        msgpack.packb(["k", "t", [[7, "prompt"]]]),
    ]
    foreign += [
        msgpack.packb(["k", "t", [[0, "judge", 2, b"ab"]]]),
        msgpack.packb(["k", "t", [[0, "prompt", 2, b"abc"]]]),
    ]
    foreign += [
        msgpack.packb(["k", "t", "s", []]),
        msgpack.packb(["k", "t", "s", "l", [[0, "prompt", 2, b"ab"]]]),
        msgpack.packb(["k", "t", "s", "l", [[0, "prompt", 1, 2, b"ab"]]]),
    ]
    foreign += [msgpack.packb(["k", "t", 5]), msgpack.packb(["k", "t", [[0, "prompt", 3, b"abc"]]])]
    for data in foreign:
        with pytest.raises(BrokenRecord):
            decode(data)


def test_negative_indices_are_refused():
    with pytest.raises(ValueError, match="-1 is negative"):
        encode(EncodedDocument("k", "text", (EncodedText(np.asarray([-1], np.int32), "response"),)))
