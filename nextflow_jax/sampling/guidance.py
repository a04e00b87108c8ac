"""Classifier-free guidance: the guided and the unguided half of a batch, and how their logits are combined.

A guided batch has 2B rows: B that see the condition, then the same B without it. Both halves are fed the same tokens;
only the first half's length and logits count for what is text.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from nextflow_jax.sampling.settings import SamplingSettings


def needs_guidance(settings: Sequence[SamplingSettings]) -> bool:
    """Whether any request of a batch needs the unguided half."""
    return any(item.guided for item in settings)


def both_halves(x: Array, guided: bool) -> Array:
    """Rows of B requests for both halves: [B, ...] -> [2B, ...]; unchanged when there is one half only."""
    return jnp.concatenate([x, x]) if guided else x


def combine(logits: Float[Array, "R S V"], guidance: Float[Array, "B"], guided: bool) -> Float[Array, "B S V"]:
    """unguided + g * (guided - unguided), and exactly the guided logits where g is 0 ("off") or 1.

    Args:
      logits: R = 2B rows, guided half first; or R = B when there is no unguided half.
      guidance: g of each request.
      guided: whether there is an unguided half.

    Source: classifier-free guidance (arXiv 2207.12598), equation 6 with g = 1 + w.
    """
    if not guided:
        return logits
    conditional, unconditional = jnp.split(logits, 2)
    g = guidance[:, None, None]
    mixed = unconditional + g * (conditional - unconditional)
    return jnp.where((g == 0) | (g == 1), conditional, mixed)
