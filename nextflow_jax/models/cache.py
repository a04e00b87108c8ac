"""The key-value cache: what cached decoding keeps of the positions it has seen."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.sharding import constrain


class KVCache(NamedTuple):
    """Keys and values of all layers, by slot. Slot j of a row plays the part of key j in attend ranges.

    A decoder call writes its S positions into slots length[b] ... length[b] + S - 1 of each row and returns the cache
    with `length` moved by S. A caller whose rows took fewer real positions moves `length` back with `rewind`: slots
    past it are written over by the next call, and no range reaches them before.
    """

    keys: Float[Array, "L B M G A"]
    values: Float[Array, "L B M G A"]
    length: Int[Array, "B"]

    @property
    def capacity(self) -> int:
        """M, the slots of a row. Positions past it are not stored: callers make the cache large enough."""
        return self.keys.shape[2]

    def rewind(self, length: Int[Array, "B"]) -> "KVCache":
        """The same slots, with each row's next position at `length`."""
        return self._replace(length=length)

    def write(self, layer: Int[Array, ""], keys: Float[Array, "B S G A"], values: Float[Array, "B S G A"]) -> "KVCache":
        """Stores S new positions of one layer at each row's `length`, without moving `length`."""
        slots_BS = self.length[:, None] + jnp.arange(keys.shape[1], dtype=self.length.dtype)
        where_BS2 = jnp.stack([jnp.broadcast_to(layer.astype(slots_BS.dtype), slots_BS.shape), slots_BS], axis=-1)
        return self._replace(keys=_put(self.keys, where_BS2, keys), values=_put(self.values, where_BS2, values))

    def read(self, layer: Int[Array, ""]) -> tuple[Float[Array, "B M G A"], Float[Array, "B M G A"]]:
        """All slots of one layer."""
        keys = lax.dynamic_index_in_dim(self.keys, layer, keepdims=False)
        values = lax.dynamic_index_in_dim(self.values, layer, keepdims=False)
        return keys, values


def make_cache(config: DecoderConfig, rows: int, slots: int) -> KVCache:
    """An empty cache of `slots` positions for `rows` sequences, in the decoder's compute dtype."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_size)
    axes = ("layers", "batch", None, "kv_heads", "head")
    return KVCache(
        keys=constrain(jnp.zeros(shape, config.compute_dtype), *axes),
        values=constrain(jnp.zeros(shape, config.compute_dtype), *axes),
        length=jnp.zeros(rows, jnp.int32),
    )


def _put(
    store: Float[Array, "L B M G A"], where: Int[Array, "B S 2"], new: Float[Array, "B S G A"]
) -> Float[Array, "L B M G A"]:
    """`store[layer, b, slot] = new[b, s]` at every (layer, slot) = where[b, s]; those out of range are dropped.

    Rows are declared a batch dimension of the scatter, which `store.at[...]` cannot say: with rows on different devices
    nothing is communicated.
    """
    dimensions = lax.ScatterDimensionNumbers(
        update_window_dims=(2, 3),
        inserted_window_dims=(0, 2),
        scatter_dims_to_operand_dims=(0, 2),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return lax.scatter(
        store,
        where,
        new.astype(store.dtype),
        dimensions,
        unique_indices=True,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
    )
