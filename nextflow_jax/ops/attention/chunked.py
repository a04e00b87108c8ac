"""Attention by ranges in plain JAX, one block of queries after another: memory grows with S, not with S squared."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

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
    q = q.reshape(batch, length, groups, heads // groups, size)
    if length <= block:
        return _attend_block(q, k, v, start, end).reshape(batch, length, heads, size)
    num_blocks = -(-length // block)
    queries = -(-length // num_blocks)
    padding = num_blocks * queries - length

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(batch, num_blocks, queries, *x.shape[2:]), 1, 0)

    # The scan sums the blocks' gradients of k and v in the dtype these enter it with: float32, whatever they have.
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)

    @jax.checkpoint
    def one_block(q_BQGRA: jax.Array, start_BQ: jax.Array, end_BQ: jax.Array) -> jax.Array:
        return _attend_block(q_BQGRA, k32.astype(k.dtype), v32.astype(v.dtype), start_BQ, end_BQ)

    out = lax.map(lambda xs: one_block(*xs), (split(q), split(start), split(end)))
    out = jnp.moveaxis(out, 0, 1).reshape(batch, num_blocks * queries, heads, size)
    return out[:, :length]


def _attend_block(
    q: Float[Array, "B Q G R A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B Q"],
    end: Int[Array, "B Q"],
) -> Float[Array, "B Q G R A"]:
    scores = jnp.einsum("BQGRA,BMGA->BGRQM", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    index_M = jnp.arange(k.shape[1], dtype=jnp.int32)
    visible = (start[..., None] <= index_M) & (index_M < end[..., None])
    visible = visible[:, None, None]
    # A finite floor and the second `where` give empty ranges (padded queries) zeros instead of nan, also in gradients.
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    peak = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - peak), 0.0)
    total = jnp.maximum(weights.sum(axis=-1), jnp.finfo(jnp.float32).tiny)
    out = jnp.einsum("BGRQM,BMGA->BQGRA", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / jnp.moveaxis(total, 3, 1)[..., None]).astype(q.dtype)
