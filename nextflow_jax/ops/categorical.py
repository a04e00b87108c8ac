"""Draws from softmax(logits): the numbers of `jax.random.categorical`, several times quicker on CPU."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from nextflow_jax.sharding import platform

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_ONE_BITS = np.uint32(0x3F800000)
"""Of 1.0: with random bits as the fraction a number in [1, 2)."""
_LARGEST_EXACT = 2**24
"""Whole numbers up to here are exact in float32."""


def categorical(key: Key[Array, "B"], logits: Float[Array, "B S V"]) -> Int[Array, "B S"]:
    """One id for each distribution: for row b what `jax.random.categorical(key[b], logits[b])` gives, bit for bit.

    On CPU JAX runs the generator's rounds as a loop over whole arrays and takes logarithms one by one inside the search
    for the largest sum, which took half of the time of sampling a picture. Here the rounds and logarithms are one pass.

    Args:
      key: one a row.
      logits: -inf for what must not be drawn; at least one candidate each.
    """
    counts = math.prod(logits.shape[1:])
    known = str(jax.random.key_impl(key)) == "threefry2x32" and jax.config.jax_threefry_partitionable
    if platform() != "cpu" or logits.dtype != jnp.float32 or not known or counts >= 2**32:
        return jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)
    return first_largest(_gumbel(key, logits.shape[1:]) + logits)


def first_largest(values: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """argmax over the last dimension, of equals the first. XLA's own is not vectorised on CPU."""
    size = values.shape[-1]
    if platform() != "cpu" or size > _LARGEST_EXACT:
        return jnp.argmax(values, axis=-1).astype(jnp.int32)
    # Whatever makes the values would otherwise be computed again for each of the two reductions.
    values = jax.lax.optimization_barrier(values.astype(jnp.float32))
    is_peak = values == values.max(axis=-1, keepdims=True)
    from_the_end = jnp.where(is_peak, jnp.arange(size, 0, -1, dtype=jnp.float32), 1.0).max(axis=-1)
    return size - from_the_end.astype(jnp.int32)


def _gumbel(key: Key[Array, "B"], shape: tuple[int, int]) -> Float[Array, "B S V"]:
    """`jax.random.gumbel(key[b], shape)` for every row."""
    data = jax.random.key_data(key)[:, :, None, None]
    counts = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(1, *shape)
    bits = _threefry(data[:, 0], data[:, 1], counts)
    fraction = jax.lax.bitcast_convert_type(bits >> 9 | _ONE_BITS, jnp.float32) - 1
    tiny = jnp.finfo(jnp.float32).tiny
    return -jnp.log(-jnp.log(jnp.maximum(tiny, fraction * (1 - tiny) + tiny)))


def _threefry(
    key1: UInt32[Array, "B 1 1"], key2: UInt32[Array, "B 1 1"], counts: UInt32[Array, "1 S V"]
) -> UInt32[Array, "B S V"]:
    """Threefry-2x32 with 20 rounds of (0, counts), both words of its result combined by exclusive or.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the combination is JAX's.
    """
    keys = (key1, key2, key1 ^ key2 ^ _PARITY)
    first, second = keys[0], counts + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = first ^ (second << rotation | second >> (32 - rotation))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return first ^ second
