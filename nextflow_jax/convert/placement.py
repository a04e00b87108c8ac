"""Published arrays onto devices, one at a time: what is held on the host is one array's local part, and no tree."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nextflow_jax.convert.mapping import Piece


def place(pieces: Iterable[Piece], targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Puts pieces where they belong, each straight into its target's sharding.

    Stacked arrays are made on the devices and filled entry by entry, in place. A piece that is shorter than its target
    along an axis fills its beginning; the rest is zero. Each process reads what its own devices hold, through memory
    maps when the pieces are views of them.

    Args:
      pieces: from `mapping.stream`; values may be of a narrower dtype than their targets'.
      targets: flat name -> shape and dtype with a NamedSharding; all that the pieces name.

    Returns:
      The arrays by flat name.
    """
    placed: dict[str, jax.Array] = {}
    inserts: dict[str, Callable] = {}
    for target, index, piece in pieces:
        wanted = targets[target]
        part = jax.ShapeDtypeStruct(wanted.shape[len(index) :], wanted.dtype, sharding=_inner(wanted, len(index)))
        array = _array(piece, part)
        if index:
            if target not in placed:
                placed[target] = _zeros(wanted)
                inserts[target] = _inserter(wanted)
            array = inserts[target](placed[target], array, jnp.asarray(index, jnp.int32))
        # Otherwise the host would run ahead and hold every array that is on its way.
        placed[target] = jax.block_until_ready(array)
    return placed


def _array(piece: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    blocks: dict[tuple, np.ndarray] = {}

    def block(index: tuple[slice, ...]) -> np.ndarray:
        spans = tuple(one.indices(size)[:2] for one, size in zip(index, wanted.shape))
        if spans not in blocks:  # replicas share one
            blocks[spans] = _block(piece, spans, wanted.dtype)
        return blocks[spans]

    return jax.make_array_from_callback(wanted.shape, wanted.sharding, block, dtype=wanted.dtype)


def _block(piece: np.ndarray, spans: Sequence[tuple[int, int]], dtype: np.dtype) -> np.ndarray:
    """A copy of the part of `piece` within the spans, zeros beyond its end."""
    found = piece[tuple(slice(start, stop) for start, stop in spans)]
    shape = tuple(stop - start for start, stop in spans)
    if found.shape == shape:
        return np.array(found, dtype, order="C")
    block = np.zeros(shape, dtype)
    block[tuple(slice(size) for size in found.shape)] = found
    return block


def _zeros(wanted: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(wanted.shape, wanted.dtype), out_shardings=wanted.sharding)()


def _inserter(wanted: jax.ShapeDtypeStruct) -> Callable:
    def insert(stack: jax.Array, entry: jax.Array, index: jax.Array) -> jax.Array:
        axes = len(wanted.shape) - entry.ndim
        start = (*(index[axis] for axis in range(axes)), *([0] * entry.ndim))
        return jax.lax.dynamic_update_slice(stack, entry.reshape((1,) * axes + entry.shape), start)

    return jax.jit(insert, donate_argnums=0, out_shardings=wanted.sharding)


def _inner(wanted: jax.ShapeDtypeStruct, axes: int) -> NamedSharding:
    """The sharding of an entry of a stacked array: that of the stack without its first axes."""
    spec = tuple(wanted.sharding.spec) + (None,) * (len(wanted.shape) - len(wanted.sharding.spec))
    return NamedSharding(wanted.sharding.mesh, PartitionSpec(*spec[axes:]))
