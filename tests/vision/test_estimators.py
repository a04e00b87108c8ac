"""Gradients past the choice of codes, against rotation matrices written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.vision import estimators


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation_matrix(source, target):
    """From one unit vector to another, within their plane: exp of their bivector, by its angle."""
    source, target = source / np.linalg.norm(source), target / np.linalg.norm(target)
    across = target - source * (source @ target)
    across /= np.linalg.norm(across)
    angle = np.arccos(np.clip(source @ target, -1, 1))
    plane = np.stack([source, across])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.eye(len(source)) + plane.T @ (turn - np.eye(2)) @ plane


@functools.partial(jax.jit, static_argnums=0)
def pulled(halves, features, target, upstream):
    """The rotation's value, and its gradients to features and target."""
    value, pull = jax.vjp(lambda e, q: estimators.rotation(e, q, halves), features, target)
    return value, pull(upstream)


@pytest.mark.parametrize("halves", [(5,), (2, 3)], ids=["single", "dual"])
def test_the_rotation_turns_gradients_half_by_half(halves):
    features, target, upstream = random(4, 5), random(4, 5, seed=1), random(4, 5, seed=2)
    value, (to_features, to_target) = pulled(halves, features, target, upstream)
    np.testing.assert_allclose(value, target, atol=1e-6)
    np.testing.assert_allclose(to_target, upstream)
    start = 0
    for width in halves:
        half = slice(start, start + width)
        for row in range(4):
            e, q = features[row, half], target[row, half]
            matrix = rotation_matrix(e, q) * np.linalg.norm(q) / np.linalg.norm(e)
            np.testing.assert_allclose(matrix @ e, q, atol=1e-5)
            np.testing.assert_allclose(to_features[row, half], matrix.T @ upstream[row, half], rtol=1e-3, atol=1e-4)
        start += width


def test_straight_through_copies_gradients():
    features, target, upstream = random(4, 5), random(4, 5, seed=1), random(4, 5, seed=2)
    value, pull = jax.vjp(estimators.straight_through, features, target)
    np.testing.assert_allclose(value, target, atol=1e-6)
    for gradient in pull(jnp.asarray(upstream)):
        np.testing.assert_allclose(gradient, upstream)


@pytest.mark.parametrize(("source", "target"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0)])
def test_vectors_without_a_rotation_have_finite_gradients(source, target):
    ones = jnp.ones((1, 3))
    value, (to_features, _) = pulled((3,), source * ones, target * ones, ones)
    np.testing.assert_allclose(value, target * ones)
    assert np.isfinite(to_features).all()
