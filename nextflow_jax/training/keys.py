"""Random keys by name and step: folded from (seed, stream, step), never carried from one step to the next."""

import hashlib

import jax
from jaxtyping import Array, Integer, Key


def stream_key(seed: int, name: str, step: int | Integer[Array, ""] = 0) -> Key[Array, ""]:
    """The key of stream `name` at `step`: equal arguments give equal keys, in any process and after any restart.

    Args:
      seed: the experiment's seed.
      name: what the key is for, e.g. "init" or "loss".
      step: counts from 0; may be traced.
    """
    stream = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
