import pickle
import threading

import numpy as np
import pytest

from nextflow_jax.data.costs import RowCost
from nextflow_jax.data.mixture import MixtureConfig, make_stream
from nextflow_jax.data.packing import STRATEGIES, Strategy, arrange_at_random, pack_fixed_length
from nextflow_jax.data.plan import DocumentTable, Plan, PlanConfig
from nextflow_jax.data.segments import condition_pairs


@pytest.fixture(scope="module")
def index(shard_set):
    return shard_set.index("train")


def table_of(index):
    invertible = index.task == index.tasks.index("text_to_image")
    inverted_length = np.where(invertible, index.plain + index.inverted_context, 0)
    saved = condition_pairs(index.plain, index.condition)
    pairs, inverted_pairs = index.pairs, index.pairs + index.inverted_context_pairs
    return DocumentTable(
        index.plain, index.condition, index.task, index.tasks, inverted_length, pairs, saved, inverted_pairs
    )


def make_plan(index, seed=0, batch_size=3, window_batches=4, row_length=128, dropout=0.0, inversion=0.0, weights=(),
              packing="fixed_length", ranks=0):  # fmt: skip
    stream = make_stream(MixtureConfig(weights), index, np.ones(len(index), bool), seed)
    config = PlanConfig(seed, batch_size, window_batches, row_length, dropout, inversion, ranks)
    return Plan(config, stream, table_of(index), STRATEGIES[packing])


def contents(rows):
    return [(row.records.tolist(), row.dropped.tolist(), row.inverted.tolist()) for row in rows]


@pytest.mark.parametrize("shares", [{}, {"dropout": 0.5}, {"dropout": 0.3, "inversion": 0.5}], ids=str)
def test_a_batch_is_the_same_whatever_was_asked_before(index, shares):
    plan = make_plan(index, **shares)
    batches = [contents(plan.batch(n)) for n in range(30)]
    for n in (29, 17, 0, 8):
        assert contents(make_plan(index, **shares).batch(n)) == batches[n]
    for n in (3, 25, 11):
        assert contents(plan.batch(n)) == batches[n]


@pytest.mark.parametrize("packing", STRATEGIES)
def test_every_strategy_is_a_function_of_the_number_and_walks_the_stream(index, packing):
    plan = make_plan(index, packing=packing, batch_size=8, ranks=4, dropout=0.3)
    batches = [contents(plan.batch(n)) for n in range(24)]
    again = make_plan(index, packing=packing, batch_size=8, ranks=4, dropout=0.3)
    assert [contents(again.batch(n)) for n in (23, 5, 11)] == [batches[n] for n in (23, 5, 11)]
    seen = [record for batch in batches for records, _, _ in batch for record in records]
    stream = make_stream(MixtureConfig(), index, np.ones(len(index), bool), 0)
    assert sorted(seen) == sorted(stream.records(0, len(seen)).tolist())
    if packing == "pad_each_batch":
        assert seen == stream.records(0, len(seen)).tolist()


def test_the_budget_balances_ranks_where_fixed_length_does_not(index):
    plans = {name: make_plan(index, packing=name, batch_size=16, ranks=4) for name in STRATEGIES}
    found = {name: plan.statistics(0) for name, plan in plans.items()}
    assert found["compute_budget"]["cost_imbalance"] < found["fixed_length"]["cost_imbalance"]
    assert found["compute_budget"]["padding_share"] < 0.04 < 0.5 < found["pad_each_batch"]["padding_share"]


def test_the_imbalance_is_that_of_the_rows_laid_out(index):
    """The cost of each rank's rows from the visible pairs of their documents, padding seeing itself."""
    cost = RowCost(1.0, 0.01)
    stream = make_stream(MixtureConfig(), index, np.ones(len(index), bool), 0)
    config = PlanConfig(0, 8, 2, 128, 0.4, ranks=4, cost=cost)
    plan = Plan(config, stream, table_of(index), STRATEGIES["compute_budget"])
    expected = []
    for n in range(2):
        rows = []
        for row in plan.batch(n):
            length = (index.plain - row_condition(index, row))[row.records] if len(row.records) else np.zeros(0, int)
            pairs = index.pairs[row.records] - row.dropped * condition_pairs(index.plain, index.condition)[row.records]
            rows.append(128 + 0.01 * (pairs.sum() + 128 - length.sum()))
        ranks = np.asarray(rows).reshape(4, 2).sum(axis=1)
        expected.append(ranks.max() / ranks.mean())
    assert plan.statistics(0)["cost_imbalance"] == pytest.approx(np.mean(expected))


def row_condition(index, row):
    """Positions that the row's documents lost, by record."""
    lost = np.zeros(len(index), int)
    lost[row.records] = row.dropped * index.condition[row.records]
    return lost


def test_seeds_and_windows_give_other_batches(index):
    assert contents(make_plan(index, seed=0).batch(0)) != contents(make_plan(index, seed=1).batch(0))
    assert contents(make_plan(index, window_batches=5).batch(5)) != contents(make_plan(index).batch(5))


def test_batches_walk_the_stream_without_loss_or_repetition(index):
    plan = make_plan(index)
    stream = make_stream(MixtureConfig(), index, np.ones(len(index), bool), 0)
    seen, windows = [], 12
    for n in range(windows * 4):
        seen.extend(record for row in plan.batch(n) for record in row.records.tolist())
    assert len(seen) > 3 * len(index)
    assert sorted(seen) == sorted(stream.records(0, len(seen)).tolist())
    counts = np.bincount(seen, minlength=len(index))
    assert counts.max() - counts.min() <= 1


def test_rows_hold_what_fits_and_little_padding(index):
    plan = make_plan(index, batch_size=8, window_batches=8)
    for n in range(16):
        rows = plan.batch(n)
        assert len(rows) == 8 and all(index.plain[row.records].sum() <= 128 for row in rows)
    assert plan.statistics(0)["padding_share"] < 0.02


def test_statistics_are_those_of_the_window(index):
    plan = make_plan(index, weights=(("edit", 1.0), ("text", 3.0)))
    rows = [row for n in range(4, 8) for row in plan.batch(n)]
    records = np.concatenate([row.records for row in rows])
    tokens = index.plain[records]
    statistics = plan.statistics(6)
    is_text = index.task[records] == index.tasks.index("text")
    assert statistics["padding_share"] == pytest.approx(1 - tokens.sum() / (len(rows) * 128))
    assert statistics["documents_per_row"] == pytest.approx(len(records) / len(rows))
    assert statistics["documents/text"] == pytest.approx(is_text.mean())
    assert statistics["tokens/text"] == pytest.approx(tokens[is_text].sum() / tokens.sum())
    assert set(statistics) == {
        "padding_share", "documents_per_row", "cost_imbalance",
        "documents/text", "documents/edit", "tokens/text", "tokens/edit",
    }  # fmt: skip


def test_dropping_conditions_is_counted_in_the_lengths(index):
    plan = make_plan(index, dropout=1.0)
    rows = [row for n in range(8) for row in plan.batch(n)]
    lengths = [int((index.plain - index.condition)[row.records].sum()) for row in rows]
    assert all(row.dropped.all() for row in rows) and max(lengths) <= 128
    assert sum(lengths) / (len(rows) * 128) > 0.95
    assert plan.statistics(0)["padding_share"] == pytest.approx(1 - sum(lengths[:12]) / (12 * 128))


def test_text_to_image_alone_is_inverted_and_its_lengths_are_exact(index):
    """Nothing of an inverted document is dropped; without inversion the plan is what it was."""
    table = table_of(index)
    plan = make_plan(index, dropout=1.0, inversion=0.5)
    rows = [row for n in range(40) for row in plan.batch(n)]
    records, dropped, inverted = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("records", "dropped", "inverted")
    )
    can = table.inverted_length[records] > 0
    assert can.sum() > 150 and not inverted[~can].any()
    assert inverted[can].mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / can.sum()))
    np.testing.assert_array_equal(dropped, ~inverted)
    for row in rows:
        kept = np.where(row.inverted, table.inverted_length[row.records], (table.length - table.condition)[row.records])
        assert kept.sum() <= 128
    statistics = plan.statistics(0)
    here = np.concatenate([row.inverted for row in rows[:12]])
    assert statistics["documents/inverted"] == pytest.approx(here.mean())
    assert statistics["padding_share"] < 0.1


def test_share_of_dropped_conditions(index):
    plan = make_plan(index, dropout=0.2, batch_size=50, window_batches=10)
    dropped = np.concatenate([row.dropped for n in range(20) for row in plan.batch(n)])
    assert len(dropped) > 2000
    assert dropped.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / len(dropped)))


def test_one_document_may_fill_a_whole_window(index):
    longest = int(index.plain.max())
    plan = make_plan(index, batch_size=1, window_batches=1, row_length=longest)
    seen = [record for n in range(100) for row in plan.batch(n) for record in row.records.tolist()]
    assert sorted(set(seen)) == list(range(len(index)))


def test_rows_beyond_the_packed_ones_are_empty(index):
    """A packer whose last document never fits: the window gives up a row rather than a document."""

    def stubborn(lengths, row_length, rows=None):
        del rows
        return [*pack_fixed_length(lengths[:4], row_length), *([np.empty(0, int)] * 50 if len(lengths) > 4 else [])]

    stream = make_stream(MixtureConfig(), index, np.ones(len(index), bool), 0)
    plan = Plan(PlanConfig(0, 3, 4, 128, 0.0), stream, table_of(index), Strategy(stubborn, arrange_at_random))
    rows = [row for n in range(4) for row in plan.batch(n)]
    assert len(rows) == 12 and sum(len(row.records) for row in rows) == 4
    assert any(not len(row.records) for row in rows)


def test_threads_and_copies_in_other_processes_see_the_same_batches(index):
    plan = make_plan(index)
    expected = [contents(make_plan(index).batch(n)) for n in range(24)]
    found = {}

    def read(numbers):
        for n in numbers:
            found[n] = contents(plan.batch(n))

    threads = [threading.Thread(target=read, args=(range(part, 24, 4),)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(24)] == expected
    assert contents(pickle.loads(pickle.dumps(plan)).batch(23)) == expected[23]
