import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.data.packing import STRATEGIES, pack_fixed_length

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


def first_fit_decreasing(lengths, row_length):
    """Documents one by one, in plain loops."""
    rows, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r in range(len(rows)) if room[r] >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(i)
        room[row] -= lengths[i]
    return [sorted(row) for row in rows]


def next_fit(lengths, row_length):
    """Rows of documents in order, a new one when the next does not fit."""
    rows, room = 0, 0
    for length in lengths:
        if length > room:
            rows, room = rows + 1, row_length
        room -= length
    return rows


@settings(max_examples=150, deadline=None)
@given(LENGTHS)
def test_equals_first_fit_decreasing_one_by_one(lengths):
    packed = [row.tolist() for row in pack_fixed_length(np.asarray(lengths, np.int64), 64)]
    assert packed == first_fit_decreasing(lengths, 64)
    assert len(packed) <= next_fit(lengths, 64)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS)
def test_every_document_is_whole_in_one_row_and_no_row_overfills(strategy, lengths):
    lengths = np.asarray(lengths, np.int64)
    rows = STRATEGIES[strategy](lengths, 64)
    assert np.array_equal(np.sort(np.concatenate([np.empty(0, int), *rows])), np.arange(len(lengths)))
    assert all(lengths[row].sum() <= 64 for row in rows)


def test_many_short_documents_leave_almost_no_padding():
    lengths = np.random.default_rng(0).integers(10, 1500, 20_000)
    rows = pack_fixed_length(lengths, 4096)
    assert lengths.sum() / (len(rows) * 4096) > 0.999


@pytest.mark.parametrize("length", [0, 65])
def test_a_document_that_no_row_holds_is_refused(length):
    with pytest.raises(ValueError, match="do not fit"):
        pack_fixed_length(np.asarray([3, length]), 64)
