"""Named randomness for NumPy: numbers that depend on a seed and a name alone, never on what was drawn before."""

import hashlib

import numpy as np
from jaxtyping import Float

_DRAWS_A_COUNTER = 4
"""64-bit words Philox makes of one counter value."""


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of the stream called `names`, e.g. `numpy_generator(seed, "rows", window)`.

    Equal seed and names give equal numbers on every host and run; any difference gives an independent stream.
    """
    return np.random.Generator(np.random.Philox(key=_digest(seed, names)))


def uniform_range(start: int, stop: int, seed: int, *names: str | int) -> Float[np.ndarray, "draws"]:
    """Numbers `start` to `stop` of the endless stream of uniforms in [0, 1) called `names`, without those before.

    Raises:
      ValueError: the range is not 0 <= start <= stop.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"range {start}:{stop} is not one of a stream that begins at 0")
    bits = np.random.Philox(key=_digest(seed, names))
    bits.advance(start // _DRAWS_A_COUNTER)
    skipped = start % _DRAWS_A_COUNTER
    return np.random.Generator(bits).random(skipped + stop - start)[skipped:]


def small_seed(seed: int, *names: str | int) -> int:
    """A 32-bit seed for libraries that take nothing larger."""
    return _digest(seed, names) % 2**32


def _digest(seed: int, names: tuple[str | int, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr((seed, *names)).encode(), digest_size=16).digest(), "big")
