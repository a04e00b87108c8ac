"""A keyed permutation that can be asked for any entry: shuffling without a list of the shuffled.

Resuming replays the draws of every window before (plan.py), so this is an array operation: grain's index shuffle takes
about 35 microseconds an entry, this one less than one, and neither keeps a permutation in memory.
"""

import numpy as np
from jaxtyping import Int, UInt64

from nextflow_jax.data.keys import numpy_generator

_ROUNDS = 6
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def shuffled(positions: Int[np.ndarray, "n"], size: int, seed: int, *names: str | int) -> Int[np.ndarray, "n"]:
    """Entries `positions` of the endless sequence that runs through range(size), shuffled anew, again and again.

    Entries e*size to (e+1)*size-1 are epoch e: each number once. The permutation is a Feistel network on the next
    larger even number of bits, in which values that land outside walk on until inside (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002).

    Args:
      positions: any non-negative integers.
      size: how many there are to shuffle, at least 1.
      seed: with `names`, decides the order.
      names: the stream's name.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    round_keys = numpy_generator(seed, *names).integers(2**64, size=_ROUNDS, dtype=np.uint64)
    epochs, result = np.divmod(positions.astype(np.uint64), np.uint64(size))
    walking = np.arange(len(result))
    while walking.size:
        left, right = result[walking] >> half_bits, result[walking] & mask
        for key in round_keys:
            left, right = right, left ^ (_mix(right ^ _mix(epochs[walking] ^ key)) & mask)
        result[walking] = (left << half_bits) | right
        walking = walking[result[walking] >= size]
    return result.astype(np.int64)


def _mix(words: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Spreads every bit of a 64-bit word over its low half (multiply and fold, twice)."""
    words = words * _MULTIPLIER
    words = (words ^ (words >> _HALF)) * _MULTIPLIER
    return words ^ (words >> _HALF)
