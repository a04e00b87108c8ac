"""Resize maps against torch's, values worked out by hand and the properties that define each method."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.resize import resize_gather, resize_grid, resize_matrix
from tests.goldens.resize_arrays import GRIDS, features, pairs

METHODS = ("nearest", "bilinear", "bicubic", "area")
GOLDEN = np.load(pathlib.Path(__file__).parent / "goldens" / "resize.npz")


@pytest.mark.parametrize("method", METHODS)
def test_every_line_is_resized_as_torch_does_it(method):
    """All sizes that the 41 schedules of every level, VAR's and TokenFlow's have (of bicubic a fifth of them)."""
    expected, start = GOLDEN[method], 0
    for n_in, n_out in pairs()[method]:
        wanted = expected[start : start + n_in * n_out].reshape(n_out, n_in)
        np.testing.assert_allclose(
            resize_matrix(n_in, n_out, method), wanted, atol=1e-6, rtol=0, err_msg=f"{n_in} {n_out}"
        )
        start += n_in * n_out
    assert start == len(expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", range(len(GRIDS)))
def test_pictures_are_resized_as_torch_does_it(method, case):
    wanted = GOLDEN[f"picture/{method}/{case}"]
    np.testing.assert_allclose(resize_grid(features(case), GRIDS[case][1], method), wanted, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 4), (2, 3), (3, 4), (4, 3), (5, 2), (4, 4), (7, 16)])
def test_constants_are_kept(method, n_in, n_out):
    np.testing.assert_allclose(resize_matrix(n_in, n_out, method).sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_same_size_is_the_identity(method):
    np.testing.assert_array_equal(resize_matrix(5, 5, method), np.eye(5, dtype=np.float32))


def test_hand_computed_values():
    line = np.array([0.0, 1.0])
    np.testing.assert_allclose(resize_matrix(2, 4, "bilinear") @ line, [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(resize_matrix(2, 4, "nearest") @ line, [0, 0, 1, 1])
    np.testing.assert_allclose(resize_matrix(4, 3, "area") @ np.arange(4.0), [0.5, 1.5, 2.5])
    # a = -0.75, a quarter past sample 3: distances 1.25, 0.25, 0.75, 1.75
    np.testing.assert_allclose(
        resize_matrix(8, 16, "bicubic")[7, 2:6], [-0.10546875, 0.87890625, 0.26171875, -0.03515625], atol=1e-7
    )


def test_bicubic_keeps_straight_lines_away_from_the_edges():
    made = resize_matrix(12, 24, "bicubic") @ np.arange(12.0)
    np.testing.assert_allclose(made[6:18], (np.arange(24) + 0.5)[6:18] / 2 - 0.5, atol=0.06)


def test_grid_resize_is_the_same_for_numpy_and_jax_and_separable():
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    made = resize_grid(features, (6, 7), "bicubic")
    wanted = np.einsum("ab,cd,nbde->nace", resize_matrix(3, 6, "bicubic"), resize_matrix(4, 7, "bicubic"), features)
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    np.testing.assert_allclose(resize_grid(jnp.asarray(features), (6, 7), "bicubic"), wanted, atol=1e-5)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize(("source", "target"), [((1, 1), (2, 2)), ((1, 2), (3, 4)), ((3, 3), (4, 6)), ((2, 2), (2, 2))])
def test_gather_equals_the_matrices(method, source, target):
    index, weight = resize_gather(source, target, method)
    features = np.random.default_rng(1).normal(size=(*source, 3)).astype(np.float32)
    made = np.einsum("nt,ntc->nc", weight, features.reshape(-1, 3)[index])
    np.testing.assert_allclose(made.reshape(*target, 3), resize_grid(features, target, method), atol=1e-6)


def test_unknown_methods_are_refused():
    with pytest.raises(UserError, match="lanczos"):
        resize_matrix(2, 4, "lanczos")
    with pytest.raises(UserError, match="bicubic"):
        resize_gather((2, 2), (4, 4), "bicubic")
