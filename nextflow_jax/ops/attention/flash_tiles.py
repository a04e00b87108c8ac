"""Tiles of the flash kernels: which meet, which need no mask, and how a kernel walks over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Int

Ref = Any
"""A Pallas reference to an array in the GPU's memory."""


class Tile(NamedTuple):
    """Queries and keys that meet at once in a kernel, and how many warps and pipeline stages Triton gives it."""

    queries: int
    keys: int
    warps: int
    stages: int

    def parameters(self) -> triton.CompilerParams:
        """What the compiler takes."""
        return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)


def visits(
    start: Int[Array, "B S"], end: Int[Array, "B S"], keys: int, tile: Tile
) -> tuple[Int[Array, "B I 4"], Int[Array, "B J 4"]]:
    """For each tile of queries the tiles of keys to visit, and for each tile of keys the tiles of queries.

    Four numbers each: from the first on, masked; from the second on, without a mask, since everybody there sees
    everybody; from the third on, masked again; up to the fourth. Tiles outside have nothing to see. Ranges that jump
    back and forth may leave tiles without work between those of keys' first and last, never between those of queries'.

    Args:
      start: first visible key of each query.
      end: after the last one, at most `keys`.
      keys: how many there are.
      tile: sizes; neither queries nor keys need be multiples.
    """
    missing = -start.shape[1] % tile.queries
    start, end = (jnp.pad(x, ((0, 0), (0, missing))).reshape(x.shape[0], -1, tile.queries) for x in (start, end))
    some = start < end
    first_BI1 = jnp.min(jnp.where(some, start, keys), axis=2, keepdims=True)
    last_BI1 = jnp.max(jnp.where(some, end, 0), axis=2, keepdims=True)
    key_J = jnp.arange(-(-keys // tile.keys), dtype=jnp.int32) * tile.keys
    touched = (first_BI1 < key_J + tile.keys) & (last_BI1 > key_J)
    # Padded queries end at 0 and ranges at `keys` at the latest: what is beyond an edge is in no whole tile.
    whole = (start.max(axis=2, keepdims=True) <= key_J) & (end.min(axis=2, keepdims=True) >= key_J + tile.keys)
    return _bounds(touched, whole), _bounds(jnp.swapaxes(touched, 1, 2), jnp.swapaxes(whole, 1, 2))


def _bounds(touched: Bool[Array, "B I J"], whole: Bool[Array, "B I J"]) -> Int[Array, "B I 4"]:
    index_J = jnp.arange(touched.shape[2], dtype=jnp.int32)
    last = jnp.max(jnp.where(touched, index_J + 1, 0), axis=2)
    first = jnp.min(jnp.where(touched, index_J, last[..., None]), axis=2)
    whole_first = jnp.min(jnp.where(whole, index_J, last[..., None]), axis=2)
    # The first run of whole tiles: for packed documents the only one.
    broken = ~whole & (index_J >= whole_first[..., None])
    whole_last = jnp.min(jnp.where(broken, index_J, last[..., None]), axis=2)
    return jnp.stack([first, whole_first, whole_last, last], axis=2)


def walk(visits_ref: Ref, step: Callable[..., Any], state: Any) -> Any:
    """The state after `step(tile, state, masked=...)` at each tile of a line of `visits`."""
    first, whole_first, whole_last, last = (visits_ref[i] for i in range(4))
    for begin, stop, masked in ((first, whole_first, True), (whole_first, whole_last, False), (whole_last, last, True)):
        state = lax.fori_loop(begin, stop, lambda i, state, masked=masked: step(i, state, masked=masked), state)
    return state


def load_tile(
    ref: Ref, index: Any, count: int, length: int, masked: bool = True, head: jax.Array | None = None
) -> jax.Array:
    """Entries [index * count, (index + 1) * count) of one or two dimensions, the first one cut; zeros from `length` on.

    Args:
      ref: the whole array, [length] or [length, A]; with `head`, [heads, length] or [length, heads, A].
      index: which tile.
      count: entries of a tile, a power of two.
      length: entries of the array.
      masked: whether the tile may reach beyond them.
      head: which head's.
    """
    where = (pl.ds(index * count, count),)
    if head is not None:
        where = (*where, head) if len(ref.shape) == 3 else (head, *where)
    tile = ref.at[where]
    exists = inside(index, count, length, len(tile.shape)) if masked else None
    return triton.load(tile) if exists is None else triton.load(tile, mask=exists, other=0)


def store_tile(ref: Ref, value: jax.Array, index: Any, length: int) -> None:
    """The tile of this index, as far as it lies within `length`."""
    count = value.shape[0]
    tile = ref.at[pl.ds(index * count, count)]
    triton.store(tile, value.astype(ref.dtype), mask=inside(index, count, length, value.ndim))


def inside(index: Any, count: int, length: int, dimensions: int = 1) -> jax.Array | None:
    """Which entries of a tile exist, None when all tiles are full; shaped to go with so many dimensions."""
    if length % count == 0:
        return None
    exists = index * count + jnp.arange(count, dtype=jnp.int32) < length
    return exists.reshape(count, *(1,) * (dimensions - 1))
