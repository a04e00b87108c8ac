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


def test_a_code_takes_the_bits_of_the_largest_and_equal_inputs_none(samples):
    rng = np.random.default_rng(0)
    n, bits = 10_000, 14
    targets = rng.integers(0, 2**bits, n).astype(np.int32)
    targets[0] = 2**bits - 1
    sizes = []
    for changed in (0, n // 2, n):
        inputs = targets.copy()
        inputs[n - changed :] ^= 1
        document = EncodedDocument("k", "t", (EncodedImage((4, 4), inputs, targets, "response"),))
        assert same(decode(encode(document)), document)
        sizes.append(len(encode(document)) - (n + changed) * bits / 8)
    assert 0 < sizes[0] < 40
    assert all(n / 8 < size < n / 8 + 40 for size in sizes[1:])


@pytest.mark.parametrize("largest", [0, 1, 2, 255, 256, 2**14, 2**31 - 1])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_codes_of_any_width_and_number_survive(count, largest):
    rng = np.random.default_rng(largest)
    targets, inputs = rng.integers(0, largest, (2, count), endpoint=True).astype(np.int32)
    targets[:1] = largest
    document = EncodedDocument("k", "t", (EncodedImage((4, 4), inputs, targets, "prompt"),))
    assert same(decode(encode(document)), document)
    assert decode(encode(document)).segments[0].inputs.dtype == np.int32


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
        msgpack.packb(fields)
        for fields in (
            ["k", "t", "s", []],
            *(
                ["k", "t", "s", "l", [segment]]
                for segment in (
                    [0, 2, True, 2, b"ab"],
                    [0, -1, True, 2, b"ab"],
                    [0, "prompt", True, 2, b"ab"],
                    [0, 0, 1, 2, b"ab"],
                    [0, 0, True, 2, b"abc"],
                    [0, 0, True, 2],
                    [1, 0, True, 4, 4, 3, 8, b"abcd", None, None],
                    [1, 0, True, 4, 4, -3, 8, b"", None, None],
                    [1, 0, True, 4, 4, 3, 0, b"", None, None],
                    [1, 0, True, 4, 4, 3, 32, b"abcd" * 3, None, None],
                    [1, 0, True, 4, 4, 3, 8, b"abc", b"\x07", b"ab"],
                    [1, 0, True, 4, 4, 3, 8, b"abc", b"\x07\x00", b"abc"],
                    [1, 0, True, 4, 4, 3, 8, b"abc", b"\x07", None],
                    [1, 0, True, 4, 4, 3, 8, "abc", None, None],
                )
            ),
        )
    ]
    foreign += [msgpack.packb(["k", "t", 5]), msgpack.packb(["k", "t", [[0, "prompt", 3, b"abc"]]])]
    for data in foreign:
        with pytest.raises(BrokenRecord):
            decode(data)


def test_negative_indices_are_refused():
    with pytest.raises(ValueError, match="-1 is negative"):
        encode(EncodedDocument("k", "text", (EncodedText(np.asarray([-1], np.int32), "response"),)))
