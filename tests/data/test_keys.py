import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.data.keys import numpy_generator, small_seed, uniform_range


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_any_range_of_the_uniform_stream_equals_the_whole(a, b):
    start, stop = sorted((a, b))
    assert np.array_equal(uniform_range(start, stop, 3, "x"), uniform_range(0, 300, 3, "x")[start:stop])


def test_uniform_stream_is_uniform():
    draws = uniform_range(0, 100_000, 0, "x")
    assert abs(draws.mean() - 0.5) < 0.005 and abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02


def test_a_range_out_of_order_is_refused():
    with pytest.raises(ValueError, match="5:2"):
        uniform_range(5, 2, 0)


def test_streams_differ_by_seed_name_and_kind_of_name():
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, 0), (0, "0")]
    assert len({numpy_generator(*name).random() for name in names}) == len(names)


def test_small_seeds_fit_32_bits():
    seeds = [small_seed(0, "x", i) for i in range(1000)]
    assert len(set(seeds)) == 1000 and max(seeds) < 2**32
