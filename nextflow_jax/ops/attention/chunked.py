"""Attention by ranges in plain JAX, one block of queries after another: memory grows with S, not with S squared."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.attention.kept import keep

QUERY_BLOCK = 256
"""Queries handled at once; at most H x QUERY_BLOCK x M scores of a row are alive."""


def attend(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    *,
    block: int = QUERY_BLOCK,
) -> Float[Array, "B S H A"]:
    """See `nextflow_jax.ops.attention.attend`. Scores of a block are computed again in the backward pass.

    Args:
      q: queries.
      k: keys.
      v: values.
      start: first visible key of each query.
      end: after the last visible key of each query.
      block: the largest number of queries handled at once.
    """
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    # Heads before positions: the products are then plain batches of matrices, about three times faster on CPU.
    q_BSGRA = q.reshape(batch, length, groups, heads // groups, size)
    q_BGRSA = jnp.transpose(q_BSGRA, (0, 2, 3, 1, 4))
    k_BGMA, v_BGMA = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if length <= block:
        out_BGRSA = _attend_block(q_BGRSA, k_BGMA, v_BGMA, start, end)
    else:
        out_BGRSA = _attend_blocks(q_BGRSA, k_BGMA, v_BGMA, start, end, block)
    return keep(jnp.transpose(out_BGRSA, (0, 3, 1, 2, 4)).reshape(batch, length, heads, size))


def _attend_blocks(
    q: Float[Array, "B G R S A"],
    k: Float[Array, "B G M A"],
    v: Float[Array, "B G M A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    block: int,
) -> Float[Array, "B G R S A"]:
    length = q.shape[3]
    num_blocks = -(-length // block)
    queries = -(-length // num_blocks)

    def split(x: jax.Array, axis: int) -> jax.Array:
        padding = [(0, num_blocks * queries - length if i == axis else 0) for i in range(x.ndim)]
        shape = (*x.shape[:axis], num_blocks, queries, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, padding).reshape(shape), axis, 0)

    # The scan sums the blocks' gradients of k and v in the dtype these enter it with: float32, whatever they have.
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)

    @jax.checkpoint
    def one_block(block_arrays: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q_block, start_block, end_block = block_arrays
        return _attend_block(q_block, k32.astype(k.dtype), v32.astype(v.dtype), start_block, end_block)

    out = jnp.moveaxis(lax.map(one_block, (split(q, 3), split(start, 1), split(end, 1))), 0, 3)
    return out.reshape(*q.shape[:3], num_blocks * queries, q.shape[4])[:, :, :, :length]


def _attend_block(
    q: Float[Array, "B G R Q A"],
    k: Float[Array, "B G M A"],
    v: Float[Array, "B G M A"],
    start: Int[Array, "B Q"],
    end: Int[Array, "B Q"],
) -> Float[Array, "B G R Q A"]:
    batch, groups, repeats, queries, size = q.shape
    num_keys = k.shape[2]
    q_BGNA = q.reshape(batch, groups, repeats * queries, size)
    scores = jnp.einsum("BGNA,BGMA->BGNM", q_BGNA, k, preferred_element_type=jnp.float32) * size**-0.5
    scores = scores.reshape(batch, groups, repeats, queries, num_keys)
    index_M = jnp.arange(num_keys, dtype=jnp.int32)
    visible = ((start[..., None] <= index_M) & (index_M < end[..., None]))[:, None, None]
    # A finite floor and the second `where` give empty ranges (padded queries) zeros instead of nan, also in gradients.
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    peak = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - peak), 0.0)
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    weights_BGNM = weights.astype(v.dtype).reshape(batch, groups, repeats * queries, num_keys)
    mixed = jnp.einsum("BGNM,BGMA->BGNA", weights_BGNM, v, preferred_element_type=jnp.float32)
    return (mixed.reshape(q.shape) / total).astype(q.dtype)
