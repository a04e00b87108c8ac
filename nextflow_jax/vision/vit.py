"""The SigLIP-style vision transformer: teacher's tower and tokenizer's semantic encoder alike (recipe section 2).

It takes pictures of one size, or patches of pictures of many shapes in one batch (NaFlex, SigLIP 2, arXiv 2502.14786);
the same picture gives the same features either way.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nextflow_jax.config import Fault
from nextflow_jax.vision.transformer import (
    INIT_SCALE,
    Attention,
    Mlp,
    Transformer,
    TransformerConfig,
    dense,
    layer_norm,
    partitioned,
)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Patches, position table and stack of a vision transformer."""

    patch: int = 8
    """Pixels on the side of a patch."""
    position_grid: tuple[int, int] = (4, 4)
    """Rows and columns of the learned position table; other grids see it resized (NaFlex)."""
    transformer: TransformerConfig = TransformerConfig()

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if self.patch < 1 or min(self.position_grid) < 1:
            yield Fault("patch", (self.patch, self.position_grid), "patch and position grid must be positive", "use 8")


def split_patches(images: Float[Array, "B H W I"], patch: int) -> Float[Array, "B Y X patch_values"]:
    """Every patch's values as one vector (rows, then columns, then channels); space-to-depth."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    tiles = images.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, rows, columns, patch * patch * channels)


def join_patches(patches: Float[Array, "B Y X patch_values"], patch: int) -> Float[Array, "B H W I"]:
    """The inverse of `split_patches`; depth-to-space."""
    batch, rows, columns, values = patches.shape
    tiles = patches.reshape(batch, rows, columns, patch, patch, values // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, rows * patch, columns * patch, values // patch**2)


class Patches(NamedTuple):
    """Pictures of any shapes as one batch (NaFlex): each one's patches row by row, padded at the end."""

    values: Float[Array, "B N patch_values"]
    """As `split_patches` orders them, pixels in [-1, 1]; what stands in the padding does not matter."""
    shapes: Int[Array, "B 2"]
    """Rows and columns of each picture, in patches; at least 1 each, rows * columns <= N."""

    @property
    def mask(self) -> Bool[Array, "B N"]:
        """False at padding."""
        return jnp.arange(self.values.shape[1]) < jnp.prod(self.shapes, axis=1)[:, None]


class ViT(nn.Module):
    """Pictures to one feature vector a patch, any height and width that are multiples of the patch."""

    config: ViTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pictures: Float[Array, "B H W 3"] | Patches) -> Float[Array, "B *patches D"]:
        """Features of the patches (pixels in [-1, 1]), after the final norm.

        Args:
          pictures: of one size, or the patches of pictures of mixed shapes.

        Returns:
          [B, Y, X, D] for pictures; [B, N, D] for patches, where features of padding mean nothing.
        """
        width = self.config.transformer.width
        init = partitioned(nn.initializers.normal(INIT_SCALE), None, None, "embed")
        table = self.param("positions", init, (*self.config.position_grid, width))
        mixed = isinstance(pictures, Patches)
        patches = pictures.values if mixed else split_patches(pictures, self.config.patch)
        x = dense(width, ("patch", "embed"), self.dtype, "patch_embedding")(patches.astype(self.dtype))
        positions = mixed_positions(table, pictures.shapes, x.shape[1]) if mixed else _positions(table, x.shape[1:3])
        x = (x + positions.astype(self.dtype)).reshape(x.shape[0], -1, width)
        x = Transformer(self.config.transformer, self.dtype, name="transformer")(x, pictures.mask if mixed else None)
        return x.reshape(*patches.shape[:-1], width)


def mixed_positions(table: Float[Array, "R C D"], shapes: Int[Array, "B 2"], length: int) -> Float[Array, "B N D"]:
    """The position table resized to every picture's own rows and columns, antialiased, laid out as its patches are.

    Shapes are traced, so one compiled program serves any mixture. A resize is separable: each patch takes a weighted
    mean over the rows of the table, and over its columns. Equal to torch's interpolate(mode="bilinear", antialias=True,
    align_corners=False), which SigLIP 2 uses.

    Args:
      table: the learned positions.
      shapes: rows and columns of each picture, in patches.
      length: N, patches of a row of the batch, padding included.
    """
    rows, columns = shapes[:, :1], shapes[:, 1:]
    index = jnp.arange(length)
    by_row = _line_weights(jnp.minimum(index // columns, rows - 1), rows, table.shape[0])
    by_column = _line_weights(index % columns, columns, table.shape[1])
    by_cell = by_row[..., :, None] * by_column[..., None, :]
    return jnp.einsum("BNRC,RCD->BND", by_cell, table, precision=jax.lax.Precision.HIGHEST)


def _line_weights(index: Int[Array, "B N"], size: Int[Array, "B 1"], samples: int) -> Float[Array, "B N samples"]:
    """Weights over a line of `samples` that give sample `index` of the line resized to `size`; they sum to one."""
    stride = (samples / size)[..., None]
    centre = (index[..., None] + 0.5) * stride
    distance = jnp.abs(jnp.arange(samples) + 0.5 - centre) / jnp.maximum(stride, 1.0)
    weights = jnp.maximum(1.0 - distance, 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _positions(table: Float[Array, "R C D"], grid: tuple[int, int]) -> Float[Array, "Y X D"]:
    if table.shape[:2] == grid:
        return table
    return jax.image.resize(table, (*grid, table.shape[2]), "linear", antialias=True)


class AttentionPool(nn.Module):
    """One vector a picture: a learned query attends over the patches, then an MLP with residual (SigLIP's MAP head)."""

    config: TransformerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, features: Float[Array, "B *patches D"], mask: Bool[Array, "B N"] | None = None
    ) -> Float[Array, "B D"]:
        """`mask` is False at patches that are padding."""
        batch, width = features.shape[0], features.shape[-1]
        probe_init = partitioned(nn.initializers.normal(INIT_SCALE), None, "embed")
        probe = self.param("probe", probe_init, (1, width)).astype(self.dtype)
        queries = jnp.broadcast_to(probe, (batch, 1, width))
        pooled = Attention(self.config, self.dtype, name="attention")(queries, features.reshape(batch, -1, width), mask)
        pooled = pooled + Mlp(self.config, self.dtype, name="mlp")(layer_norm(self.dtype, "norm")(pooled))
        return pooled[:, 0]
