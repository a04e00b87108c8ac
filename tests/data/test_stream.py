import collections
import dataclasses
import pickle

import numpy as np
import pytest

from nextflow_jax.data.stream import DocumentStream, Pool

SIZES = (40, 7, 150)
OF = np.repeat(np.arange(3), SIZES)


def stream_of(weights=(1.0, 2.0, 5.0), limits=(None, None, None), seed=0, block=100):
    numbers = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    pools = tuple(Pool(f"p{i}", records, limit) for i, (records, limit) in enumerate(zip(numbers, limits)))
    return DocumentStream(pools, weights, seed, block)


def given(stream, start, stop):
    """Documents of each pool."""
    return np.bincount(OF[stream.records(start, stop)], minlength=3)


CASES = [
    {},
    {"limits": (None, 21, None)},
    {"limits": (60, 21, None)},
    {"limits": (60, 21, 300)},
    {"limits": (1, 1, 1)},
    {"limits": (12, 25, 62)},
    {"weights": (1.0, 0.0, 1.0), "limits": (50, 1, None)},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_stretch_equals_the_whole_and_another_processs(case):
    stream = stream_of(**case)
    whole = stream.records(0, 700)
    rng = np.random.default_rng(0)
    for start, stop in [(0, 0), (99, 101), *np.sort(rng.integers(0, 700, (12, 2)), axis=1).tolist()]:
        ours = stream if start % 2 else pickle.loads(pickle.dumps(stream_of(**case)))
        np.testing.assert_array_equal(ours.records(start, stop), whole[start:stop])
        assert len(whole) < stop or ours.used_at(stop).tolist() == np.bincount(OF[whole[:stop]], minlength=3).tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pools_give_their_limit_and_their_documents_evenly(case):
    stream = stream_of(**case)
    whole = stream.records(0, 1_500)
    limits = [limit if weight else 0 for limit, weight in zip(case.get("limits", (None,) * 3), stream.weights)]
    ends = all(limit is not None for limit in limits)
    assert (stream.end == len(whole) == sum(limits)) if ends else (stream.end is None and len(whole) == 1_500)
    counts = collections.Counter(whole.tolist())
    for pool, limit in enumerate(limits):
        own = [counts[record] for record in np.flatnonzero(np.equal(OF, pool)).tolist()]
        assert max(own) - min(own) <= 1 and (limit is None or sum(own) == limit)


def test_the_share_of_an_exhausted_pool_goes_to_the_others_in_proportion():
    """Shares 1:2:5; the second ends after 21 documents, in the first block; from there it is 1:5 in every block."""
    stream = stream_of(limits=(None, 21, None))
    whole = OF[stream.records(0, 1_000)]
    last = int(np.flatnonzero(whole == 1)[-1])
    assert np.count_nonzero(whole == 1) == 21 and last < 99
    assert given(stream, last + 1, last + 101).tolist() == [17, 0, 83]
    assert given(stream, last + 101, last + 301).tolist() == [34, 0, 166]
    np.testing.assert_array_equal(stream.records(0, last + 1), stream_of().records(0, last + 1))


def test_every_segment_lasts_as_long_as_dealing_one_by_one_says():
    """Against a plain count: position by position, a pool is used until its limit."""
    stream = stream_of(limits=(33, 40, 61), block=10)
    whole = OF[stream.records(0, 1_000)]
    assert len(whole) == 134
    left = np.asarray((33, 40, 61))
    for pool in whole:
        left[pool] -= 1
        assert left[pool] >= 0
    exhausted = sorted(int(np.flatnonzero(whole == pool)[-1]) for pool in range(3))
    assert [segment.start for segment in stream._segments] == [0, *(position + 1 for position in exhausted)]


def test_changed_weights_go_on_where_the_pools_were():
    stream = stream_of(limits=(None, 21, None))
    later = stream.changed(333, (3.0, 0.0, 1.0))
    assert given(later, 333, 433).tolist() == [75, 0, 25]
    before = stream.records(0, 333)
    counts = collections.Counter([*before.tolist(), *later.records(333, 900).tolist()])
    for pool in (0, 2):
        own = [counts[record] for record in np.flatnonzero(np.equal(OF, pool)).tolist()]
        assert max(own) - min(own) <= 1
    np.testing.assert_array_equal(later.used_at(333), stream.used_at(333))
    again = later.changed(700, stream.weights)
    whole = again.records(700, 1_500)
    np.testing.assert_array_equal(again.records(900, 1_000), whole[200:300])
    assert given(again, 700, 800).tolist() == [17, 0, 83]
    with pytest.raises(ValueError, match="position 10 is before the stream's start, 333"):
        later.records(10, 400)


def test_a_pool_that_comes_back_goes_on():
    stream = stream_of(weights=(1.0, 1.0, 0.0), limits=(None, 10, None)).changed(10, (1.0, 0.0, 1.0))
    assert stream.changed(20, (0.0, 1.0, 0.0)).end == 20 + 10 - stream.used_at(20)[1]


def test_weights_are_kept_in_every_block_and_seeds_differ():
    stream = stream_of()
    for block in (0, 3, 17):
        counts = given(stream, 100 * block, 100 * (block + 1))
        assert counts.sum() == 100 and np.abs(counts - [12.5, 25, 62.5]).max() <= 0.5
    other = dataclasses.replace(stream, seed=1)
    assert not np.array_equal(other.records(0, 100), stream.records(0, 100))
