"""Attention by ranges on TPUs: JAX's splash kernels, driven by block maps that are computed from the ranges.

Splash attention takes its mask as arrays: which blocks of (queries, keys) have work, which block to load while there is
none, and a number a query from which the kernel decides about single keys. Ours are computed from the ranges inside the
compiled program, so one compile serves every layout, and blocks that no range touches are neither loaded nor computed.
No mask is built: the number of a query is its range, 16 bits for the first visible key and 16 for the last.

Kernels: `jax.experimental.pallas.ops.tpu.splash_attention`. Source of the idea that their mask may be made by hand from
traced arrays: the project's study of ahead-of-time compilation.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Float, Int

from nextflow_jax.ops.attention import kept
from nextflow_jax.sharding import platform

MAX_KEYS = 2**16
"""Keys that 16 bits tell apart."""

MIN_QUERIES = 128
"""Fewer queries would be padded to the smallest block, most of it for nothing: cached decoding of text."""

BLOCKS = ((2**15, 1024), (2**11, 512), (2**8, 256), (0, 128))
"""(positions from which on, positions of a block), for queries and keys alike.

Large blocks lose less time between grid points, which are visited whether they have work or not; small ones follow
short documents more closely (experiments/bench/attention.py prints how closely). 1024 x 1024 float32 scores take 4 of
the 16 MiB of vector memory; 2048 do not compile.
"""

UNROLLED_ROWS = 4
"""Rows of a device up to which each has its own kernel calls; more go through a loop, at 30% more temporary memory."""


def limit(q: jax.Array, k: jax.Array) -> str:
    """Why these queries and keys are not for the kernels; "" when they are."""
    if q.shape[1] < MIN_QUERIES:
        return f"fewer than {MIN_QUERIES} queries a row, the smallest block"
    if k.shape[1] > MAX_KEYS:
        return f"more than {MAX_KEYS} keys a row"
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{q.dtype} is neither float32 nor bfloat16"
    return ""


def attend(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    *,
    blocks: tuple[int, int] | None = None,
    interpret: bool | None = None,
) -> Float[Array, "B S H A"]:
    """See `nextflow_jax.ops.attention.attend`. Holds no scores outside of the vector memory.

    Args:
      q: queries, float32 or bfloat16; any number of them.
      k: keys, up to `MAX_KEYS`.
      v: values.
      start: first visible key of each query.
      end: after the last visible key of each query.
      blocks: queries and keys of a block, multiples of 128; None takes them from `BLOCKS`.
      interpret: run the kernels as plain JAX; None does so where there is no TPU.
    """
    if interpret is None:
        interpret = platform() == "cpu"
    length, keys, size = q.shape[1], k.shape[1], q.shape[3]
    query_block, key_block = blocks or (block_for(length), block_for(keys))
    # Padded queries see nothing, and nobody sees padded keys.
    start, end = (_pad(x, 1, query_block) for x in (start, end))
    seen = start < end
    # The library's kernels take heads first and do not scale.
    q_BHSA = _pad(jnp.swapaxes(q * jnp.asarray(size**-0.5, q.dtype), 1, 2), 2, query_block)
    k_BGMA, v_BGMA = (_pad(jnp.swapaxes(x, 1, 2), 2, key_block) for x in (k, v))

    def one_row(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        return _kernel(start, end, k.shape[1], query_block, key_block, interpret)(q, k, v)

    arrays = (q_BHSA, k_BGMA, v_BGMA, start, end)
    if q.shape[0] <= UNROLLED_ROWS:
        out_BHSA = jnp.stack([one_row(*(x[row] for x in arrays)) for row in range(q.shape[0])])
    else:
        out_BHSA = lax.map(lambda row: one_row(*row), arrays)
    # Queries that see nothing hold no meaning, nan even where their whole block sees nothing.
    out_BHSA = jnp.where(seen[:, None, :, None], out_BHSA, 0)
    return jnp.swapaxes(out_BHSA, 1, 2)[:, :length]


def touched_blocks(
    start: Int[Array, "S"], end: Int[Array, "S"], keys: int, query_block: int, key_block: int
) -> Bool[Array, "query_blocks key_blocks"]:
    """Which blocks hold a key that one of their queries sees: the blocks that are computed.

    Args:
      start: first visible key of each query.
      end: after the last one.
      keys: how many there are.
      query_block: queries of a block; divides their number.
      key_block: keys of a block; divides theirs.
    """
    first = jnp.arange(0, keys, key_block, dtype=start.dtype)
    touches = (start[:, None] < first + key_block) & (end[:, None] > first) & (start < end)[:, None]
    return touches.reshape(-1, query_block, first.size).any(axis=1)


def _kernel(
    start: jax.Array, end: jax.Array, keys: int, query_block: int, key_block: int, interpret: bool
) -> library.SplashAttentionKernel:
    """The library's kernels for one row's ranges; a function of (q [H, S, A], k and v [G, M, A])."""
    touched = touched_blocks(start, end, keys, query_block, key_block)
    ranges = _pack(start, end)

    def mask(load: jax.Array) -> MaskInfo:
        return MaskInfo(
            data_next=load[None],
            mask_next=None,
            block_mask=touched.astype(jnp.int32)[None],
            partial_mask_blocks=None,
            q_sequence=ranges,
        )

    by_queries = mask(_block_to_load(touched))
    return library.SplashAttentionKernel(
        by_queries,
        by_queries,
        mask(_block_to_load(touched.T).T),
        # One size of query blocks for all passes: a block that sees nothing, whose results are nan, is then skipped in
        # each of them.
        block_sizes=library.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=library.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=kept.NAME,
        mask_function=_sees,
        interpret=interpret,
    )


def _pack(start: Int[Array, "S"], end: Int[Array, "S"]) -> Int[Array, "S"]:
    """A range in one number: its first key in the upper 16 bits, its last one below; empty ones hold 1 and 0."""
    return jnp.where(start < end, (start << 16) | (end - 1), 1 << 16).astype(jnp.int32)


def _sees(ranges: jax.Array, key: jax.Array) -> jax.Array:
    """Whether a query with this packed range sees the key of this index; runs inside the kernels."""
    first, last = lax.shift_right_logical(ranges, jnp.full_like(ranges, 16)), ranges & 0xFFFF
    return (key >= first) & (key <= last)


def _block_to_load(touched: Bool[Array, "outer inner"]) -> Int[Array, "outer inner"]:
    """At every step of the inner loop, the block to have loaded: the next one with work, after the last one that one.

    Blocks are loaded when this number changes, so steps without work cost no load.
    """
    steps = touched.shape[1]
    step = jnp.arange(steps, dtype=jnp.int32)
    ahead = lax.cummin(jnp.where(touched, step, steps), axis=1, reverse=True)
    last = jnp.max(jnp.where(touched, step, 0), axis=1, keepdims=True)
    return jnp.minimum(ahead, last)


def block_for(length: int) -> int:
    """Positions of a block of so many queries or keys of one device, from `BLOCKS`."""
    return next(block for least, block in BLOCKS if length >= least)


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Zeros after the end of an axis, up to a multiple."""
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x
