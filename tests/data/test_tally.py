import numpy as np
import pytest

from nextflow_jax.data.tally import Grouping, Tally, count_groups, describe, imbalance

BY_TASK = Grouping(np.asarray([0, 1, 1, -1]), ("text", "edit"))
"""Of four records; the last belongs to none."""


def test_groups_are_counted_by_batch_and_records_of_none_left_out():
    records, lengths, batch = np.asarray([0, 1, 2, 3, 1]), np.asarray([5, 7, 11, 13, 17]), np.asarray([0, 0, 2, 2, 2])
    documents, tokens = count_groups(BY_TASK, records, lengths, batch, 3)
    assert documents.tolist() == [[1, 1], [0, 0], [0, 2]]
    assert tokens.tolist() == [[5, 7], [0, 0], [0, 28]]


def tally_of(batches, groups):
    """Of batches of (rows, documents, tokens, inverted); ten positions a row; `groups`: documents, half the tokens."""
    rows, documents, tokens, inverted = np.asarray(batches).T
    counts = np.asarray(groups)
    return Tally(rows, rows * 10, documents, tokens, inverted, np.linspace(1, 2, len(rows)), ((counts, 2 * counts),))


def test_a_description_weighs_batches_by_what_they_hold():
    first = tally_of([(2, 3, 6, 0), (2, 1, 2, 1)], [(3, 0), (0, 1)])
    second = tally_of([(2, 4, 8, 1)], [(4, 0)])
    found = describe([first, second], [BY_TASK], with_inverted=True)
    assert found == pytest.approx({
        "padding_share": 1 - 16 / 60, "documents_per_row": 8 / 6, "cost_imbalance": 4 / 3,
        "documents/text": 7 / 8, "tokens/text": 14 / 16, "documents/edit": 1 / 8, "tokens/edit": 2 / 16,
        "documents/inverted": 2 / 8,
    })  # fmt: skip
    part = describe([first.part(1, 2)], [BY_TASK], with_inverted=False)
    assert part == {
        "padding_share": 0.9, "documents_per_row": 0.5, "cost_imbalance": 2.0, "documents/edit": 1.0,
        "tokens/edit": 1.0,
    }  # fmt: skip


def test_batches_of_padding_alone_are_described():
    found = describe([tally_of([(2, 0, 0, 0)], [(0, 0)])], [BY_TASK], with_inverted=True)
    assert found == {
        "padding_share": 1.0, "documents_per_row": 0.0, "cost_imbalance": 1.0, "documents/inverted": 0.0,
    }  # fmt: skip


def test_imbalance_is_the_dearest_group_over_the_mean():
    costs = np.asarray([1, 1, 1, 1, 3, 3, 1, 1.0])
    assert imbalance(costs, 4, 2).tolist() == [1.0, 1.5]
    assert imbalance(costs, 4, 4).tolist() == [1.0, 1.5]
    assert imbalance(costs, 4, 1).tolist() == [1.0, 1.0]
