import hashlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextflow_jax.data.filters.hashes import NO_HASH, hash64, mix, normalise


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A cat, on a mat.", "a  cat on\na mat"),
        ("Straße", "STRASSE"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("ＡＢＣ１", "abc1"),
        ("«hello»", "hello"),
        ("zero\u200bwidth", "zero width"),
    ],
)
def test_texts_that_read_alike_are_the_same(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("cat", "cats"), ("a b", "ab"), ("🐱", "🐶"), ("...", "?"), ("1", "2")])
def test_texts_that_read_differently_stay_different(one, other):
    assert normalise(one) != normalise(other)


def test_text_of_nothing_but_white_space_is_empty():
    assert normalise(" \n\t ") == ""


@given(st.text())
def test_white_space_around_and_between_words_does_not_matter(text):
    spaced = "  " + "\n \t".join(text.split()) + "  "
    assert normalise(spaced) == normalise(text)


@given(st.text())
def test_punctuation_separators_and_controls_are_spaces(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(" " if unicodedata.category(one)[0] in ("P", "Z", "C") else one for one in folded).split()
    assert normalise(text) == " ".join(words or folded.split())


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_hashes_tell_lists_of_strings_apart(one, other):
    """Also where the joined strings are equal, such as ("ab", "c") and ("a", "bc")."""
    assert (hash64(*one) == hash64(*other)) == (one == other)


def test_hashes_are_those_of_earlier_versions():
    """They are in the indices of corpora."""
    digest = hashlib.sha256(b"\0" * 7 + b"\2" + "é".encode() + b"\0" * 7 + b"\1" + b"b").digest()
    assert hash64("é", "b") == int.from_bytes(digest[:8], "big") != NO_HASH


def test_lone_surrogates_have_a_hash():
    assert hash64("\ud800") != hash64("\udfff")


def test_mix_is_splitmix64():
    """The reference: the first outputs of SplitMix64 with seed 0 are the finaliser of multiples of its step."""
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.asarray([step, step * np.uint64(2), step * np.uint64(3)])
    assert [hex(value) for value in mix(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_mix_of_several_depends_on_each_and_their_order():
    a, b = np.arange(1000, dtype=np.uint64), np.arange(1000, dtype=np.uint64)[::-1]
    mixed = mix(a, b)
    assert len(np.unique(mixed)) == 1000
    assert not np.any(mixed == mix(b, a))
    np.testing.assert_array_equal(mix(a, np.uint64(7)), mix(a, np.full(1000, 7, np.uint64)))


def test_mixed_bits_are_even():
    bits = np.unpackbits(mix(np.arange(20_000, dtype=np.uint64)).view(np.uint8)).reshape(-1, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.02
