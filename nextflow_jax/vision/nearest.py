"""Nearest codes of many vectors in blocks: no more than `BLOCK` distances a picture exist at a time, whatever its size.

A 1024-pixel picture has 10,084 vectors; against 32,768 codes that is 1.3 GB of distances a picture. Blocks are cut
along the positions inside a picture and hold every picture of the batch and every code, so that a batch or a codebook
split over devices stays split, and each block is searched exactly as the whole would be.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BLOCK = 2**22
"""Distances held at once, a picture (16 MB); fewer than this are searched in one piece. Counted a picture and not a
batch, so that a large batch, which lies on many devices, is not searched position by position."""


def squared_distances(points: Float[Array, "*B C"], codes: Float[Array, "V C"]) -> Float[Array, "*B V"]:
    """Squared distance of every point to every code, float32; the whole table, so for one block only."""
    point_norms = jnp.sum(jnp.square(points), axis=-1, keepdims=True)
    products = jnp.matmul(points, codes.T, precision=jax.lax.Precision.HIGHEST)
    return point_norms - 2 * products + jnp.sum(jnp.square(codes), axis=-1)


def nearest_codes(points: Float[Array, "*B C"], codes: Float[Array, "V C"], block: int = BLOCK) -> Int[Array, "*B"]:
    """The code nearest to each point by squared distance; the lowest of equals. No gradient passes.

    Args:
      points: float32, the batch first; see `codebook.comparable` for what is compared.
      codes: float32.
      block: distances held at once, a picture.
    """
    points, codes = jax.lax.stop_gradient((points, codes))
    return in_blocks(lambda part: smallest(squared_distances(part, codes)), points, len(codes), block)


def near_codes(
    points: Float[Array, "*B C"], codes: Float[Array, "V C"], top_k: int, block: int = BLOCK
) -> tuple[Float[Array, "*B K"], Int[Array, "*B K"]]:
    """The `top_k` codes nearest to each point, nearest first, the lowest of equals first. No gradient passes.

    Args:
      points: float32, the batch first.
      codes: float32.
      top_k: at most the number of codes.
      block: distances held at once, a picture.

    Returns:
      (squared distances, codes).
    """
    points, codes = jax.lax.stop_gradient((points, codes))

    def search(part: Float[Array, "*B C"]) -> tuple[Float[Array, "*B K"], Int[Array, "*B K"]]:
        negative, indices = jax.lax.top_k(-squared_distances(part, codes), top_k)
        return -negative, indices

    return in_blocks(search, points, len(codes), block)


def smallest(distances: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The index of the smallest of each vector's distances; the lowest of equals.

    Two plain minima, because XLA's argmin runs four times slower on CPUs.
    """
    least = jnp.min(distances, axis=-1, keepdims=True)
    last = distances.shape[-1] - 1
    return jnp.min(jnp.where(distances <= least, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def draw_near(
    key: Key[Array, ""], distances: Float[Array, "*B K"], candidates: Int[Array, "*B K"], temperature: float
) -> Int[Array, "*B"]:
    """One of every vector's candidates (`near_codes`), drawn with probability softmax(-distance / temperature)."""
    choice = jax.random.categorical(key, -distances / temperature, axis=-1)
    return jnp.take_along_axis(candidates, choice[..., None], axis=-1)[..., 0].astype(jnp.int32)


def in_blocks(
    function: Callable[[Float[Array, "*B C"]], Any], points: Float[Array, "*B C"], num_codes: int, block: int = BLOCK
) -> Any:
    """`function(points)`, a tree of arrays [*B, ...] in which each point stands for itself, computed block by block.

    Args:
      function: what is done with the points; makes `num_codes` numbers of each on the way.
      points: the batch first, positions inside a picture after it.
      num_codes: V.
      block: numbers held at once, a picture; one position of each is the least that is taken.
    """
    batch, *grid = points.shape[:-1] if points.ndim > 2 else (1, *points.shape[:-1])
    positions = math.prod(grid)
    size = max(1, block // num_codes)
    if positions <= size:
        return function(points)
    blocks = -(-positions // size)
    rows = jnp.pad(points.reshape(batch, positions, -1), [(0, 0), (0, blocks * size - positions), (0, 0)])
    parts = jnp.moveaxis(rows.reshape(batch, blocks, size, -1), 1, 0)
    join = functools.partial(_join, positions=positions, shape=points.shape[:-1])
    return jax.tree.map(join, jax.lax.map(function, parts))


def _join(parts: Array, positions: int, shape: tuple[int, ...]) -> Array:
    """Parts [blocks, batch, size, ...] as one array [*shape, ...]."""
    rows = jnp.moveaxis(parts, 0, 1)
    batch, blocks, size, *rest = rows.shape
    return rows.reshape(batch, blocks * size, *rest)[:, :positions].reshape(*shape, *rest)
