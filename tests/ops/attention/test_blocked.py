"""Blocked attention is the reference, reads only blocks that ranges touch, and holds no scores of a whole row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, PartitionSpec

from nextflow_jax.ops.attention import blocked, reference
from tests.ops.attention.cases import assert_close, attend_in_loops, packed_ranges, random_case, value_and_gradients

CASES = [(37, 37, 4, 2, 16, 8), (20, 33, 6, 1, 8, 16), (16, 40, 2, 2, 64, 64), (1, 24, 4, 2, 16, 5)]
"""S, M, H, G, blocks: several blocks with a rest, more keys than queries, one block, one query."""


def in_blocks(queries, keys):
    return functools.partial(blocked.attend, query_block=queries, key_block=keys)


@pytest.mark.parametrize(("length", "keys", "heads", "groups", "queries_a_block", "keys_a_block"), CASES)
def test_values_and_gradients_are_the_references(length, keys, heads, groups, queries_a_block, keys_a_block):
    case = random_case(0, length, keys, heads, groups)
    got = value_and_gradients(in_blocks(queries_a_block, keys_a_block), *case)
    np.testing.assert_allclose(got[0], attend_in_loops(*case), atol=2e-6)
    assert_close(got, value_and_gradients(reference.attend, *case), 1e-6)


def test_bfloat16_gradients_of_keys_are_summed_over_blocks_in_float32():
    """128 terms of one sign: summed in bfloat16, the small ones would be lost."""
    q, k, v, start, _ = random_case(3, 256, 16, 2, 1, dtype=jnp.bfloat16)
    start, end = jnp.zeros_like(start), jnp.full_like(start, 16)

    def gradient(attend, q, k, v):
        return jax.jit(jax.grad(lambda v: jnp.sum(attend(q, k, v, start, end).astype(jnp.float32))))(v)

    exact = gradient(reference.attend, *(x.astype(jnp.float32) for x in (q, k, v)))
    got = gradient(in_blocks(2, 8), q, k, v)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=0.01)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_agrees_to_its_rounding(dtype):
    case = random_case(10, 40, 40, 4, 2, dtype=dtype)
    got = value_and_gradients(in_blocks(16, 8), *case)
    assert all(x.dtype == dtype for x in got)
    assert_close(
        got, value_and_gradients(reference.attend, *(x.astype(jnp.float32) for x in case[:3]), *case[3:]), 0.02
    )


def test_queries_that_see_nothing_get_zeros_and_give_none():
    q, k, v, start, end = random_case(4, 24, 24, 2, 1)
    nothing = jnp.minimum(start, 20)
    for value in value_and_gradients(in_blocks(8, 8), q, k, v, nothing, nothing):
        np.testing.assert_array_equal(value, 0.0)


def visited_blocks(start, end, queries, keys):
    """Which key blocks some query block's ranges reach: [number of key blocks]."""
    seen = np.zeros(-(-int(end.max()) // keys) + 8, bool)
    for i in range(0, start.shape[1], queries):
        s, e = np.asarray(start[0, i : i + queries]), np.asarray(end[0, i : i + queries])
        seen[s.min() // keys : -(-e.max() // keys)] = True
    return seen


def test_blocks_that_no_range_touches_are_not_read():
    """A query's loop runs from the smallest start to the largest end of its block: NaN elsewhere poisons nobody."""
    q, k, v, _, _ = random_case(5, 16, 64, 2, 1, rows=1)
    start = jnp.full((1, 16), 17).at[0, 8:].set(30)
    end = jnp.full((1, 16), 24).at[0, 8:].set(41)
    untouched = np.repeat(~visited_blocks(start, end, 8, 8)[:8], 8)
    np.testing.assert_array_equal(np.flatnonzero(~untouched), np.arange(16, 48))
    poison = jnp.where(untouched[None, :, None, None], jnp.nan, 0.0)
    clean = value_and_gradients(in_blocks(8, 8), q, k, v, start, end)
    got = value_and_gradients(in_blocks(8, 8), q, k + poison, v + poison, start, end)
    for a, b in zip(got, clean, strict=True):
        np.testing.assert_array_equal(a, b)
    # The reference reads every key: the same poison reaches all its values.
    assert np.isnan(reference.attend(q, k + poison, v + poison, start, end)).all()


def test_a_decoding_step_reads_the_filled_part_of_the_cache_alone():
    q, k, v, start, _ = random_case(6, 1, 64, 4, 2)
    start, end = jnp.zeros_like(start), jnp.asarray([[19], [3]], jnp.int32)
    filled = jnp.arange(64)[None, :, None, None] < jnp.asarray([24, 8])[:, None, None, None]
    poisoned = [jnp.where(filled, x, jnp.nan) for x in (k, v)]
    got = jax.jit(in_blocks(8, 8))(q, *poisoned, start, end)
    np.testing.assert_allclose(got, attend_in_loops(q, k, v, start, end), atol=2e-6)


def test_one_program_serves_every_layout():
    attend = jax.jit(in_blocks(16, 16))
    q, k, v, _, _ = random_case(7, 64, 64, 2, 1, rows=1)
    for edges in [(0, 64), (0, 5, 30, 64), (0, 20)]:
        ranges = packed_ranges(edges, 64)
        np.testing.assert_allclose(attend(q, k, v, *ranges), attend_in_loops(q, k, v, *ranges), atol=2e-6)
    assert attend._cache_size() == 1


def transformed(attend):
    """The same attention, called through transformations."""

    def through_scan(*x):
        return jax.lax.scan(lambda _, row: (0, attend(*(y[None] for y in row))[0]), 0, x)[1]

    def through_vmap(*x):
        return jax.vmap(lambda *row: attend(*(y[None] for y in row))[0])(*x)

    mesh = Mesh(np.asarray(jax.devices()[:2]), ("rows",))
    spec = PartitionSpec("rows")
    through_shard_map = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 5, out_specs=spec, check_vma=False)
    return [through_scan, through_vmap, through_shard_map, jax.checkpoint(attend)]


@pytest.mark.parametrize("way", range(4), ids=["scan", "vmap", "shard_map", "remat"])
def test_transformations_change_nothing(way):
    case = random_case(8, 20, 24, 4, 2)
    attend = in_blocks(8, 8)
    assert_close(value_and_gradients(transformed(attend)[way], *case), value_and_gradients(attend, *case), 1e-6)


def largest_intermediate(jaxpr):
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size")]
        sizes += [largest_intermediate(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


def test_no_scores_of_whole_rows_are_held():
    q, k, v, start, end = random_case(9, 512, 512, 1, 1, size=2, rows=1)

    def cotangents(attend):
        return jax.make_jaxpr(jax.grad(lambda *x: attend(*x, start, end).sum(), (0, 1, 2)))(q, k, v).jaxpr

    assert largest_intermediate(cotangents(reference.attend)) >= 512 * 512
    assert largest_intermediate(cotangents(in_blocks(32, 32))) <= 2 * 512
