"""Attention by ranges: query i sees exactly the keys j with start[i] <= j < end[i]. The ranges ARE the mask.

A new implementation is a file in this package with the signature of `attend` (without `implementation`) that works on
one device, a line in `IMPLEMENTATIONS`, what it cannot do in `LIMITS`, and, where "auto" should take it, its name in
`AUTO`. `sharded` runs it on every device's part of the batch.
"""

import functools
import logging
from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from nextflow_jax import sharding
from nextflow_jax.config import choose
from nextflow_jax.errors import UserError
from nextflow_jax.ops.attention import blocked, chunked, flash, reference, splash
from nextflow_jax.ops.attention.sharded import sharded

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference.attend,
    "chunked": chunked.attend,
    "blocked": blocked.attend,
    "flash": flash.attend,
    "splash": splash.attend,
}

LIMITS: dict[str, Callable[[jax.Array, jax.Array], str]] = {"flash": flash.limit, "splash": splash.limit}
"""Implementation -> (q, k) -> why it cannot take arrays of these shapes and dtypes, "" when it can."""

AUTO: dict[str, str] = {"cpu": "blocked", "gpu": "flash", "tpu": "splash"}
"""Platform -> the implementation that "auto" means there."""

FALLBACK = "chunked"
"""What "auto" takes where the platform's implementation has a limit."""


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
      UserError: an unknown implementation, or one that cannot take these shapes; "auto" takes another instead.
    """
    return sharded(resolve(implementation, q, k), q, k, v, start, end)


def resolve(implementation: str, q: jax.Array, k: jax.Array) -> Callable[..., jax.Array]:
    """The function behind a name; "auto" is resolved by the platform that is being traced for, and by the shapes."""
    platform = sharding.platform()
    name = choose("platform", platform, AUTO) if implementation == "auto" else implementation
    function = choose("attention implementation", name, IMPLEMENTATIONS)
    limit = LIMITS[name](q, k) if name in LIMITS else ""
    if implementation == "auto":
        _say(platform, name, limit)
        return IMPLEMENTATIONS[FALLBACK] if limit else function
    if limit:
        raise UserError(f'attention {name!r}: {limit}; set model.attention to "auto" or {FALLBACK!r}')
    return function


@functools.cache
def _say(platform: str, name: str, limit: str) -> None:
    """Logs a choice once."""
    choice = f"{FALLBACK}, since {name}: {limit}" if limit else name
    logging.getLogger(__name__).info("attention on %s: %s", platform, choice)
