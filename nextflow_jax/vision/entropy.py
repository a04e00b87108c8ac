"""Entropies of the soft choice of codes, position by position and over the batch, in blocks like the search for codes.

The soft choice of a vector is softmax(-squared distance / temperature) over the codes. Its entropy, averaged over the
vectors, says how undecided single vectors are; the entropy of the averaged choice says how evenly the batch uses the
codebook. Losses lower the first and raise the second (MaskGIT's and LFQ's entropy penalty, arXiv 2310.05737, section
3.2); they are kept apart because they need weights of their own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nextflow_jax.vision.nearest import BLOCK, squared_distances

SMALLEST_SHARE = 1e-12
"""Rarer codes add nothing to the entropy of the averaged choice."""


def choice_entropies(
    points: Float[Array, "B N C"], codes: Float[Array, "V C"], temperature: float, block: int = BLOCK
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropies in nats of the soft choice; gradients reach points and codes, blocks are computed again for them.

    Args:
      points: float32, all positions of all scales of each picture.
      codes: float32.
      temperature: positive, in units of squared distance.
      block: distances held at once, a picture; one position of each is the least that is taken.

    Returns:
      (sum over the B x N vectors of their choices' entropies, entropy of the average choice).
    """
    batch, positions, width = points.shape
    size = min(positions, max(1, block // len(codes)))
    blocks = -(-positions // size)
    points = jnp.pad(points, [(0, 0), (0, blocks * size - positions), (0, 0)])
    present = jnp.arange(blocks * size).reshape(blocks, size) < positions
    parts = jnp.moveaxis(points.reshape(batch, blocks, size, width), 1, 0)

    @jax.checkpoint
    def of_block(part: Array, present: Array, codes: Array) -> tuple[Array, Array]:
        log_shares = jax.nn.log_softmax(-squared_distances(part, codes) / temperature)
        shares = jnp.exp(log_shares) * present[:, None]
        return -jnp.sum(shares * log_shares), jnp.sum(shares, axis=(0, 1))

    def add(total: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, total, of_block(*block, codes)), None

    zero = jnp.zeros((), jnp.float32), jnp.zeros(len(codes), jnp.float32)
    (entropies, shares), _ = jax.lax.scan(add, zero, (parts, present))
    average = shares / (batch * positions)
    counted = average > SMALLEST_SHARE
    return entropies, -jnp.sum(jnp.where(counted, average * jnp.log(jnp.where(counted, average, 1.0)), 0.0))
