import numpy as np
import pytest

from nextflow_jax.data.drawing import Chances, DocumentTable, draw
from nextflow_jax.data.stream import DocumentStream, Pool

N = 200
TURNS = np.arange(N) % 2 == 0
"""Documents that can be turned around."""


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    length, condition = rng.integers(20, 40, N), rng.integers(1, 10, N)
    inverted = np.where(TURNS, length + 3, 0)
    return DocumentTable(length, condition, np.zeros(N, int), ("any",), inverted, length**2, condition**2, inverted**2)


def stream_of(limit=None):
    return DocumentStream((Pool("all", np.arange(N), limit),), (1.0,), 0)


def test_what_is_drawn_fills_the_capacity_and_costs_what_the_table_says(table):
    found, ended = draw(stream_of(), table, Chances(0, 0.4, 0.5), 37, 3_000)
    assert not ended and 3_000 - 43 < found.lengths.sum() <= 3_000
    np.testing.assert_array_equal(found.records, stream_of().records(37, 37 + len(found.records)))
    assert found.dropped.any() and found.inverted.any() and not (found.dropped & found.inverted).any()
    assert not found.inverted[~TURNS[found.records]].any()
    own = found.records
    lengths = np.where(
        found.inverted, table.inverted_length[own], table.length[own] - found.dropped * table.condition[own]
    )
    np.testing.assert_array_equal(found.lengths, lengths)
    assert (found.pairs[found.inverted] == table.inverted_pairs[own][found.inverted]).all()
    dropped = found.dropped
    assert (found.pairs[dropped] == (table.pairs - table.condition_pairs)[own][dropped]).all()


def test_chance_belongs_to_the_position_whatever_was_drawn_before(table):
    chances = Chances(0, 0.4, 0.5)
    whole, _ = draw(stream_of(), table, chances, 0, 6_000)
    later, _ = draw(stream_of(), table, chances, 50, 2_000)
    for name in ("records", "dropped", "inverted", "lengths", "pairs"):
        np.testing.assert_array_equal(getattr(whole, name)[50 : 50 + len(later.records)], getattr(later, name))
    other, _ = draw(stream_of(), table, chances._replace(seed=1), 0, 6_000)
    assert not np.array_equal(whole.dropped[:100], other.dropped[:100])


@pytest.mark.parametrize(("limit", "ended"), [(300, False), (60, True), (1, True)])
def test_the_end_is_told_when_nothing_is_left_alone(table, limit, ended):
    found, told = draw(stream_of(limit), table, Chances(0, 0.0, 0.0), 0, 3_000)
    assert told == ended and (len(found.records) == limit) == ended


def test_lengths_are_expected_as_chance_makes_them(table):
    expected = table.expected_lengths(0.4, 0.5)
    found, _ = draw(stream_of(), table, Chances(0, 0.4, 0.5), 0, 200_000)
    assert found.lengths.mean() == pytest.approx(expected.mean(), rel=0.01)
    np.testing.assert_allclose(table.expected_lengths(1.0, 0.0), table.length - table.condition)
    np.testing.assert_allclose(table.expected_lengths(1.0, 1.0)[TURNS], table.inverted_length[TURNS])
