"""The blocked search against the whole table: the same codes, ties, draws and shapes; never a table in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.vision import nearest

CODES, WIDTH = 19, 3


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def whole(*shape, seed=0):
    """Small whole numbers: distances are exact and full of ties."""
    return jnp.asarray(np.random.default_rng(seed).integers(-1, 2, shape), jnp.float32)


def slow_distances(points, codes):
    return np.square(np.asarray(points, np.float64)[..., None, :] - np.asarray(codes, np.float64)).sum(axis=-1)


@functools.partial(jax.jit, static_argnames=("top_k", "block"))
def search(points, codes, top_k, block):
    return nearest.nearest_codes(points, codes, block), *nearest.near_codes(points, codes, top_k, block)


@pytest.mark.parametrize("values", [random, whole], ids=["random", "ties"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 7), (11,), (3, 1, 1)], ids=str)
def test_blocks_find_what_the_whole_table_has(values, shape):
    """Blocks of one position, of three that do not divide the rest, and the whole in one."""
    points, codes = values(*shape, WIDTH), values(CODES, WIDTH, seed=1)
    distances = slow_distances(points, codes)
    order = np.argsort(distances, axis=-1, kind="stable")[..., :4]
    for block in (1, 3 * CODES, nearest.BLOCK):
        found, near, candidates = search(points, codes, 4, block)
        np.testing.assert_array_equal(found, np.argmin(distances, axis=-1))
        np.testing.assert_array_equal(candidates, order)
        np.testing.assert_allclose(near, np.take_along_axis(distances, order, axis=-1), rtol=1e-4, atol=1e-5)


def test_the_lowest_of_equally_near_codes_is_chosen():
    distances = jnp.asarray([[3.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(nearest.smallest(distances), [1, 0])


def test_no_more_than_a_block_is_in_memory():
    """1,024 positions x 4,096 codes are 16 MB of distances; blocks of 64 KB a picture leave less than a megabyte."""
    points, codes = jax.ShapeDtypeStruct((2, 512, 8), jnp.float32), jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    memory = lambda block: search.lower(points, codes, 4, block).compile().memory_analysis().temp_size_in_bytes  # noqa: E731
    assert memory(2**14) < 2**20 < 2**24 <= memory(2**30)


def test_drawing_keeps_to_the_nearest_and_their_softmax():
    points, codes = jnp.zeros((4000, 1)), jnp.sqrt(jnp.asarray([[5.0], [0.0], [1.0], [0.5]]))
    near, candidates = nearest.near_codes(points, codes, 3)
    draws = nearest.draw_near(jax.random.key(0), near, candidates, 0.5)
    shares = np.bincount(np.asarray(draws), minlength=4) / 4000
    weights = np.exp(-np.array([0.0, 1.0, 0.5]) / 0.5)
    np.testing.assert_allclose(shares, [0.0, *(weights / weights.sum())], atol=0.03)


def test_no_gradient_passes_and_none_is_in_the_way():
    @jax.jit
    @jax.grad
    def gradient(points):
        codes = nearest.nearest_codes(points, whole(CODES, WIDTH), 1)
        near, _ = nearest.near_codes(points, whole(CODES, WIDTH), 2, 1)
        return jnp.sum(points * codes[..., None]) + jnp.sum(near)

    points = random(2, 3, WIDTH)
    expected = nearest.nearest_codes(points, whole(CODES, WIDTH))
    np.testing.assert_array_equal(gradient(points)[..., 0], expected)


@pytest.mark.parametrize("axes", [("data", None), (None, "tensor"), ("data", "tensor")], ids=str)
def test_a_split_batch_and_a_split_codebook_find_the_same(axes):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = lambda array, axis: jax.device_put(array, jax.NamedSharding(mesh, jax.P(axis)))  # noqa: E731
    points, codes = whole(4, 5, WIDTH), whole(18, WIDTH, seed=1)
    split = search(place(points, axes[0]), place(codes, axes[1]), 3, 2 * 18)
    for ours, theirs in zip(split, search(points, codes, 3, nearest.BLOCK)):
        np.testing.assert_array_equal(ours, theirs)
