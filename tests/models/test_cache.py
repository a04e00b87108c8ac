import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.models.cache import make_cache
from nextflow_jax.sharding import MeshConfig, batch_sharding, logical_context, make_mesh, make_rules
from tests.models import random_rows


def test_rows_are_written_at_their_own_length_in_one_layer():
    config = random_rows.tiny_config()
    cache = make_cache(config, rows=3, slots=6).rewind(jnp.asarray([0, 2, 4], jnp.int32))
    rng = np.random.default_rng(0)
    keys, values = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 8)), jnp.float32)
    written = cache.write(jnp.int32(1), keys, values)
    expected = np.zeros((2, 3, 2, 6, 8))
    for row, slot in enumerate((0, 2, 4)):
        expected[1, row, :, slot : slot + 2] = np.swapaxes(keys[row], 0, 1)
    np.testing.assert_array_equal(written.keys, expected)
    np.testing.assert_array_equal(written.read(jnp.int32(1))[1][2, 4:], values[2])
    assert not written.read(jnp.int32(0))[0].any()
    np.testing.assert_array_equal(written.length, cache.length)


def test_a_row_without_room_stores_nothing_and_loses_nothing():
    cache = make_cache(random_rows.tiny_config(), rows=2, slots=5).rewind(jnp.asarray([2, 1], jnp.int32))
    written = cache.write(jnp.int32(0), jnp.ones((2, 4, 2, 8)), jnp.ones((2, 4, 2, 8)))
    assert written.capacity == 5
    np.testing.assert_array_equal(written.keys[0, :, 0, :, 0], [[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])


def test_only_what_is_within_reach_is_read():
    cache = make_cache(random_rows.tiny_config(), rows=2, slots=5).rewind(jnp.asarray([0, 1], jnp.int32))
    new = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 2, 8)), jnp.float32)
    written = cache.write(jnp.int32(1), new, 2 * new)
    whole, part = written.read(jnp.int32(1)), written.reaching(4).read(jnp.int32(1))
    assert [array.shape for array in whole] == [(2, 5, 2, 8)] * 2
    for all_of_it, first in zip(whole, part):
        np.testing.assert_array_equal(first, all_of_it[:, :4])
    assert written.reaching(9).reach.slots == 5


def test_the_cache_has_the_compute_dtype():
    cache = make_cache(random_rows.tiny_config(dtype="bfloat16"), rows=1, slots=2)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16


def test_rows_on_different_devices_write_without_communication():
    mesh, rules = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), make_rules()
    rows = batch_sharding(mesh, rules)
    new = jax.ShapeDtypeStruct((4, 2, 2, 8), jnp.float32, sharding=rows)
    length = jax.ShapeDtypeStruct((4,), jnp.int32, sharding=rows)

    def write(length, new):
        return make_cache(random_rows.tiny_config(), rows=4, slots=6).rewind(length).write(jnp.int32(1), new, new)

    with logical_context(mesh, rules):
        program = jax.jit(write).lower(length, new).compile().as_text()
    assert "scatter" in program
    assert not any(collective in program for collective in ("all-gather", "all-reduce", "all-to-all"))
