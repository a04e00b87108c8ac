"""Attention by ranges on GPUs: FlashAttention with a range a query, as Pallas kernels that Triton compiles.

One program a tile of queries and head walks over the tiles of keys that its ranges touch, computed beforehand in the
same compiled program (`flash_tiles.visits`), and masks only those at the edges. So the cost follows what the ranges
see, one compile serves every layout of documents, and a decoding step reads the filled part of its cache alone. Inputs
keep their layout [B, S, H, A]; nothing is transposed, repeated for grouped heads or padded.

Algorithm: FlashAttention-2 (Dao, 2023, arXiv:2307.08691), backward in two kernels (`flash_gradients`). Triton, not
Mosaic GPU, since one source serves A100, H100 and H200. tokamax's attention knows ranges too, but in a class that its
public function does not take, its Triton gradients turn them into a dense mask of S x M, and its Mosaic kernels are for
Hopper and Blackwell alone.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.attention import flash_gradients
from nextflow_jax.ops.attention.flash_tiles import Ref, Tile, load_tile, store_tile, visits, walk
from nextflow_jax.ops.attention.kept import keep
from nextflow_jax.sharding import platform

HEAD_SIZES = (16, 32, 64, 128, 256)
"""Tiles of tensor cores are powers of two, of at least 16."""

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)

FLOOR = -1e30
"""Below every score, and finite: the difference of two of them is no nan."""


def limit(q: jax.Array, k: jax.Array) -> str:
    """Why these queries and keys are not for the kernels; "" when they are."""
    del k
    if q.shape[3] not in HEAD_SIZES:
        return f"the head size {q.shape[3]} is none of {', '.join(map(str, HEAD_SIZES))}"
    if q.dtype not in DTYPES:
        return f"{q.dtype} is none of {', '.join(jnp.dtype(dtype).name for dtype in DTYPES)}"
    return ""


def attend(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    *,
    tile: Tile | None = None,
    interpret: bool | None = None,
) -> Float[Array, "B S H A"]:
    """See `nextflow_jax.ops.attention.attend`. Products are of the inputs' dtype, sums and softmax float32.

    float32 inputs are multiplied at the precision of `jax.default_matmul_precision`.

    Args:
      q: queries; A one of `HEAD_SIZES`.
      k: keys.
      v: values.
      start: first visible key of each query.
      end: after the last visible key of each query.
      tile: sizes of the tiles, powers of two of at least 16, of all three kernels; None chooses by the shapes.
      interpret: run the kernels as plain JAX; None does so where there is no GPU.
    """
    if interpret is None:
        interpret = platform() == "cpu"
    return _attend(q, k, v, start, jnp.minimum(end, k.shape[1]), tile, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    end: jax.Array,
    tile: Tile | None,
    interpret: bool,
) -> jax.Array:
    return _forward(q, k, v, start, end, tile, interpret)[0]


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    end: jax.Array,
    tile: Tile | None,
    interpret: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    (batch, length, heads, size), (_, keys, groups, _) = q.shape, k.shape
    tile = tile or forward_tile(length, size, q.dtype)
    repeats, tiles = heads // groups, pl.cdiv(length, tile.queries)
    by_queries, _ = visits(start, end, keys, tile)
    of_row = pl.BlockSpec((None, length), lambda h, i, b: (b, 0))
    of_head = pl.BlockSpec((None, length, None, size), lambda h, i, b: (b, 0, h, 0))
    of_group = pl.BlockSpec((None, keys, None, size), lambda h, i, b: (b, 0, h // repeats, 0))
    out, log_total = pl.pallas_call(
        functools.partial(_kernel, length=length, keys=keys, tile=tile),
        # Heads change first: those of a group find its keys in the cache.
        grid=(heads, tiles, batch),
        in_specs=[
            pl.BlockSpec((None, None, 4), lambda h, i, b: (b, tiles - 1 - i, 0)),
            of_row,
            of_row,
            of_head,
            of_group,
            of_group,
        ],
        out_specs=[of_head, pl.BlockSpec((None, None, length), lambda h, i, b: (b, h, 0))],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)],
        compiler_params=tile.parameters(),
        interpret=interpret,
        name="flash_forward",
    )(by_queries, start, end, q, k, v)
    out, log_total = keep(out), keep(log_total)
    return out, (q, k, v, start, end, out, log_total)


def _kernel(
    visits_ref: Ref,
    start_ref: Ref,
    end_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    out_ref: Ref,
    log_ref: Ref,
    *,
    length: int,
    keys: int,
    tile: Tile,
) -> None:
    """The values of one tile of queries, of one head; visits [4], ranges [S], q and out [S, A], k and v [M, A]."""
    # The last tiles of a document see most: they start first.
    i = pl.num_programs(1) - 1 - pl.program_id(1)
    q, start, end = (load_tile(ref, i, tile.queries, length) for ref in (q_ref, start_ref, end_ref))
    scale = q.shape[1] ** -0.5 * math.log2(math.e)

    def step(j: jax.Array, state: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
        peak, total, mixed = state
        k, v = (load_tile(ref, j, tile.keys, keys, masked) for ref in (k_ref, v_ref))
        scores = triton.dot(q, k.T) * scale
        if masked:
            index_K = j * tile.keys + jnp.arange(tile.keys, dtype=jnp.int32)
            scores = jnp.where((start[:, None] <= index_K) & (index_K < end[:, None]), scores, -jnp.inf)
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights = jnp.exp2(scores - new_peak[:, None])
        shrink = jnp.exp2(peak - new_peak)
        total = shrink * total + weights.sum(axis=1)
        return new_peak, total, shrink[:, None] * mixed + triton.dot(weights.astype(v.dtype), v)

    nothing = (
        jnp.full((tile.queries,), FLOOR, jnp.float32),
        jnp.zeros((tile.queries,), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    peak, total, mixed = walk(visits_ref, step, nothing)
    # A query that saw no key has a total of zero: zeros for it, and any finite logarithm.
    seen = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    store_tile(out_ref, mixed / seen[:, None], i, length)
    store_tile(log_ref, peak + jnp.log2(seen), i, length)


def _backward(
    tile: Tile | None, interpret: bool, saved: tuple[jax.Array, ...], out_gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    return *flash_gradients.gradients(*saved, out_gradient, tile=tile, interpret=interpret), None, None


_attend.defvjp(_forward, _backward)


def forward_tile(length: int, size: int, dtype: jnp.dtype) -> Tile:
    """Sizes for so many queries: the keys and values of the stages in flight take 96 KB of shared memory at most."""
    queries = min(128, max(16, pl.next_power_of_2(length)))
    keys = 64 if size * jnp.dtype(dtype).itemsize <= 256 else 32
    return Tile(queries, keys, warps=8 if queries * size >= 128 * 128 else 4, stages=3)
