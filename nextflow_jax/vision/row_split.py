"""Feature maps split by rows over devices: each convolution passes border rows to the neighbours, and nothing else.

Active within `sharding.logical_context` where the mesh splits the logical axis "image_rows"; elsewhere nothing changes.
Grids whose rows the mesh does not divide, the coarsest perhaps, stay whole on every device. The exchange is written out
because the compiler's own (of a plain convolution whose input is split by rows) makes kernels' gradients too large,
once for each copy, where another mesh axis holds copies of the feature map (XLA of JAX 0.10.2). For the same reason
split feature maps should not reach other convolutions: `join_rows` ends the split part of a model.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from nextflow_jax.sharding import constrain, mesh_axes


def split_rows(x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
    """Pins a feature map to devices by pictures and rows."""
    if not mesh_axes("image_rows")[1]:
        return x
    return constrain(x, "batch", "image_rows" if _divides(x.shape[1]) else None, None, None)


def join_rows(x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
    """Pins a feature map to devices by pictures only; all rows of a picture come together."""
    return constrain(x, "batch", None, None, None) if mesh_axes("image_rows")[1] else x


def convolve(
    x: Float[Array, "B Y X I"],
    kernel: Float[Array, "h w I O"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **settings: Any,
) -> Float[Array, "B V U O"]:
    """`jax.lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=convolve)`.

    Args:
      x: rows divisible by `strides[0]`; split as by `split_rows`, or anyhow outside a mesh.
      kernel: whole on every device.
      strides: of rows and columns.
      padding: "SAME", or zeros before and after rows and columns.
      settings: as of `jax.lax.conv_general_dilated`; no dilation.
    """
    mesh, row_axes = mesh_axes("image_rows")
    if not row_axes:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    batch_axes = mesh_axes("batch")[1]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (before, after), columns = padding
    split = _divides(x.shape[1], strides[0])

    def local(x: Array, kernel: Array) -> Array:
        if split:
            x = _with_borders(x, before, kernel.shape[0] - strides[0] - before, row_axes)
        outside = (0, 0) if split else (before, after)
        return jax.lax.conv_general_dilated(x, kernel, strides, (outside, columns), **settings)

    spec = PartitionSpec(batch_axes or None, row_axes if split else None)
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)(x, kernel)


def _with_borders(
    x: Float[Array, "B Y X I"], before: int, after: int, axes: tuple[str, ...]
) -> Float[Array, "B V X I"]:
    """This device's rows between the last of the device above and the first of the one below, zeros at the ends."""
    parts = jax.lax.axis_size(axes)
    above = [(index, index + 1) for index in range(parts - 1)]
    below = [(index + 1, index) for index in range(parts - 1)]
    pieces = [x]
    if before:
        pieces.insert(0, jax.lax.ppermute(x[:, -before:], axes, above))
    if after:
        pieces.append(jax.lax.ppermute(x[:, :after], axes, below))
    return jnp.concatenate(pieces, axis=1)


def _divides(rows: int, stride: int = 1) -> bool:
    mesh, axes = mesh_axes("image_rows")
    return rows % (math.prod(mesh.shape[axis] for axis in axes) * stride) == 0
