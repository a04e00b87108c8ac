"""Attention by ranges in plain JAX that visits only blocks of keys which some range touches, forward and backward.

Queries go in blocks; a block of queries meets the keys block by block, from the smallest start to the largest end of
its queries, under the online softmax of FlashAttention (Dao, 2023, arXiv:2307.08691). Loop bounds are traced, so one
compiled program serves every layout of documents, and the cost follows what the ranges see: short documents in a long
row, a hardly filled cache. Memory grows with S: besides its arguments the backward pass keeps the output and one number
a query, the logarithm of its softmax's denominator, and makes the weights of each block again.

Rows of the batch are visited one after the other, each within its own bounds; common bounds would make every row as
dear as the dearest. Rows on different devices therefore need `sharded`, which hands each device its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.attention import chunked
from nextflow_jax.ops.attention.kept import keep

QUERY_BLOCK = 256
KEY_BLOCK = 256
"""Queries and keys that meet at once; smaller ones waste less at the edges of ranges, larger ones less on overheads."""


def attend(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    *,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> Float[Array, "B S H A"]:
    """See `nextflow_jax.ops.attention.attend`. Keys in blocks that no range touches are never read.

    Rows of one block have nothing to skip: all rows of the batch are then computed at once, by `chunked`.

    Args:
      q: queries.
      k: keys.
      v: values.
      start: first visible key of each query.
      end: after the last visible key of each query.
      query_block: the largest number of queries handled at once.
      key_block: the largest number of keys handled at once.
    """
    if q.shape[1] <= query_block and k.shape[1] <= key_block:
        return chunked.attend(q, k, v, start, end, block=query_block)
    return _attend(q, k, v, start, end, _even(q.shape[1], query_block), _even(k.shape[1], key_block))


class _QueryBlock(NamedTuple):
    """What a block of N = B x (blocks of a row) holds; Q queries each."""

    start: Int[Array, "*N Q"]
    end: Int[Array, "*N Q"]
    origin: Int[Array, "*N"]
    """The number, among the key blocks of all rows, of its row's first one."""
    first: Int[Array, "*N"]
    """The number, counted likewise, of the first key block that its ranges touch."""
    last: Int[Array, "*N"]
    """After the last one."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, num_queries: int, num_keys: int
) -> jax.Array:
    return _forward(q, k, v, start, end, num_queries, num_keys)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, num_queries: int, num_keys: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    keys, values = _key_blocks(k, num_keys), _key_blocks(v, num_keys)

    def mix(arrays: tuple[_QueryBlock, jax.Array]) -> tuple[jax.Array, jax.Array]:
        block, queries = arrays

        def visit(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            peak, total, mixed = state
            scores, visible = _scores(block, queries, _at(keys, j), j, num_keys)
            new_peak = jnp.maximum(peak, scores.max(axis=-1))
            weights = jnp.where(visible, jnp.exp(scores - new_peak[..., None]), 0.0)
            shrink = jnp.exp(peak - new_peak)
            total = shrink * total + weights.sum(axis=-1)
            mixed = shrink[..., None] * mixed + _dot("GNK,GKA->GNA", weights.astype(v.dtype), _at(values, j))
            return new_peak, total, mixed

        shape = queries.shape[:2]
        nothing = jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape), jnp.zeros(queries.shape)
        peak, total, mixed = lax.fori_loop(block.first, block.last, visit, nothing)
        # A query that saw no key has a total of zero: zeros for it, and any finite logarithm.
        seen = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        return (mixed / seen[..., None]).astype(q.dtype), peak + jnp.log(seen)

    blocks = _query_blocks(start, end, k.shape[1], num_queries, num_keys)
    out, log_total = lax.map(mix, (blocks, _split(q, k.shape[2], num_queries)))
    out, log_total = keep(_join(out, q.shape, num_queries)), keep(log_total)
    return out, (q, k, v, start, end, out, log_total)


def _backward(
    num_queries: int, num_keys: int, saved: tuple[jax.Array, ...], out_gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, start, end, out, log_total = saved
    keys, values = _key_blocks(k, num_keys), _key_blocks(v, num_keys)
    split = functools.partial(_split, groups=k.shape[2], num_queries=num_queries)
    scale = q.shape[-1] ** -0.5

    def unmix(
        gradients: tuple[jax.Array, jax.Array], arrays: tuple[_QueryBlock, jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        block, queries, outs, out_gradients, log_total = arrays
        outs_product = jnp.sum(outs.astype(jnp.float32) * out_gradients.astype(jnp.float32), axis=-1)

        def visit(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dk, dv, dq = state
            scores, visible = _scores(block, queries, _at(keys, j), j, num_keys)
            weights = jnp.where(visible, jnp.exp(scores - log_total[..., None]), 0.0)
            dv = _add_at(dv, j, _dot("GNK,GNA->GKA", weights.astype(v.dtype), out_gradients))
            dweights = _dot("GNA,GKA->GNK", out_gradients, _at(values, j))
            dscores = jnp.where(visible, weights * (dweights - outs_product[..., None]) * scale, 0.0).astype(k.dtype)
            dk = _add_at(dk, j, _dot("GNK,GNA->GKA", dscores, queries))
            return dk, dv, dq + _dot("GNK,GKA->GNA", dscores, _at(keys, j))

        *gradients, dq = lax.fori_loop(block.first, block.last, visit, (*gradients, jnp.zeros(queries.shape)))
        return tuple(gradients), dq.astype(q.dtype)

    blocks = _query_blocks(start, end, k.shape[1], num_queries, num_keys)
    # Keys meet many blocks of queries: their gradients are summed in float32, whatever the keys are.
    nothing = jnp.zeros(keys.shape), jnp.zeros(values.shape)
    (dk, dv), dq = lax.scan(unmix, nothing, (blocks, split(q), split(out), split(out_gradient), log_total))
    return _join(dq, q.shape, num_queries), _join_keys(dk, k), _join_keys(dv, v), None, None


_attend.defvjp(_forward, _backward)


def _scores(
    block: _QueryBlock, queries: Float[Array, "G N A"], keys: Float[Array, "G K A"], j: jax.Array, num_keys: int
) -> tuple[Float[Array, "G N K"], jax.Array]:
    """The scaled scores of a block of queries and key block j, the lowest number where unseen, and who sees whom."""
    scores = _dot("GNA,GKA->GNK", queries, keys) * queries.shape[-1] ** -0.5
    index_K = (j - block.origin) * num_keys + jnp.arange(num_keys, dtype=jnp.int32)
    visible_QK = (block.start[:, None] <= index_K) & (index_K < block.end[:, None])
    visible = jnp.tile(visible_QK, (queries.shape[1] // len(block.start), 1))[None]
    return jnp.where(visible, scores, jnp.finfo(jnp.float32).min), visible


def _dot(form: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _at(x: jax.Array, j: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, j, keepdims=False)


def _add_at(x: jax.Array, j: jax.Array, y: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, _at(x, j) + y, j, 0)


def _query_blocks(
    start: Int[Array, "B S"], end: Int[Array, "B S"], length: int, num_queries: int, num_keys: int
) -> _QueryBlock:
    """The ranges in blocks, and which key blocks each block's ranges touch; `length` keys a row."""
    batch, last_key = start.shape[0], jnp.minimum(end, length)
    blocks_a_row = -(-length // num_keys)
    start, end = (_pad(x, 1, num_queries).reshape(-1, num_queries) for x in (start, last_key))
    some = start < end
    first = jnp.min(jnp.where(some, start, length), axis=1) // num_keys
    last = -(-jnp.max(jnp.where(some, end, 0), axis=1) // num_keys)
    origin = jnp.repeat(jnp.arange(batch, dtype=jnp.int32) * blocks_a_row, start.shape[0] // batch)
    return _QueryBlock(start, end, origin, origin + first, origin + last)


def _even(length: int, block: int) -> int:
    """The size of equal blocks, none larger than `block`, as few as can be, that cover `length`."""
    return -(-length // max(1, -(-length // block)))


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, -x.shape[i] % multiple if i == axis else 0) for i in range(x.ndim)])


def _split(x: Float[Array, "B S H A"], groups: int, num_queries: int) -> Float[Array, "N G RQ A"]:
    """Blocks of queries; heads that share keys beside one another, so that all products are plain matrices'."""
    batch, _, heads, size = x.shape
    x_BIQGRA = _pad(x, 1, num_queries).reshape(batch, -1, num_queries, groups, heads // groups, size)
    return jnp.transpose(x_BIQGRA, (0, 1, 3, 4, 2, 5)).reshape(-1, groups, heads // groups * num_queries, size)


def _join(x: Float[Array, "N G RQ A"], shape: tuple[int, ...], num_queries: int) -> jax.Array:
    """Undoes `_split`: queries of this shape [B, S, H, A]."""
    batch, length, heads, size = shape
    groups = x.shape[1]
    x_BIGRQA = x.reshape(batch, -1, groups, heads // groups, num_queries, size)
    return jnp.transpose(x_BIGRQA, (0, 1, 4, 2, 3, 5)).reshape(batch, -1, heads, size)[:, :length]


def _key_blocks(x: Float[Array, "B M G A"], num_keys: int) -> Float[Array, "J G K A"]:
    """The key blocks of all rows."""
    _, _, groups, size = x.shape
    return jnp.swapaxes(_pad(x, 1, num_keys).reshape(-1, num_keys, groups, size), 1, 2)


def _join_keys(x: Float[Array, "J G K A"], like: Float[Array, "B M G A"]) -> Float[Array, "B M G A"]:
    """Undoes `_key_blocks`."""
    batch, length, groups, size = like.shape
    return jnp.swapaxes(x, 1, 2).reshape(batch, -1, groups, size)[:, :length].astype(like.dtype)
