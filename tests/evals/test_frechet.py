import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.evals.frechet import GaussianStatistics, frechet_distance

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "frechet.npz")


def features(seed, count, width=6, spread=1.0, shift=0.0):
    return shift + spread * np.random.default_rng(seed).normal(size=(count, width))


def distance(a, b):
    return frechet_distance(GaussianStatistics.of(a), GaussianStatistics.of(b))


def exact(mean, covariance, count=1000):
    """Statistics that are what they say, without sampling."""
    return GaussianStatistics(count, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * (count - 1))


def test_the_distance_is_that_of_scipys_square_root():
    assert distance(GOLDEN["first"], GOLDEN["second"]) == pytest.approx(float(GOLDEN["distance"]), rel=1e-9)


def test_a_set_is_at_no_distance_from_itself():
    a = features(0, 40)
    assert distance(a, a) == pytest.approx(0, abs=1e-10)


def test_a_shift_costs_its_squared_length():
    a, shift = features(0, 40), np.arange(6.0)
    assert distance(a, a + shift) == pytest.approx(np.sum(shift**2))


def test_diagonal_covariances_have_a_closed_form():
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = np.sum((np.sqrt(first) - np.sqrt(second)) ** 2) + 3
    assert frechet_distance(exact(np.zeros(3), np.diag(first)), exact(np.ones(3), np.diag(second))) == pytest.approx(
        expected
    )


def test_covariances_that_commute_have_a_closed_form_in_any_basis():
    basis, _ = np.linalg.qr(features(1, 5, 5))
    first, second = (basis * values @ basis.T for values in ([1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]))
    expected = np.sum((np.sqrt([1, 2, 3, 4, 5]) - np.sqrt([5, 4, 3, 2, 1])) ** 2)
    assert frechet_distance(exact(np.zeros(5), first), exact(np.zeros(5), second)) == pytest.approx(expected)


def test_fewer_pictures_than_features_give_the_exact_distance_of_their_statistics():
    """In the 9 dimensions that 5 + 5 pictures span, nothing is singular in the sum; the other 31 are empty."""
    a, b = features(0, 5, 40), features(1, 5, 40, spread=2.0, shift=0.3)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)
    basis, _ = np.linalg.qr(np.concatenate([a, b]).T)
    inside = distance(a @ basis, b @ basis)
    assert distance(a, b) == pytest.approx(inside, rel=1e-9)
    # Two points each, at right angles: S1^(1/2) S2^(1/2) = 0, so the distance is the sum of both variances.
    first, second = np.zeros((2, 2, 40))
    first[0, 0], second[0, 1] = 2.0, 4.0
    assert distance(first, second) == pytest.approx(1 + 4 + 2 + 8)


def test_it_is_symmetric_and_grows_with_the_difference():
    a, near, far = features(0, 50), features(1, 50), features(2, 50, spread=3.0)
    assert distance(a, far) == pytest.approx(distance(far, a))
    assert distance(a, far) > distance(a, near) > 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 100))
def test_statistics_of_parts_merge_to_those_of_the_whole(sizes, seed):
    whole = features(seed, sum(sizes), 3, shift=1000.0)
    merged = GaussianStatistics.empty(3)
    for part in np.split(whole, np.cumsum(sizes)[:-1]):
        merged = merged.merge(GaussianStatistics.of(part))
    assert merged.count == len(whole)
    if len(whole) > 1:
        np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(whole, rowvar=False), rtol=1e-8, atol=1e-9)


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="needs two vectors"):
        _ = GaussianStatistics.of(features(0, 1)).covariance
