"""Attention by ranges: query i sees exactly the keys j with start[i] <= j < end[i]. The ranges ARE the mask.

A new implementation is a file in this package with the signature of `attend` (without `implementation`), a line in
`IMPLEMENTATIONS`, and, where "auto" should take it, its name in `AUTO`.
"""

import functools
import logging
from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from nextflow_jax import sharding
from nextflow_jax.config import choose
from nextflow_jax.ops.attention import chunked, reference

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference.attend,
    "chunked": chunked.attend,
}

AUTO: dict[str, str] = {"cpu": "chunked", "gpu": "chunked", "tpu": "chunked"}
"""Platform -> the implementation that "auto" means there."""


def attend(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    *,
    implementation: str = "auto",
) -> Float[Array, "B S H A"]:
    """Softmax attention, scaled by A**-0.5, over each query's range of keys; softmax in float32.

    Args:
      q: queries, any float dtype; head h reads key-value head h // (H // G).
      k: keys; M may differ from S (cached decoding).
      v: values.
      start: index in [0, M] of the first visible key.
      end: index in [0, M] after the last visible key. A query with an empty range gets zeros.
      implementation: a name in `IMPLEMENTATIONS`, or "auto" for the platform's choice in `AUTO`.

    Returns:
      The mixed values, in the dtype of `q`.

    Raises:
      UserError: an unknown implementation.
    """
    return resolve(implementation)(q, k, v, start, end)


def resolve(implementation: str) -> Callable[..., jax.Array]:
    """The function behind a name, "auto" resolved by the platform that is being traced for."""
    name = _auto(sharding.platform()) if implementation == "auto" else implementation
    return choose("attention implementation", name, IMPLEMENTATIONS)


@functools.cache
def _auto(platform: str) -> str:
    name = choose("platform", platform, AUTO)
    logging.getLogger(__name__).info("attention on %s: %s", platform, name)
    return name
