"""The cost of rows."""

import numpy as np

from nextflow_jax.data.costs import DEFAULT_COST, RowCost, estimated_pairs


def test_flops_are_linear_in_positions_and_pairs():
    cost = RowCost(3.0, 0.5)
    np.testing.assert_array_equal(cost.flops(np.asarray([10, 20]), np.asarray([4, 0])), [32.0, 60.0])
    assert cost.flops(2, 2) == 7.0


def test_causal_text_is_estimated_exactly():
    lengths = np.asarray([0, 1, 5, 100_000])
    counts = [np.tri(n, dtype=np.int8).sum(dtype=np.int64) for n in (0, 1, 5)]
    assert estimated_pairs(lengths).tolist() == [*counts, 100_000 * 100_001 // 2]


def test_attention_matters_less_than_everything_else_below_35_000_positions():
    assert DEFAULT_COST.flops(1, 35_000) == 2.0
