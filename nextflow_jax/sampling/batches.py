"""Which prompts run together: sizes that recur, and caches that stay within the memory given to them."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from nextflow_jax.errors import UserError
from nextflow_jax.models.cache import make_cache
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.sampling.prompts import Prompt

LEAST_PROMPT, LEAST_SLOTS = 16, 128
"""Smallest padded prompt and cache, in positions: below, one compiled program serves all."""


class BatchShape(NamedTuple):
    """What a batch is padded to."""

    requests: int
    prompt: int
    """Positions of the padded prompts."""
    slots: int
    """Positions of the cache, of each row."""
    guided: bool
    """Whether there is an unguided half, which doubles the rows."""

    @property
    def rows(self) -> int:
        """Rows of the cache."""
        return self.requests * (2 if self.guided else 1)


def batch_shape(prompts: Sequence[Prompt]) -> BatchShape:
    """The shape that these prompts are padded to: few compilations."""
    guided = any(prompt.is_guided for prompt in prompts)
    lengths = [max(len(prompt.guided), len(prompt.unguided) * guided) for prompt in prompts]
    prompt = round_up(max(lengths), LEAST_PROMPT)
    slots = round_up(max(prompt, *(prompt.longest for prompt in prompts)), LEAST_SLOTS)
    return BatchShape(round_up(len(prompts)), prompt, slots, guided)


@functools.cache
def cache_bytes(config: DecoderConfig, shape: BatchShape) -> int:
    """Bytes of the keys and values of a batch, without allocating them."""
    cache = jax.eval_shape(lambda: make_cache(config, shape.rows, shape.slots))
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(cache))


def split(
    prompts: Sequence[Prompt], config: DecoderConfig, max_batch: int, max_cache_bytes: int
) -> list[Sequence[Prompt]]:
    """The prompts in batches, in order, each as large as the two limits allow.

    Args:
      prompts: at least one.
      config: of the decoder.
      max_batch: prompts of a batch at most.
      max_cache_bytes: bytes of a batch's cache at most.

    Raises:
      UserError: a prompt whose own cache is larger than that.
    """
    for prompt in prompts:
        _check_alone(prompt, config, max_cache_bytes)
    batches, start = [], 0
    for stop in range(1, len(prompts) + 1):
        together = prompts[start:stop]
        if len(together) > max_batch or (
            len(together) > 1 and cache_bytes(config, batch_shape(together)) > max_cache_bytes
        ):
            batches.append(prompts[start : stop - 1])
            start = stop - 1
    return [*batches, prompts[start:]]


def text_space(tokens: int) -> int:
    """Columns of the buffer for at most so many text tokens and a closing special."""
    return round_up(tokens + 1, LEAST_PROMPT)


def round_up(count: int, least: int = 1) -> int:
    """The next of the sizes least, ..., 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ...: at most a quarter is wasted."""
    step = max(1, 2 ** (max(count - 1, 1).bit_length() - 3))
    return max(least, -(-count // step) * step)


def _check_alone(prompt: Prompt, config: DecoderConfig, max_cache_bytes: int) -> None:
    shape = batch_shape([prompt])
    needed = cache_bytes(config, shape)
    if needed <= max_cache_bytes:
        return
    request, halves = prompt.request, ", twice because of guidance" if shape.guided else ""
    raise UserError(
        f"the cache of one request takes {needed:,} bytes ({shape.slots} positions{halves}) and the limit is "
        f"{max_cache_bytes:,}: its prompt has {len(prompt.guided)} positions, its answer up to "
        f"{request.max_thought_tokens + request.max_text_tokens} text tokens and {request.max_images} pictures of "
        f"{prompt.picture_codes + 1}; shorten one of them"
        + (", set guidance to 1," if shape.guided else "")
        + " or raise max_cache_bytes"
    )
