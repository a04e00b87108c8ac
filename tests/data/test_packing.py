import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.data.packing import STRATEGIES, Arranger, Packer, arrange_by_cost, pack_evenly, pack_fixed_length
from nextflow_jax.data.tally import imbalance

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
    rows = STRATEGIES[strategy].pack(lengths, 64, len(lengths))
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_are_what_the_plan_expects(strategy):
    assert isinstance(STRATEGIES[strategy].pack, Packer) and isinstance(STRATEGIES[strategy].arrange, Arranger)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_arranged_once_each(strategy):
    costs = np.random.default_rng(0).random(96)
    order = STRATEGIES[strategy].arrange(costs, 24, 4, np.random.default_rng(1))
    assert np.array_equal(np.sort(order), np.arange(96))


def long_tailed(count):
    """Mostly short lengths, the longest a quarter of a row."""
    generator = np.random.default_rng(0)
    return np.clip(generator.lognormal(5.5, 1.0, count).astype(np.int64), 10, 1000)


def test_documents_dealt_out_give_rows_of_nearly_equal_attention():
    """Beside first fit decreasing, which puts long documents together."""
    lengths = long_tailed(20_000)
    count = int(lengths.sum() / 4096 / 0.99)
    dealt, first_fit = pack_evenly(lengths, 4096, count), pack_fixed_length(lengths, 4096)

    def spread(rows):
        pairs = np.asarray([np.sum(lengths[row] ** 2) for row in rows], np.float64)
        return np.std(pairs) / np.mean(pairs)

    assert len(dealt) == count
    assert spread(dealt) < 0.4 * spread(first_fit)


def test_documents_that_fit_no_more_are_told():
    lengths = long_tailed(2_000)
    least = -(-int(lengths.sum()) // 4096)
    assert pack_evenly(lengths, 4096, least - 1) is None
    assert pack_evenly(lengths, 4096, least + 8) is not None
    assert pack_evenly(np.asarray([3, 3, 3]), 5, 2) is None


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_no_rank_waits_for_another(ranks):
    """A few rows cost a quarter more than all others."""
    generator = np.random.default_rng(0)
    costs = 1 + 0.02 * generator.random(16 * 128)
    costs[generator.choice(len(costs), 100, replace=False)] += 0.25
    order = arrange_by_cost(costs, 128, ranks, generator)
    by_chance = imbalance(costs[generator.permutation(len(costs))], 128, ranks).mean()
    assert imbalance(costs[order], 128, ranks).mean() <= min(1.02, by_chance)


def test_batches_of_equal_rows_are_random():
    orders = [arrange_by_cost(np.ones(64), 16, 4, np.random.default_rng(seed)) for seed in range(2)]
    assert not np.array_equal(*orders) and not np.array_equal(orders[0], np.arange(64))
