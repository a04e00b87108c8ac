"""The key-value cache: what cached decoding keeps of the positions it has seen."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.sharding import constrain

_AXES = ("layers", "batch", "kv_heads", None, "head")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Reach:
    """How many of a cache's slots a decoder call reads: part of a program's shape, not data."""

    slots: int


class KVCache(NamedTuple):
    """Keys and values of all layers, by slot. Slot j of a row plays the part of key j in attend ranges.

    A decoder call writes its S positions into slots length[b] ... length[b] + S - 1 of each row and returns the cache
    with `length` moved by S. A caller whose rows took fewer real positions moves `length` back with `rewind`: slots
    past it are written over by the next call, and no range reaches them before.

    Heads come before slots, and a row's new positions are one window of the scatter: so the TPU's compiler keeps one
    layout for writing and attending. With slots before heads it copied all layers' cache four times in every layer.
    """

    keys: Float[Array, "L B G M A"]
    values: Float[Array, "L B G M A"]
    length: Int[Array, "B"]
    reach: Reach

    @property
    def capacity(self) -> int:
        """M, the slots of a row. A row's positions are not stored where one would lie past it: callers make room."""
        return self.keys.shape[3]

    def rewind(self, length: Int[Array, "B"]) -> "KVCache":
        """The same slots, with each row's next position at `length`."""
        return self._replace(length=length)

    def reaching(self, slots: int) -> "KVCache":
        """The same slots, of which calls read the first `slots` only: what they cost follows that, not the capacity."""
        return self._replace(reach=Reach(min(slots, self.capacity)))

    def write(self, layer: Int[Array, ""], keys: Float[Array, "B S G A"], values: Float[Array, "B S G A"]) -> "KVCache":
        """Stores S new positions of one layer at each row's `length`, without moving `length`."""
        layers_B = jnp.broadcast_to(layer.astype(self.length.dtype), self.length.shape)
        where_B2 = jnp.stack([layers_B, self.length], axis=-1)
        return self._replace(keys=_put(self.keys, where_B2, keys), values=_put(self.values, where_B2, values))

    def read(self, layer: Int[Array, ""]) -> tuple[Float[Array, "B M G A"], Float[Array, "B M G A"]]:
        """The slots of one layer within reach."""
        return _take(self.keys, layer, self.reach.slots), _take(self.values, layer, self.reach.slots)


def make_cache(config: DecoderConfig, rows: int, slots: int) -> KVCache:
    """An empty cache of `slots` positions for `rows` sequences, in the decoder's compute dtype."""
    shape = (config.layers, rows, config.kv_heads, slots, config.head_size)
    return KVCache(
        keys=constrain(jnp.zeros(shape, config.compute_dtype), *_AXES),
        values=constrain(jnp.zeros(shape, config.compute_dtype), *_AXES),
        length=jnp.zeros(rows, jnp.int32),
        reach=Reach(slots),
    )


def join(caches: Sequence[KVCache], slots: int) -> KVCache:
    """The rows of several caches, one after another, in a cache of `slots` positions; what lies past them is lost."""

    def stores(name: str) -> Float[Array, "L B G M A"]:
        store = jnp.concatenate([getattr(cache, name)[:, :, :, :slots] for cache in caches], axis=1)
        padding = [(0, 0), (0, 0), (0, 0), (0, slots - store.shape[3]), (0, 0)]
        return constrain(jnp.pad(store, padding), *_AXES)

    length = jnp.concatenate([cache.length for cache in caches])
    return KVCache(stores("keys"), stores("values"), length, Reach(slots))


def _put(
    store: Float[Array, "L B G M A"], where: Int[Array, "B 2"], new: Float[Array, "B S G A"]
) -> Float[Array, "L B G M A"]:
    """`store[layer, b, :, slot : slot + S] = new[b]` at each row's (layer, slot) = where[b], unless it passes the end.

    Rows are declared a batch dimension of the scatter, which `store.at[...]` cannot say: with rows on different devices
    nothing is communicated.
    """
    dimensions = lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0, 3),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return lax.scatter(
        store,
        where,
        jnp.swapaxes(new, 1, 2).astype(store.dtype),
        dimensions,
        indices_are_sorted=True,
        unique_indices=True,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
    )


def _take(store: Float[Array, "L B G M A"], layer: Int[Array, ""], slots: int) -> Float[Array, "B slots G A"]:
    _, rows, heads, _, size = store.shape
    part = lax.dynamic_slice(store, (layer, 0, 0, 0, 0), (1, rows, heads, slots, size))[0]
    return jnp.swapaxes(part, 1, 2)
