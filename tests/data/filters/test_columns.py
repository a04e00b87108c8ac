import dataclasses

import numpy as np
import pytest

from nextflow_jax.data.filters.columns import FingerprintColumns, concatenate, from_columns, to_columns
from nextflow_jax.errors import UserError
from tests.data.filters.conftest import make_fingerprint


def some(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        pictures = rng.integers(0, 2**63, rng.integers(0, 4)).tolist()
        colours = [tuple(colour) for colour in rng.integers(0, 256, (len(pictures), 3)).tolist()]
        made.append(make_fingerprint(f"{seed}/{i}", pictures=pictures, colours=colours, text="t" * (i % 2)))
    return made


def test_parts_put_together_are_the_columns_of_all_documents():
    first, second = some(7), some(5, seed=1)
    joined = concatenate([to_columns(first), to_columns([]), to_columns(second)])
    whole = from_columns(to_columns(first + second))
    assert len(joined) == 12
    for field in dataclasses.fields(FingerprintColumns):
        one, other = getattr(joined, field.name), getattr(whole, field.name)
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_columns_hold_what_fingerprints_said():
    made = some(9)
    columns = from_columns(to_columns(made))
    starts = np.cumsum(columns.num_pictures) - columns.num_pictures
    for i, one in enumerate(made):
        own = slice(starts[i], starts[i] + columns.num_pictures[i])
        assert tuple(columns.perceptual[own].tolist()) == one.perceptual
        assert tuple(map(tuple, columns.colours[own].tolist())) == one.colours
        assert (columns.key[i], columns.text[i], columns.label[i]) == (one.key, one.text, one.label)


def test_no_parts_are_no_documents():
    assert len(concatenate([])) == 0


def test_a_missing_column_is_named():
    columns = to_columns(some(3))
    del columns["text"]
    with pytest.raises(UserError, match="no column text"):
        from_columns(columns)


@pytest.mark.parametrize("name", ["key", "num_pictures", "perceptual", "colours"])
def test_columns_of_other_lengths_are_refused(name):
    columns = to_columns(some(6))
    columns[name] = columns[name][:-1]
    with pytest.raises(UserError, match="different lengths"):
        from_columns(columns)


def test_other_columns_of_the_index_are_ignored():
    assert len(from_columns({**to_columns(some(3)), "bytes": np.zeros(99)})) == 3
