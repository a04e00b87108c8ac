"""Attention on eight devices equals attention on one, values and gradients, however the mesh is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.ops import attention
from nextflow_jax.ops.attention import reference
from nextflow_jax.sharding import MeshConfig


def random_case(seed, rows, length, keys):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(rows, length, 4, 8))
    k, v = rng.normal(size=(2, rows, keys, 2, 8))
    start = rng.integers(0, keys + 1, (rows, length))
    end = np.minimum(start + rng.integers(0, keys, start.shape), keys)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    return [*arrays, *(jnp.asarray(x, jnp.int32) for x in (start, end))]


def value_and_gradients(attend, q, k, v, start, end):
    mix = jnp.asarray(np.random.default_rng(9).normal(size=q.shape), jnp.float32)
    weighted = lambda *x: jnp.sum(mix * attend(*x, start, end))  # noqa: E731
    return attend(q, k, v, start, end), jax.grad(weighted, (0, 1, 2))(q, k, v)


MESHES = [
    (MeshConfig(data=2, fsdp=1, tensor=2, context=2), 24),
    (MeshConfig(fsdp=2, context=4), 24),
    (MeshConfig(context=8), 24),
    (MeshConfig(data=2, tensor=2, context=2), 40),
]
"""Meshes and numbers of keys; 40 keys for 24 queries are a cache's; an eighth of 24 has no halves to exchange."""


@pytest.mark.parametrize(("config", "keys"), MESHES)
def test_values_and_gradients_equal_those_of_one_device(config, keys):
    case = random_case(0, 2, 24, keys)
    expected = jax.jit(functools.partial(value_and_gradients, reference.attend))(*case)
    mesh, rules = sharding.make_mesh(config), sharding.make_rules()
    with sharding.logical_context(mesh, rules):
        split = [NamedSharding(mesh, sharding.partition("x", x, "batch", *[None] * (x.ndim - 1))) for x in case]
        spread = [jax.device_put(x, place) for x, place in zip(case, split)]
        got = jax.jit(functools.partial(value_and_gradients, attention.attend))(*spread)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    parts = [config.fsdp * mesh.shape["data"], config.context, config.tensor, 1]
    assert got[0].addressable_shards[0].data.shape == tuple(n // p for n, p in zip(got[0].shape, parts))


def test_the_kernel_sees_its_part_alone():
    """Half the rows, half the heads, a quarter of the queries, and all keys."""
    seen = []

    def kernel(q, k, v, start, end):
        seen.append((q.shape, k.shape, v.shape, start.shape, end.shape))
        return q

    with sharding.logical_context(sharding.make_mesh(MeshConfig(tensor=2, context=4)), sharding.make_rules()):
        jax.eval_shape(functools.partial(attention.sharded, kernel), *random_case(0, 2, 24, 24))
    assert seen == [((2, 6, 2, 8), (2, 24, 1, 8), (2, 24, 1, 8), (2, 6), (2, 6))]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_devices_see_equally_much_of_a_causal_row(parts):
    """What a device counts comes back with each of its queries; in order, the last would count most of all."""

    def count(q, k, v, start, end):
        return jnp.broadcast_to((end - start).sum().astype(q.dtype), q.shape)

    q, k, v, start, _ = random_case(0, 1, 64, 64)
    end = jnp.arange(64, dtype=jnp.int32)[None] + 1
    with sharding.logical_context(sharding.make_mesh(MeshConfig(context=parts)), sharding.make_rules()):
        run = jax.jit(functools.partial(attention.sharded, count))
        counted = run(*(jnp.concatenate([x] * (8 // parts)) for x in (q, k, v, jnp.zeros_like(start), end)))
    np.testing.assert_array_equal(counted, 64 * 65 / 2 / parts)


def test_what_the_mesh_does_not_divide_is_refused_by_name():
    mesh, refusal = sharding.make_mesh(MeshConfig(context=8)), "'sequence' = 20 is not divisible by 8"
    with sharding.logical_context(mesh, sharding.make_rules()), pytest.raises(UserError, match=refusal):
        attention.attend(*random_case(0, 1, 20, 20))
