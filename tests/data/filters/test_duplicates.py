import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.data.filters import duplicates
from nextflow_jax.data.filters.columns import from_columns, to_columns
from nextflow_jax.data.filters.config import MAX_NEAR_DISTANCE, DuplicatesConfig
from nextflow_jax.data.filters.duplicates import near_duplicates, repeats
from nextflow_jax.errors import UserError
from tests.data.filters.conftest import flip, make_fingerprint

TASKS = ("text_to_image", "edit", "frames")


def random_fingerprints(rng, count, distance, bases=3):
    """Documents of up to three pictures whose hashes lie around a few bases, about `distance` bits from each other."""
    centres = rng.integers(0, 2**63, bases).tolist()
    colours = rng.integers(0, 256, (3, 3))
    made = []
    for i in range(count):
        pictures, shades = [], []
        for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3])):
            flipped = rng.permutation(64)[: rng.integers(0, distance + 2)]
            pictures.append(flip(int(rng.choice(centres)), flipped))
            shade = colours[rng.integers(3)] + rng.integers(-20, 21, 3)
            shades.append(tuple(np.clip(shade, 0, 255).tolist()))
        task, text = rng.choice(TASKS, p=[0.8, 0.1, 0.1]), rng.choice(["", "a", "b"], p=[0.1, 0.8, 0.1])
        made.append(make_fingerprint(str(i), str(task), pictures, str(text), colours=shades))
    return made


def are_near(one, other, config, with_text):
    """The definition, of two fingerprints."""
    if one.task != other.task or len(one.perceptual) != len(other.perceptual):
        return False
    if one.task in with_text and one.text != other.text:
        return False
    bits = [(a ^ b).bit_count() for a, b in zip(one.perceptual, other.perceptual)]
    colours = [abs(x - y) for a, b in zip(one.colours, other.colours) for x, y in zip(a, b)]
    return max(bits) <= config.near_distance and max(colours) <= config.near_colour


def by_walking(made, config, among):
    """The definition: document after document, each against all that are kept."""
    with_text = {make_fingerprint("", task).task for task in config.near_with_text}
    kept, dropped = [], np.zeros(len(made), bool)
    for i, one in enumerate(made):
        if among[i] and one.perceptual:
            dropped[i] = any(are_near(one, other, config, with_text) for other in kept)
            if not dropped[i]:
                kept.append(one)
    return dropped


def compare(seed, count, distance, near_colour=24):
    rng = np.random.default_rng(seed)
    made = random_fingerprints(rng, count, distance)
    config = DuplicatesConfig(near_distance=distance, near_colour=near_colour)
    among = rng.random(count) < 0.9
    expected = by_walking(made, config, among)
    np.testing.assert_array_equal(near_duplicates(from_columns(to_columns(made)), config, among), expected)
    return np.mean(expected) if count else 0.0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 120),
    distance=st.integers(0, MAX_NEAR_DISTANCE),
    colour=st.sampled_from([0, 24, 255]),
)
def test_near_duplicates_are_those_of_comparing_with_all_before(seed, count, distance, colour):
    compare(seed, count, distance, colour)


@pytest.mark.parametrize("most", [1, 2, 7, 100])
@pytest.mark.parametrize("distance", [0, 3, 10])
def test_halves_give_the_same(monkeypatch, most, distance):
    """Where documents have more near pairs than are held at once."""
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", most)
    assert compare(most, 150, distance, near_colour=60) > 0.05


def test_small_chunks_give_the_same(monkeypatch):
    monkeypatch.setattr(duplicates, "_CHUNK", 3)
    compare(0, 100, 4)


def test_chains_keep_every_other_link():
    """0 - 1 - 2 - 3, each near the next alone: 1 goes for 0, so 2 stays, so 3 goes."""
    links = list(itertools.accumulate(range(1, 4), lambda bits, i: flip(bits, [4 * i, 4 * i + 1]), initial=1 << 60))
    columns = from_columns(to_columns([make_fingerprint(str(i), pictures=[bits]) for i, bits in enumerate(links)]))
    near = near_duplicates(columns, DuplicatesConfig(near_distance=2), np.ones(4, bool))
    assert near.tolist() == [False, True, False, True]
    near = near_duplicates(columns, DuplicatesConfig(near_distance=2), np.asarray([False, True, True, True]))
    assert near.tolist() == [False, False, True, False]


@pytest.mark.parametrize("distance", range(MAX_NEAR_DISTANCE + 1))
@pytest.mark.parametrize("documents", [10, 10**6, 10**9])
def test_near_hashes_share_a_table(distance, documents):
    tables = np.asarray(duplicates._tables(distance, documents), np.uint64)
    rng = np.random.default_rng(distance)
    for _ in range(300):
        difference = np.uint64(flip(0, rng.permutation(64)[:distance]))
        assert np.any(tables & difference == 0)


def test_every_pair_of_bits_is_outside_some_table():
    tables = duplicates._tables(2, 10**6)
    for pair in itertools.combinations(range(64), 2):
        assert any(int(table) & flip(0, pair) == 0 for table in tables)


def test_every_bit_is_in_some_table():
    assert np.bitwise_or.reduce(np.asarray(duplicates._tables(4, 10**6))) == np.uint64(2**64 - 1)


def test_pictures_without_hashes_are_refused():
    made = [make_fingerprint("a", pictures=[1]), make_fingerprint("b", pictures=[2])]
    columns = to_columns(made) | {
        "num_pictures": np.zeros(2, np.int32),
        "perceptual": np.zeros(0, np.uint64),
        "colours": np.zeros((0, 3), np.uint8),
    }
    with pytest.raises(UserError, match="no perceptual hashes"):
        near_duplicates(from_columns(columns), DuplicatesConfig(near_distance=0), np.ones(2, bool))


@settings(max_examples=50, deadline=None)
@given(hashes=st.lists(st.integers(0, 5)), most=st.integers(1, 3), data=st.data())
def test_repeats_are_all_past_the_first_few(hashes, most, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(hashes), max_size=len(hashes)))
    seen, expected = {}, []
    for value, here in zip(hashes, among):
        expected.append(here and seen.get(value, 0) >= most)
        seen[value] = seen.get(value, 0) + here
    found = repeats(np.asarray(hashes, np.uint64), np.asarray(among, bool), most)
    assert found.tolist() == expected


def many_columns(count, seed=0):
    """Columns of `count` documents of one picture: a tenth is a copy of another with some bits changed."""
    rng = np.random.default_rng(seed)
    perceptual = rng.integers(0, 2**63, count, np.uint64)
    copies = rng.permutation(count)[: count // 10]
    originals = rng.integers(0, count, len(copies))
    changes = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 63, (3, len(copies)), np.uint64))
    perceptual[copies] = perceptual[originals] ^ changes
    blank = to_columns([make_fingerprint("a", pictures=[0])])
    columns = {name: np.repeat(values, count, axis=0) for name, values in blank.items()}
    random = {name: rng.integers(1, 2**63, count, np.uint64) for name in ("key", "content", "pictures", "text")}
    return columns | random | {"perceptual": perceptual}


def test_two_hundred_thousand_documents_are_quick_and_small():
    """Generous limits: a machine with other work takes several times as long as an idle one."""
    columns = from_columns(many_columns(200_000))
    tracemalloc.start()
    start = time.perf_counter()
    near = near_duplicates(columns, DuplicatesConfig(near_distance=4), np.ones(len(columns), bool))
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.08 < near.mean() < 0.101
    assert seconds < 60 and peak < 300e6


def test_ten_thousand_pictures_that_all_look_alike_are_quick():
    """The most pairs there can be: one cluster in which nearly all are near each other."""
    rng = np.random.default_rng(0)
    columns = many_columns(10_000)
    flips = np.uint64(1) << rng.integers(0, 63, (2, 10_000), np.uint64)
    columns["perceptual"] = np.bitwise_or.reduce(flips) ^ np.uint64(1 << 40)
    start = time.perf_counter()
    near = near_duplicates(from_columns(columns), DuplicatesConfig(near_distance=4), np.ones(10_000, bool))
    assert near.sum() == 9_999 and time.perf_counter() - start < 60


def test_flat_pictures_of_all_colours_are_quick():
    """All hash to the same bits and are told apart by their colours alone."""
    rng = np.random.default_rng(0)
    columns = many_columns(4_000)
    columns["perceptual"] = np.zeros(4_000, np.uint64)
    columns["colours"] = rng.integers(0, 256, (4_000, 3)).astype(np.uint8)
    start = time.perf_counter()
    near = near_duplicates(from_columns(columns), DuplicatesConfig(near_distance=4), np.ones(4_000, bool))
    assert 0.9 < near.mean() < 1 and time.perf_counter() - start < 60


def test_videos_that_all_begin_with_the_same_picture_are_quick():
    """They are looked up by another of their pictures."""
    columns, count = many_columns(100_000), 100_000
    pictures = np.zeros((count, 2), np.uint64)
    pictures[:, 1] = columns["perceptual"]
    columns |= {
        "num_pictures": np.full(count, 2, np.int32),
        "perceptual": pictures.ravel(),
        "colours": np.zeros((2 * count, 3), np.uint8),
    }
    start = time.perf_counter()
    near = near_duplicates(from_columns(columns), DuplicatesConfig(near_distance=4), np.ones(count, bool))
    assert 0.08 < near.mean() < 0.101 and time.perf_counter() - start < 60
