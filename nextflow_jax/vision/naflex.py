"""Pictures to NaFlex batches: the patch grid under a budget, and the patches (SigLIP 2, arXiv 2502.14786, 2.4.2)."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nextflow_jax.errors import UserError
from nextflow_jax.vision.vit import Patches

MAX_ENLARGEMENT = 100
"""SigLIP 2's preprocessing enlarges no side more than this."""


def patch_grid(height: int, width: int, patch: int, budget: int) -> tuple[int, int]:
    """The largest (rows, columns) of patches that a picture fills at one scale of its sides, each rounded up.

    Rounding up changes the aspect ratio by less than a patch. As the scale grows, a side's count grows right after it
    fills whole patches exactly, so the largest grids are those where one of the sides does.

    Args:
      height: pixels.
      width: pixels.
      patch: pixels on the side of a patch.
      budget: the most patches.

    Raises:
      UserError: a side, the patch or the budget is not positive.
    """
    if min(height, width, patch, budget) < 1:
        raise UserError(f"a picture of {height} x {width}, patches of {patch}, {budget} at most: all must be positive")
    limit = tuple(-(-side * MAX_ENLARGEMENT // patch) for side in (height, width))
    grids = [limit]
    grids += [(rows, -(-rows * width // height)) for rows in range(1, min(budget, limit[0]) + 1)]
    grids += [(-(-columns * height // width), columns) for columns in range(1, min(budget, limit[1]) + 1)]
    return max(grid for grid in grids if grid[0] * grid[1] <= budget and grid[0] <= limit[0] and grid[1] <= limit[1])


def make_patches(images: Sequence[Float[np.ndarray, "_H _W 3"]], patch: int, budget: int) -> Patches:
    """Pictures of any sizes, each resized to its grid (`patch_grid`) and cut, as one padded batch; host memory.

    Resizing is bilinear and antialiased, as SigLIP 2's, but does not round to 8 bits.

    Args:
      images: float32 in [-1, 1].
      patch: pixels on the side of a patch.
      budget: N, the most patches of a picture; every picture is padded to it.
    """
    values = np.zeros((len(images), budget, 3 * patch**2), np.float32)
    shapes = [patch_grid(*image.shape[:2], patch, budget) for image in images]
    for row, image, (rows, columns) in zip(values, images, shapes):
        by_row, by_column = (_resize_matrix(size, grid * patch) for size, grid in zip(image.shape, (rows, columns)))
        resized = np.einsum("yh,xw,hwi->yxi", by_row, by_column, image, optimize=True)
        tiles = resized.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
        row[: rows * columns] = tiles.reshape(rows * columns, -1)
    return Patches(jnp.asarray(values), jnp.asarray(shapes, jnp.int32))


@functools.lru_cache(maxsize=256)
def _resize_matrix(n_in: int, n_out: int) -> Float[np.ndarray, "n_out n_in"]:
    """Antialiased bilinear resizing of a line: triangles as wide as the coarser of the two grids."""
    stride = n_in / n_out
    distance = np.abs(np.arange(n_in) + 0.5 - (np.arange(n_out)[:, None] + 0.5) * stride)
    weights = np.maximum(1 - distance / max(stride, 1.0), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
