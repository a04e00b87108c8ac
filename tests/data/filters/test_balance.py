import collections

import numpy as np
import pytest

from nextflow_jax.data.filters.balance import over_caps
from nextflow_jax.data.filters.columns import from_columns, to_columns
from nextflow_jax.data.filters.config import BalanceConfig
from tests.data.filters.conftest import make_fingerprint

SIZES = {"cat": 40, "dog": 10, "owl": 3, "": 25}


def labelled(seed=0):
    made = [make_fingerprint(f"{label}/{i}", label=label) for label, count in SIZES.items() for i in range(count)]
    return [made[i] for i in np.random.default_rng(seed).permutation(len(made))]


def stay(made, config, seed=0, kept=None):
    """The documents that stay."""
    kept = np.ones(len(made), bool) if kept is None else kept
    over = over_caps(from_columns(to_columns(made)), config, kept, seed)
    assert not np.any(over & ~kept)
    return [one for one, left in zip(made, kept & ~over) if left]


def sizes(made):
    counts = collections.Counter(one.label for one in made)
    return {label: counts[make_fingerprint("", label=label).label] for label in SIZES}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BalanceConfig(max_per_label=10), {"cat": 10, "dog": 10, "owl": 3, "": 25}),
        (BalanceConfig(max_per_label=9), {"cat": 9, "dog": 9, "owl": 3, "": 25}),
        (BalanceConfig(max_per_label=100), SIZES),
        (BalanceConfig(max_times_median=1.5), {"cat": 15, "dog": 10, "owl": 3, "": 25}),
        (BalanceConfig(max_per_label=12, max_times_median=1.5), {"cat": 12, "dog": 10, "owl": 3, "": 25}),
        (BalanceConfig(max_times_median=0.01), {"cat": 1, "dog": 1, "owl": 1, "": 25}),
    ],
)
def test_labels_keep_as_many_as_their_cap(config, expected):
    assert sizes(stay(labelled(), config)) == expected


def test_which_ones_stay_depends_on_keys_and_seed_and_not_on_the_order():
    config = BalanceConfig(max_per_label=7)
    first = {one.key for one in stay(labelled(0), config)}
    assert first == {one.key for one in stay(labelled(1), config)}
    assert first != {one.key for one in stay(labelled(0), config, seed=1)}


def test_more_documents_push_out_some_and_bring_none_back():
    config = BalanceConfig(max_per_label=7)
    before = {one.key for one in stay(labelled(), config)}
    more = labelled() + [make_fingerprint(f"new/{i}", label="cat") for i in range(20)]
    old = {one.key for one in labelled()}
    assert {one.key for one in stay(more, config)} & old <= before


def test_documents_that_are_gone_do_not_count():
    made = labelled()
    cat = make_fingerprint("", label="cat").label
    cats = np.flatnonzero([one.label == cat for one in made])
    kept = np.ones(len(made), bool)
    kept[cats[8:]] = False
    assert sizes(stay(made, BalanceConfig(max_per_label=8), kept=kept))["cat"] == 8


def test_no_labels_no_cut():
    made = [make_fingerprint(str(i)) for i in range(9)]
    assert len(stay(made, BalanceConfig(max_per_label=1))) == 9
    assert stay([], BalanceConfig(max_per_label=1)) == []
