"""Which part of the unguided prompts is already in the guided ones, and need not be read twice.

Without a condition a text-to-image prompt is `<bos>` alone, and an editing prompt whose pictures come first is its
beginning: then the unguided half costs no decoder pass at all, its keys and values are a copy.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from nextflow_jax.models.decoder import DecoderInputs

PARTS = (8, 4, 2, 1)
"""What is left to read is padded to one of these fractions of the padded prompts: few compilations."""


class Remainder(NamedTuple):
    """What the unguided prompts have after the beginning they share with the guided ones."""

    inputs: DecoderInputs
    """[B, width, ...]; no row of padding sees anything but its first key."""
    start: Int[np.ndarray, "B"]
    """Positions shared."""


def split_halves(inputs: DecoderInputs, length: Int[np.ndarray, "R"]) -> tuple[DecoderInputs, Remainder | None]:
    """The guided half's inputs, and what the unguided half adds to them.

    Args:
      inputs: of R = 2B padded prompts as NumPy, guided half first.
      length: positions of each prompt.

    Returns:
      The first B rows; the remainder, None when every unguided prompt is the beginning of its guided one.
    """
    batch, width = len(length) // 2, inputs.tokens.shape[1]
    inputs = jax.tree.map(np.asarray, inputs)
    guided, unguided = _at(inputs, slice(batch)), _at(inputs, slice(batch, None))
    shared = [_shared(_at(guided, i), _at(unguided, i), length[batch + i]) for i in range(batch)]
    shared = np.asarray(shared, np.int32)
    left = int((length[batch:] - shared).max())
    if left == 0:
        return guided, None
    room = next(-(-width // part) for part in PARTS if -(-width // part) >= left)
    index = shared[:, None] + np.arange(room)
    real = index < length[batch:, None]
    index = np.minimum(index, width - 1)

    def take(array: np.ndarray) -> np.ndarray:
        return np.take_along_axis(array, index.reshape(*index.shape, *[1] * (array.ndim - 2)), axis=1)

    rest = jax.tree.map(take, unguided)
    rest = rest._replace(
        attend_start=np.where(real, rest.attend_start, 0).astype(np.int32),
        attend_end=np.where(real, rest.attend_end, 1).astype(np.int32),
    )
    return guided, Remainder(rest, shared)


def _at(inputs: DecoderInputs, rows: slice | int) -> DecoderInputs:
    return jax.tree.map(lambda array: array[rows], inputs)


def _shared(guided: DecoderInputs, unguided: DecoderInputs, length: int | np.integer) -> int:
    """The longest beginning that is the same in both and sees nothing after itself."""
    same = np.ones(length, bool)
    for ours, theirs in zip(jax.tree.leaves(guided), jax.tree.leaves(unguided), strict=True):
        same &= (ours[:length] == theirs[:length]).reshape(length, -1).all(axis=1)
    agreeing = int(np.argmin(same)) if not same.all() else length
    sees_until = np.maximum.accumulate(unguided.attend_end[:agreeing])
    closed = np.flatnonzero(sees_until <= np.arange(1, agreeing + 1))
    return int(closed[-1]) + 1 if len(closed) else 0
