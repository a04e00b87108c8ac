"""The backward pass of attention by ranges on GPUs: one kernel for queries, one for keys and values.

Both make the weights of each tile again from the saved logarithm of the softmax's denominator (base 2). The kernel of
queries walks over keys as the forward pass does; the kernel of keys walks over those tiles of queries that can see its
keys, for all heads that share them, so that gradients are summed in float32 within one program, in a fixed order.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.attention.flash_tiles import Ref, Tile, load_tile, store_tile, visits, walk


def gradients(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
    out: Float[Array, "B S H A"],
    log_total: Float[Array, "B H S"],
    out_gradient: Float[Array, "B S H A"],
    *,
    tile: Tile | None,
    interpret: bool,
) -> tuple[Float[Array, "B S H A"], Float[Array, "B M G A"], Float[Array, "B M G A"]]:
    """Gradients of q, k and v.

    Args:
      q: queries.
      k: keys.
      v: values.
      start: first visible key of each query.
      end: after the last visible key of each query, at most M.
      out: what the forward pass gave.
      log_total: the logarithms, base 2, of its softmax's denominators, scores' maximum included.
      out_gradient: the gradient of `out`.
      tile: sizes of the tiles; None chooses by the shapes.
      interpret: run the kernels as plain JAX.
    """
    products = jnp.sum(out.astype(jnp.float32) * out_gradient.astype(jnp.float32), axis=3)
    saved = (q, k, v, start, end, out_gradient, log_total, jnp.swapaxes(products, 1, 2))
    queries_tile, keys_tile = (tile, tile) if tile else gradient_tiles(q.shape[1], q.shape[3], q.dtype)
    dq = _gradient_of_queries(*saved, tile=queries_tile, interpret=interpret)
    return dq, *_gradients_of_keys(*saved, tile=keys_tile, interpret=interpret)


def _gradient_of_queries(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    end: jax.Array,
    out_gradient: jax.Array,
    log_total: jax.Array,
    products: jax.Array,
    *,
    tile: Tile,
    interpret: bool,
) -> jax.Array:
    (batch, length, heads, size), (_, keys, groups, _) = q.shape, k.shape
    repeats, tiles = heads // groups, pl.cdiv(length, tile.queries)
    by_queries, _ = visits(start, end, keys, tile)
    of_row = pl.BlockSpec((None, length), lambda h, i, b: (b, 0))
    of_head = pl.BlockSpec((None, length, None, size), lambda h, i, b: (b, 0, h, 0))
    of_group = pl.BlockSpec((None, keys, None, size), lambda h, i, b: (b, 0, h // repeats, 0))
    number_of_head = pl.BlockSpec((None, None, length), lambda h, i, b: (b, h, 0))
    return pl.pallas_call(
        functools.partial(_queries_kernel, length=length, keys=keys, tile=tile),
        grid=(heads, tiles, batch),
        in_specs=[
            pl.BlockSpec((None, None, 4), lambda h, i, b: (b, tiles - 1 - i, 0)),
            of_row,
            of_row,
            of_head,
            of_group,
            of_group,
            of_head,
            number_of_head,
            number_of_head,
        ],
        out_specs=of_head,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=tile.parameters(),
        interpret=interpret,
        name="flash_gradient_of_queries",
    )(by_queries, start, end, q, k, v, out_gradient, log_total, products)


def _queries_kernel(
    visits_ref: Ref,
    start_ref: Ref,
    end_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    do_ref: Ref,
    log_ref: Ref,
    products_ref: Ref,
    dq_ref: Ref,
    *,
    length: int,
    keys: int,
    tile: Tile,
) -> None:
    """dq of one tile of queries, of one head; visits [4], numbers of queries [S], q, do, dq [S, A], k and v [M, A]."""
    i = pl.num_programs(1) - 1 - pl.program_id(1)
    refs = (start_ref, end_ref, q_ref, do_ref, log_ref, products_ref)
    start, end, q, do, log_total, products = (load_tile(ref, i, tile.queries, length) for ref in refs)
    scale = q.shape[1] ** -0.5

    def step(j: jax.Array, dq: jax.Array, masked: bool) -> jax.Array:
        k, v = (load_tile(ref, j, tile.keys, keys, masked) for ref in (k_ref, v_ref))
        scores = triton.dot(q, k.T) * (scale * math.log2(math.e))
        if masked:
            index_K = j * tile.keys + jnp.arange(tile.keys, dtype=jnp.int32)
            scores = jnp.where((start[:, None] <= index_K) & (index_K < end[:, None]), scores, -jnp.inf)
        weights = jnp.exp2(scores - log_total[:, None])
        dscores = weights * (triton.dot(do, v.T) - products[:, None])
        return dq + triton.dot(dscores.astype(k.dtype), k)

    dq = walk(visits_ref, step, jnp.zeros(q.shape, jnp.float32))
    store_tile(dq_ref, dq * scale, i, length)


def _gradients_of_keys(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    end: jax.Array,
    out_gradient: jax.Array,
    log_total: jax.Array,
    products: jax.Array,
    *,
    tile: Tile,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    (batch, length, heads, size), (_, keys, groups, _) = q.shape, k.shape
    repeats = heads // groups
    _, by_keys = visits(start, end, keys, tile)
    of_row = pl.BlockSpec((None, length), lambda g, j, b: (b, 0))
    of_heads = pl.BlockSpec((None, length, repeats, size), lambda g, j, b: (b, 0, g, 0))
    of_group = pl.BlockSpec((None, keys, None, size), lambda g, j, b: (b, 0, g, 0))
    number_of_heads = pl.BlockSpec((None, repeats, length), lambda g, j, b: (b, g, 0))
    return pl.pallas_call(
        functools.partial(_keys_kernel, repeats=repeats, length=length, keys=keys, tile=tile),
        grid=(groups, pl.cdiv(keys, tile.keys), batch),
        in_specs=[
            pl.BlockSpec((None, None, 4), lambda g, j, b: (b, j, 0)),
            of_row,
            of_row,
            of_heads,
            of_group,
            of_group,
            of_heads,
            number_of_heads,
            number_of_heads,
        ],
        out_specs=[of_group, of_group],
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        compiler_params=tile.parameters(),
        interpret=interpret,
        name="flash_gradients_of_keys",
    )(by_keys, start, end, q, k, v, out_gradient, log_total, products)


def _keys_kernel(
    visits_ref: Ref,
    start_ref: Ref,
    end_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    do_ref: Ref,
    log_ref: Ref,
    products_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    *,
    repeats: int,
    length: int,
    keys: int,
    tile: Tile,
) -> None:
    """dk and dv of one tile of keys, of one group; q and do [S, repeats, A], their numbers [repeats, S]."""
    j = pl.program_id(1)
    k, v = (load_tile(ref, j, tile.keys, keys) for ref in (k_ref, v_ref))
    index_K = j * tile.keys + jnp.arange(tile.keys, dtype=jnp.int32)
    scale = k.shape[1] ** -0.5

    def one_head(r: jax.Array, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def step(i: jax.Array, gradients: tuple[jax.Array, jax.Array], masked: bool) -> tuple[jax.Array, jax.Array]:
            dk, dv = gradients
            refs = (q_ref, do_ref, log_ref, products_ref)
            q, do, log_total, products = (load_tile(ref, i, tile.queries, length, masked, head=r) for ref in refs)
            scores_KQ = triton.dot(k, q.T) * (scale * math.log2(math.e))
            if masked:
                start, end = (load_tile(ref, i, tile.queries, length) for ref in (start_ref, end_ref))
                seen_KQ = (start <= index_K[:, None]) & (index_K[:, None] < end)
                scores_KQ = jnp.where(seen_KQ, scores_KQ, -jnp.inf)
            weights_KQ = jnp.exp2(scores_KQ - log_total)
            dv += triton.dot(weights_KQ.astype(do.dtype), do)
            dscores_KQ = weights_KQ * (triton.dot(v, do.T) - products)
            return dk + triton.dot(dscores_KQ.astype(q.dtype), q), dv

        return walk(visits_ref, step, gradients)

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(0, repeats, one_head, (zeros, zeros))
    store_tile(dk_ref, dk * scale, j, keys)
    store_tile(dv_ref, dv, j, keys)


def gradient_tiles(length: int, size: int, dtype: jnp.dtype) -> tuple[Tile, Tile]:
    """Sizes for the kernels of queries and of keys: what stays in registers is large, what passes by small."""
    wide = size * jnp.dtype(dtype).itemsize > 256
    stays, passes = (64, 32) if wide else (128, 32 if size == 128 else 64)
    queries = max(16, pl.next_power_of_2(length))
    return Tile(min(stays, queries), passes, 8, 2), Tile(min(passes, queries), stays, 8, 2)
