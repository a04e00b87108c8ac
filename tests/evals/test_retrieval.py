import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.evals import retrieval


def pictures(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 5, 3), dtype=np.uint8)


def test_distances_are_exact():
    queries, candidates = pictures(0, 4), pictures(1, 6)
    difference = queries[:, None].astype(np.int64) - candidates[None]
    assert np.array_equal(retrieval.squared_distances(queries, candidates), (difference**2).sum((2, 3, 4)))


def test_a_copy_finds_itself_and_another_picture_does_not():
    candidates = pictures(0, 8)
    distances = retrieval.squared_distances(candidates, candidates)
    assert retrieval.found(distances, np.arange(8)).all()
    assert not retrieval.found(distances, np.roll(np.arange(8), 1)).any()


def test_a_twin_of_the_wanted_picture_counts_as_found():
    candidates = pictures(0, 8)
    candidates[5] = candidates[2]
    distances = retrieval.squared_distances(candidates[[5]], candidates)
    assert retrieval.found(distances, np.array([2])).tolist() == [True]
    assert retrieval.found(distances, np.array([3])).tolist() == [False]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 2**31), st.integers(20, 40))
def test_chance_is_the_mean_over_all_random_answers(kinds, seed, count):
    """A small pool with twins: the chance level equals answering with every candidate in turn."""
    rng = np.random.default_rng(seed)
    choice = rng.integers(0, kinds, count)
    candidates = pictures(1, kinds)[choice]
    distances = retrieval.squared_distances(candidates, candidates)
    wanted = rng.integers(0, count, 6)
    answers = [np.full(6, answer) for answer in range(count)]
    exact = np.mean([retrieval.found(distances[answer], wanted) for answer in answers])
    assert retrieval.chance_found(candidates, wanted) == pytest.approx(exact)


def test_groups_base_and_variant():
    """Candidates 0, 1 are hands, 2, 3 feet; asked for hand 0, one answer looks like hand 1, the other like foot 2."""
    groups = ["hand", "hand", "foot", "foot"]
    distances = np.array([[4.0, 1.0, 9.0, 9.0], [2.0, 3.0, 1.0, 9.0]])
    wanted = np.array([0, 0])
    assert retrieval.right_group(distances, groups, wanted).tolist() == [True, False]
    assert retrieval.found_within_group(distances, groups, wanted).tolist() == [False, True]
    assert retrieval.chance_group(groups, wanted) == 0.5
    assert retrieval.chance_within_group([*groups, "hand"], wanted) == pytest.approx(1 / 3)
