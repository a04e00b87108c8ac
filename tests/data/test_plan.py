import pickle
import threading

import numpy as np
import pytest

from nextflow_jax.data.costs import RowCost
from nextflow_jax.data.mixture import MixtureConfig, make_stream, resolve_mixture
from nextflow_jax.data.packing import STRATEGIES, Strategy, arrange_at_random, pack_fixed_length
from nextflow_jax.data.plan import DocumentTable, Phase, Plan, PlanConfig
from nextflow_jax.data.segments import condition_pairs
from nextflow_jax.data.tally import Grouping
from nextflow_jax.errors import UserError
from tests.data.made_index import make_index


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


MADE = {("text", "wiki"): 300, ("text", "books"): 40, ("edit", "own"): 100}


def make_phased(phases=(), config=None, dropout=0.0, inversion=0.0):
    """Three batches of four rows a window; by entry `text@wiki`, `text@books` and `edit`."""
    index = make_index(MADE)
    entries = ("text@wiki", "text@books", "edit")
    config = config or MixtureConfig(tuple((entry, 1.0) for entry in entries))
    mixture = resolve_mixture(config, index, np.ones(len(index), bool))
    stream = mixture.stream(mixture.document_weights(0, index.plain), 0)
    inverted = np.where(index.task == index.tasks.index("edit"), index.plain + 5, 0)
    zeros = np.zeros(len(index), np.int64)
    table = DocumentTable(
        index.plain, zeros, index.task, index.tasks, inverted, zeros, zeros, zeros,
        Grouping(index.source, tuple(f"@{name}" for name in index.sources)),
        Grouping(mixture.pool_of, tuple(pool.name for pool in mixture.pools)),
    )  # fmt: skip
    plan = Plan(PlanConfig(0, 4, 3, 64, dropout, inversion), stream, table, STRATEGIES["fixed_length"], phases)
    return plan, mixture, index


PHASES = (Phase(9, (0.0, 0.0, 1.0), 0.0), Phase(15, (1.0, 0.0, 1.0), 1.0))


def test_weights_and_inversion_change_at_their_batch():
    plan, mixture, index = make_phased(PHASES)
    rows = [plan.batch(n) for n in range(24)]
    entries = [np.concatenate([mixture.pool_of[row.records] for row in batch]) for batch in rows]
    inverted = [np.concatenate([row.inverted for row in batch]) for batch in rows]
    assert set(np.concatenate(entries[:9]).tolist()) == {0, 1, 2}
    assert set(np.concatenate(entries[9:15]).tolist()) == {2}
    assert set(np.concatenate(entries[15:]).tolist()) == {0, 2}
    assert not np.concatenate(inverted[:15]).any()
    assert (np.concatenate(inverted[15:]) == (np.concatenate(entries[15:]) == 2)).all()
    unchanged = make_phased()[0]
    assert [contents(batch) for batch in rows[:9]] == [contents(unchanged.batch(n)) for n in range(9)]


def test_batches_after_a_change_are_the_same_whatever_was_asked_before_and_in_another_process():
    plan = make_phased(PHASES)[0]
    batches = [contents(plan.batch(n)) for n in range(24)]
    for n in (23, 14, 8, 16, 0):
        assert contents(make_phased(PHASES)[0].batch(n)) == batches[n]
        assert contents(plan.batch(n)) == batches[n]
    assert contents(pickle.loads(pickle.dumps(plan)).batch(17)) == batches[17]


def test_entries_go_on_over_a_change():
    """No document of an entry comes again before all others of it have come, whatever the phases."""
    plan, mixture, _ = make_phased(PHASES)
    seen = np.concatenate([row.records for n in range(60) for row in plan.batch(n)])
    for number, pool in enumerate(mixture.pools):
        counts = np.bincount(seen, minlength=len(mixture.pool_of))[mixture.pool_of == number]
        assert counts.max() - counts.min() <= 1 and counts.sum() == np.count_nonzero(mixture.pool_of[seen] == number)
        assert plan.realised(50, 60)[f"epochs/{pool.name}"] == pytest.approx(counts.sum() / len(pool.records))


def test_phases_that_do_not_begin_with_a_window_are_refused():
    with pytest.raises(ValueError, match=r"phases \[10\] in windows of 3"):
        make_phased((Phase(10, (1.0, 1.0, 1.0), 0.0),))


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (2, 3), (1, 8), (5, 20)])
def test_what_is_realised_is_counted_over_the_batches_asked_for(first, stop):
    plan, mixture, index = make_phased(PHASES)
    rows = [row for n in range(first, stop) for row in plan.batch(n)]
    records = np.concatenate([row.records for row in rows])
    inverted = np.concatenate([row.inverted for row in rows])
    tokens = index.plain[records] + 5 * inverted
    found = make_phased(PHASES)[0].realised(first, stop)
    assert found == plan.realised(first, stop)
    assert found["padding_share"] == pytest.approx(1 - tokens.sum() / (len(rows) * 64))
    assert found["documents_per_row"] == pytest.approx(len(records) / len(rows))
    assert found["documents/inverted"] == pytest.approx(inverted.mean())
    groups = {"text": index.task[records] == index.tasks.index("text"), "text@books": mixture.pool_of[records] == 1}
    groups["@books"] = index.source[records] == index.sources.index("books")
    for name, own in groups.items():
        assert found.get(f"documents/{name}", 0.0) == pytest.approx(own.mean())
        assert found.get(f"tokens/{name}", 0.0) == pytest.approx(tokens[own].sum() / tokens.sum())
    before = np.concatenate([row.records for n in range(stop) for row in plan.batch(n)])
    assert found["epochs/edit"] == pytest.approx(np.count_nonzero(mixture.pool_of[before] == 2) / 100)


def test_statistics_outlive_the_windows_they_are_of(monkeypatch):
    monkeypatch.setattr("nextflow_jax.data.plan._KEPT_TALLIES", 2)
    plan = make_phased(PHASES)[0]
    expected = plan.realised(0, 3)
    plan.batch(40)
    assert plan.realised(0, 3) == expected and plan.realised(0, 42) == make_phased(PHASES)[0].realised(0, 42)


def capped(epochs):
    config = MixtureConfig((("text", 1.0), ("edit", 1.0)), max_epochs=(("text", epochs), ("edit", 2.0)))
    return make_phased(config=config)[0]


def test_the_data_end_with_a_message_and_never_repeat():
    """Of 340 texts and 200 edits, so much is left that it fills no window of 3 batches of 4 rows of 64 positions."""
    plan, length = capped(1.0), make_index(MADE).plain
    with pytest.raises(UserError, match="set config.train.steps to") as error:
        plan.batch(1_000)
    end = int(str(error.value).split("global batch ")[1].split(":")[0])
    assert end % 3 == 0
    seen = np.concatenate([row.records for n in range(end) for row in plan.batch(n)])
    counts = np.bincount(seen, minlength=440)
    edit = make_index(MADE).task == make_index(MADE).tasks.index("edit")
    left = np.where(edit, 2, 1) - counts
    assert left.min() >= 0 and 0 < (left * length).sum() <= 3 * 4 * 64
    with pytest.raises(UserError, match=f"the data end after global batch {end}: .* or raise config.pipeline.mixture"):
        plan.batch(end)
    plan.check_length(end)
    with pytest.raises(UserError, match=f"the data end after global batch {end}:"):
        capped(1.0).check_length(end + 1)


def test_long_runs_are_refused_by_their_mean_length(monkeypatch):
    monkeypatch.setattr("nextflow_jax.data.plan._PLANNED_AT_ONCE", 100)
    plan = capped(1.0)
    with pytest.raises(UserError, match="the data end after global batch 4"):
        plan.check_length(1_000)
    plan.check_length(40)
    assert plan._cursors == [0]


def test_a_mixture_with_an_endless_entry_has_no_end():
    config = MixtureConfig((("text", 1.0), ("edit", 1.0)), max_epochs=(("text", 1.0),))
    plan, mixture, _ = make_phased(config=config)
    plan.check_length(10**9)
    late = np.concatenate([row.records for row in plan.batch(90)])
    assert (mixture.pool_of[late] == 1).all()
