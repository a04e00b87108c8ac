import collections

import numpy as np
import pytest

from nextflow_jax.data.inspect.findings import Table, as_text, count_table, histogram, quantile_table, spread


def test_bins_double_and_hold_every_number():
    counts = {"a": collections.Counter({0: 2, 1: 3, 2: 5, 3: 7, 4: 1, 7: 1, 8: 1}), "b": collections.Counter({3: 1000})}
    table = histogram("Lengths", "tokens", counts)
    assert table.header == ("tokens", "a", "b")
    assert table.rows == (
        ("0", "2", "0"),
        ("1", "3", "0"),
        ("2-3", "12", "1,000"),
        ("4-7", "2", "0"),
        ("8-15", "1", "0"),
    )


def test_quantiles_are_numbers_that_occur():
    lengths = {"edit": np.arange(101), "empty": np.empty(0, np.int32)}
    table = quantile_table("Lengths", "task", "records", lengths, with_sum=True)
    assert table.header[:3] == ("task", "records", "sum")
    assert table.rows == (("edit", "101", "5,050", "0", "10", "50", "90", "99", "100"),)
    table = quantile_table("Sides", "pixels", "pictures", lengths, with_sum=False)
    assert table.header[:3] == ("pixels", "pictures", "least")
    assert table.rows == (("edit", "101", "0", "10", "50", "90", "99", "100"),)


def test_counts_are_sorted_by_their_labels():
    table = count_table("Counts", ("a", "b", "n"), {("y", "z"): [1000], ("x", "z"): [2]})
    assert table.rows == (("x", "z", "2"), ("y", "z", "1,000"))


def test_columns_are_aligned_numbers_to_the_right():
    text = as_text(Table("Title", ("name", "n"), (("long name", "7"), ("b", "1,000"))))
    assert text.splitlines() == ["Title", "  name           n", "  long name      7", "  b          1,000"]
    assert as_text(Table("Nothing", ("name", "n"), ())).splitlines() == ["Nothing", "  name  n"]


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (10, 10), (3, 10), (1, 1), (0, 5), (1000, 999)])
def test_spread_has_no_repeats_and_both_ends(total, wanted):
    chosen = spread(total, wanted).tolist()
    assert len(chosen) == len(set(chosen)) == min(total, wanted)
    assert not total or (chosen[0] == 0 and (wanted == 1 or chosen[-1] == total - 1))
