"""Splash attention, its kernels interpreted, against the reference: values, gradients and what is never touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.ops import attention
from nextflow_jax.ops.attention import reference, splash
from nextflow_jax.sharding import MeshConfig

BLOCK = 128


def packed_ranges(seed, length):
    """Documents of text, then for half of them scales of 1, 4, 9, ... positions that see to their own end."""
    rng = np.random.default_rng(seed)
    start, end, first = np.zeros(length, np.int32), np.zeros(length, np.int32), 0
    while first < length:
        stop = min(first + int(rng.integers(20, 150)), length)
        start[first:stop] = first
        end[first:stop] = np.arange(first, stop) + 1
        at, side = first + 5, 1
        while at < stop and rng.random() < 0.9:
            end[at : at + side**2] = min(at + side**2, stop)
            at, side = at + side**2, side + 1
        first = stop
    return start, end


def arrays(seed, ranges, keys, heads, groups, size=8, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    rows, length = len(ranges), len(ranges[0][0])
    q = rng.normal(size=(rows, length, heads, size))
    k, v = rng.normal(size=(2, rows, keys, groups, size))
    start, end = (jnp.asarray(np.stack(x), jnp.int32) for x in zip(*ranges))
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), start, end


def value_and_gradients(attend, q, k, v, start, end):
    mix = jnp.asarray(np.random.default_rng(9).normal(size=q.shape), jnp.float32)

    def weighted(q, k, v):
        out = attend(q, k, v, start, end)
        return jnp.sum(mix * out.astype(jnp.float32)), out

    (_, out), gradients = jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


kernels = functools.partial(splash.attend, blocks=(BLOCK, BLOCK))
interpreted = jax.jit(functools.partial(value_and_gradients, kernels))
expected_of = jax.jit(functools.partial(value_and_gradients, reference.attend))


def scattered_ranges(seed, length, keys):
    """Ranges as a cache's queries have, of any place and length, some of them empty; a whole block sees nothing."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, keys + 1, length)
    end = np.minimum(start + rng.integers(0, keys // 2, length), keys)
    start[BLOCK : 2 * BLOCK] = end[BLOCK : 2 * BLOCK] = keys
    return start, end


CASES = {
    "two packed rows, grouped heads": lambda: arrays(0, [packed_ranges(0, 256), packed_ranges(1, 256)], 256, 4, 2),
    "a rest of a block": lambda: arrays(1, [packed_ranges(2, 200)], 200, 2, 2),
    "a cache, a block of empty ranges": lambda: arrays(2, [scattered_ranges(3, 300, 380)], 380, 3, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_reference(case):
    case = CASES[case]()
    for got, expected in zip(interpreted(*case), expected_of(*case), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_bfloat16_is_as_close_as_its_rounding():
    case = arrays(3, [packed_ranges(4, 256)], 256, 2, 1, size=32, dtype=jnp.bfloat16)
    exact = expected_of(*(x.astype(jnp.float32) for x in case[:3]), *case[3:])
    for got, expected in zip(interpreted(*case), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=0.01 * float(jnp.abs(expected).max()))


def test_blocks_that_no_range_touches_are_never_read():
    """Not-a-number in the second block of keys: who sees a key of that block is poisoned, nobody else."""
    start = np.r_[np.zeros(128), np.full(128, 128), np.zeros(128)]
    end = np.r_[np.full(128, 100), np.full(128, 256), np.full(128, 128)]
    q, k, v, start, end = arrays(4, [(start, end)], 384, 2, 1)
    poison = jnp.zeros_like(k).at[:, 128:256].set(jnp.nan)
    out, dq, dk, dv = interpreted(q, k + poison, v + poison, start, end)
    clean = interpreted(q, k, v, start, end)
    for got, expected in ((out, clean[0]), (dq, clean[1])):
        assert np.isnan(got[:, 128:256]).all()
        np.testing.assert_array_equal(np.delete(got, slice(128, 256), 1), np.delete(expected, slice(128, 256), 1))
    for got, expected in ((dk, clean[2]), (dv, clean[3])):
        np.testing.assert_array_equal(got[:, :128], expected[:, :128])


def test_touched_blocks_are_those_with_a_visible_pair():
    for seed in range(20):
        start, end = scattered_ranges(seed, 512, 768) if seed % 2 else packed_ranges(seed, 768)
        visible = reference.visible_keys(jnp.asarray(start)[None], jnp.asarray(end)[None], 768)
        expected = np.asarray(visible).reshape(-1, 128, 3, 256).any(axis=(1, 3))
        got = splash.touched_blocks(jnp.asarray(start), jnp.asarray(end), 768, 128, 256)
        np.testing.assert_array_equal(got, expected)


def test_a_step_without_work_loads_nothing_new():
    touched = jnp.asarray([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]], bool)
    expected = [[1, 1, 4, 4, 4, 4], [0, 0, 0, 0, 0, 0], [0, 5, 5, 5, 5, 5]]
    np.testing.assert_array_equal(splash._block_to_load(touched), expected)


def test_ranges_reach_the_last_of_65536_keys():
    start = jnp.asarray([0, 65535, 40000, 65535, 7], jnp.int32)
    end = jnp.asarray([65536, 65536, 40001, 65535, 7], jnp.int32)
    packed = splash._pack(start, end)
    keys = jnp.asarray([0, 7, 32767, 32768, 40000, 65535], jnp.int32)
    expected = (start[:, None] <= keys) & (keys < end[:, None])
    np.testing.assert_array_equal(splash._sees(packed[:, None], keys[None]), expected)


def test_many_rows_go_through_a_loop():
    q, k, v, start, end = arrays(5, [packed_ranges(row, 128) for row in range(6)], 128, 1, 1)
    looped = jax.jit(kernels)(q, k, v, start, end)
    np.testing.assert_allclose(looped, reference.attend(q, k, v, start, end), atol=1e-5)


@pytest.mark.parametrize("config", [MeshConfig(data=2, tensor=2, context=2)])
def test_on_eight_devices_it_equals_one(config):
    case = arrays(6, [packed_ranges(7, 256), packed_ranges(8, 256)], 256, 2, 2)
    expected = expected_of(*case)
    with sharding.logical_context(sharding.make_mesh(config), sharding.make_rules()):
        named = functools.partial(attention.attend, implementation="splash")
        got = jax.jit(functools.partial(value_and_gradients, named))(*case)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_limits_are_named_and_auto_goes_round_them(monkeypatch, caplog):
    few = arrays(7, [packed_ranges(0, 64)], 64, 1, 1)
    with pytest.raises(UserError, match="attention 'splash': fewer than 128 queries a row"):
        attention.attend(*few, implementation="splash")
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    attention._say.cache_clear()
    with caplog.at_level("INFO", "nextflow_jax.ops.attention"):
        assert attention.resolve("auto", *few[:2]) is attention.IMPLEMENTATIONS[attention.FALLBACK]
        assert attention.resolve("auto", *few[:2]) is attention.IMPLEMENTATIONS[attention.FALLBACK]
        assert attention.resolve("auto", *arrays(8, [packed_ranges(0, 256)], 256, 1, 1)[:2]) is splash.attend
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "fewer than 128" in messages[0] and messages[1].endswith("on tpu: splash")
    attention._say.cache_clear()
