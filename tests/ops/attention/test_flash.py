"""The flash kernels are the reference, interpreted; they visit only tiles that ranges touch and lower for CUDA."""

import functools

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from nextflow_jax.ops.attention import flash, reference
from nextflow_jax.ops.attention.flash_tiles import Tile
from nextflow_jax.ops.attention.flash_tiles import visits as eager_visits
from tests.ops.attention.cases import assert_close, attend_in_loops, packed_ranges, random_case, value_and_gradients

visits = jax.jit(eager_visits, static_argnums=(2, 3))
SMALL = Tile(queries=16, keys=16, warps=4, stages=2)
CASES = [
    (32, 32, 4, 4, SMALL),
    (37, 37, 6, 2, SMALL),
    (20, 37, 4, 1, Tile(16, 32, 4, 2)),
    (1, 40, 6, 2, None),
]
"""S, M, H, G, tile: whole tiles, a rest and three heads a group, more keys than queries, one query as in decoding."""


@pytest.mark.parametrize(("length", "keys", "heads", "groups", "tile"), CASES)
def test_values_and_gradients_are_the_references(length, keys, heads, groups, tile):
    case = random_case(0, length, keys, heads, groups, size=16)
    got = value_and_gradients(flash.attend, *case, tile=tile)
    assert_close(got, value_and_gradients(reference.attend, *case), 1e-6)


def test_packed_documents_with_tiles_that_need_no_mask():
    q, k, v, _, _ = random_case(1, 112, 112, 4, 2, size=16, rows=1)
    ranges = packed_ranges((0, 7, 80, 105), 112)
    by_queries, by_keys = visits(*ranges, 112, SMALL)
    assert (by_queries[..., 2] > by_queries[..., 1]).any() and (by_keys[..., 2] > by_keys[..., 1]).any()
    got = value_and_gradients(flash.attend, q, k, v, *ranges, tile=SMALL)
    assert_close(got, value_and_gradients(reference.attend, q, k, v, *ranges), 1e-6)


def test_bfloat16_agrees_to_its_rounding():
    case = random_case(2, 48, 48, 4, 1, size=16, dtype=jnp.bfloat16)
    got = value_and_gradients(flash.attend, *case, tile=SMALL)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    exact = value_and_gradients(reference.attend, *(x.astype(jnp.float32) for x in case[:3]), *case[3:])
    assert_close(got, exact, 0.02)


def test_queries_that_see_nothing_get_zeros_and_give_none():
    q, k, v, start, _ = random_case(3, 20, 20, 2, 1, size=16)
    for value in value_and_gradients(flash.attend, q, k, v, start, start, tile=SMALL):
        np.testing.assert_array_equal(value, 0.0)


def test_tiles_that_no_range_touches_are_not_read():
    q, k, v, _, _ = random_case(4, 32, 80, 2, 1, size=16, rows=1)
    start = jnp.full((1, 32), 18).at[0, 16:].set(33)
    end = jnp.full((1, 32), 30).at[0, 16:].set(60)
    untouched = (np.arange(80) < 16) | (np.arange(80) >= 64)
    poison = jnp.where(untouched[None, :, None, None], jnp.nan, 0.0)
    clean = value_and_gradients(flash.attend, q, k, v, start, end, tile=SMALL)
    got = value_and_gradients(flash.attend, q, k + poison, v + poison, start, end, tile=SMALL)
    for a, b in zip(got, clean, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_decoding_step_reads_the_filled_part_of_the_cache_alone():
    q, k, v, _, _ = random_case(5, 2, 160, 4, 2, size=16)
    start, end = jnp.zeros((2, 2), jnp.int32), jnp.asarray([[50, 51], [3, 4]], jnp.int32)
    filled = jnp.arange(160)[None, :, None, None] < 64
    poisoned = [jnp.where(filled, x, jnp.nan) for x in (k, v)]
    np.testing.assert_allclose(flash.attend(q, *poisoned, start, end), attend_in_loops(q, k, v, start, end), atol=2e-6)


def plain_visits(start, end, keys, tile):
    """Who sees whom in each pair of tiles, from the dense mask: (some, all) [I, J]."""
    mask = np.asarray(reference.visible_keys(start, end, keys))[0]
    mask = np.pad(mask, ((0, -mask.shape[0] % tile.queries), (0, -keys % tile.keys)))
    tiles = mask.reshape(mask.shape[0] // tile.queries, tile.queries, -1, tile.keys)
    return tiles.any((1, 3)), tiles.all((1, 3))


@pytest.mark.parametrize("edges", [(0, 90), (0, 3, 40, 41, 77, 90), (0, 16, 32, 80), (0, 60)])
@pytest.mark.parametrize("tile", [SMALL, Tile(16, 32, 4, 2), Tile(64, 16, 4, 2)])
def test_visits_are_exact_for_packed_documents(edges, tile):
    """Every tile with work is visited, none without; none masked that need not be."""
    start, end = packed_ranges(edges, 90)
    some, whole = plain_visits(start, end, 90, tile)
    by_queries, by_keys = (np.asarray(x)[0] for x in visits(start, end, 90, tile))
    for bounds, seen, unmasked in ((by_queries, some, whole), (by_keys, some.T, whole.T)):
        index = np.arange(seen.shape[1])
        first, whole_first, whole_last, last = (bounds[:, i, None] for i in range(4))
        np.testing.assert_array_equal((first <= index) & (index < last), seen)
        np.testing.assert_array_equal((whole_first <= index) & (index < whole_last), unmasked)


def test_visits_of_any_ranges_miss_nothing_and_mask_what_needs_it():
    for seed in range(20):
        _, _, _, start, end = random_case(seed, 50, 70, 1, 1, size=1, rows=1)
        some, whole = plain_visits(start, end, 70, SMALL)
        for bounds, seen, unmasked in zip(visits(start, end, 70, SMALL), (some, some.T), (whole, whole.T), strict=True):
            first, whole_first, whole_last, last = (np.asarray(bounds)[0, :, i, None] for i in range(4))
            index = np.arange(seen.shape[1])
            assert not (seen & ((index < first) | (index >= last))).any()
            assert not (~unmasked & (whole_first <= index) & (index < whole_last)).any()
            assert (first <= whole_first).all() and (whole_first <= whole_last).all() and (whole_last <= last).all()


SHAPES = [
    (2, 4096, 4096, 28, 4, 128, jnp.bfloat16),
    (1, 1000, 1000, 4, 2, 64, jnp.float32),
    (2, 1, 777, 14, 2, 64, jnp.bfloat16),
]
"""B, S, M, H, G, A, dtype: the 7B shape, ragged lengths, decoding."""


@pytest.mark.skipif(jaxlib.version.__version_info__ > (0, 10, 2), reason="lowering then needs the CUDA plugin's Triton")
@pytest.mark.parametrize(("rows", "length", "keys", "heads", "groups", "size", "dtype"), SHAPES)
def test_kernels_lower_for_cuda_without_a_gpu(rows, length, keys, heads, groups, size, dtype):
    """Forward and both backward kernels become Triton programs: every operation in them has a Triton lowering."""
    q = jax.ShapeDtypeStruct((rows, length, heads, size), dtype)
    k = jax.ShapeDtypeStruct((rows, keys, groups, size), dtype)
    ranges = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    attend = functools.partial(flash.attend, interpret=False)
    gradients = jax.jit(jax.grad(lambda q, k, v, start, end: attend(q, k, v, start, end).sum(), (0, 1, 2)))
    text = gradients.trace(q, k, k, ranges, ranges).lower(lowering_platforms=("cuda",)).as_text()
    for name in ("flash_forward", "flash_gradient_of_queries", "flash_gradients_of_keys"):
        assert text.count(f'name = "{name}"') == 1


def test_limits_name_what_is_wrong():
    def limit(size, dtype):
        return flash.limit(jnp.zeros((1, 1, 1, size), dtype), jnp.zeros((1, 1, 1, size), dtype))

    assert limit(128, jnp.bfloat16) == limit(64, jnp.float32) == ""
    assert "head size 96 is none of 16, 32" in limit(96, jnp.bfloat16)
    assert "int8 is none of bfloat16" in limit(64, jnp.int8)
