"""Head + cross-entropy over one stretch of positions after another, logits computed again in the backward pass.

Stretches are cut along the sequence, so rows stay on their devices. Source of the idea: NextFlow's fused linear +
cross-entropy (recipe section 5).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.cross_entropy import reference
from nextflow_jax.ops.cross_entropy.reference import TokenLosses

CHUNK = 128
"""Positions of every row handled at once."""


def linear_cross_entropy(
    hidden: Float[Array, "B S D"], head: Float[Array, "D V"], targets: Int[Array, "B S"], *, chunk: int = CHUNK
) -> TokenLosses:
    """See `nextflow_jax.ops.cross_entropy.linear_cross_entropy`. Holds B x chunk x V logits."""
    batch, length, _ = hidden.shape
    num_chunks = -(-length // chunk)
    padding = num_chunks * chunk - length

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(batch, num_chunks, chunk, *x.shape[2:]), 1, 0)

    # `head` enters in its own dtype and is cast inside, so that the scan sums its gradient over chunks in that dtype.
    @jax.checkpoint
    def one_chunk(hidden_BQD: jax.Array, targets_BQ: jax.Array) -> TokenLosses:
        return reference.linear_cross_entropy(hidden_BQD, head, targets_BQ)

    losses = lax.map(lambda xs: one_chunk(*xs), (split(hidden), split(targets)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length], losses)
