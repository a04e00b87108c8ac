"""Pieces on devices: stacks filled entry by entry, short arrays padded, replicas read once, any sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextflow_jax.convert.mapping import Piece
from nextflow_jax.convert.placement import place

MESH = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("a", "b"))
STACK = np.random.default_rng(0).standard_normal((2, 3, 8, 4)).astype(np.float32)


def target(shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, PartitionSpec(*spec)))


@pytest.mark.parametrize("spec", [(), (None, None, "b", "a"), ("a", None, "b"), (None, None, ("a", "b"))])
def test_a_stack_is_filled_entry_by_entry(spec):
    pieces = [Piece("x", index, STACK[index].astype(jnp.bfloat16)) for index in np.ndindex(2, 3)]
    wanted = target(STACK.shape, *spec)
    made = place(iter(reversed(pieces)), {"x": wanted})["x"]
    assert made.sharding == wanted.sharding and made.dtype == jnp.float32
    np.testing.assert_array_equal(made, STACK.astype(jnp.bfloat16).astype(np.float32))


def test_a_short_array_fills_the_beginning_whatever_the_split():
    table = STACK[0, 0]
    for short in (table[:5], table[:3], table[:, :1]):
        made = np.asarray(place([Piece("x", (), short)], {"x": target((8, 4), "b", "a")})["x"])
        expected = np.zeros((8, 4), np.float32)
        expected[: short.shape[0], : short.shape[1]] = short
        np.testing.assert_array_equal(made, expected)


class Counted(np.ndarray):
    """An array that notes which parts are read."""

    def __getitem__(self, index):
        READS.append(index)
        return np.asarray(self)[index]


READS = []


def test_only_own_parts_are_read_and_each_once():
    counted = STACK[0, 0].view(Counted)
    READS.clear()
    place([Piece("x", (), counted)], {"x": target((8, 4), "b")})
    assert sorted((index[0].start, index[0].stop) for index in READS) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_the_source_is_copied():
    source = STACK[0, 0].copy()
    made = place([Piece("x", (), source)], {"x": target((8, 4))})["x"]
    source[:] = 0
    np.testing.assert_array_equal(made, STACK[0, 0])
