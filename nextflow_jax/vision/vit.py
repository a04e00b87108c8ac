"""The SigLIP-style vision transformer: teacher's tower and tokenizer's semantic encoder alike (recipe section 2)."""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

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


class ViT(nn.Module):
    """Pictures to one feature vector a patch, any height and width that are multiples of the patch."""

    config: ViTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X D"]:
        """Features of the patches of `images` (values in [-1, 1]), after the final norm."""
        width = self.config.transformer.width
        patches = split_patches(images.astype(self.dtype), self.config.patch)
        x = dense(width, ("patch", "embed"), self.dtype, "patch_embedding")(patches)
        batch, rows, columns, _ = x.shape
        x = x + self._positions(rows, columns).astype(self.dtype)
        x = Transformer(self.config.transformer, self.dtype, name="transformer")(
            x.reshape(batch, rows * columns, width)
        )
        return x.reshape(batch, rows, columns, width)

    def _positions(self, rows: int, columns: int) -> Float[Array, "Y X D"]:
        init = partitioned(nn.initializers.normal(INIT_SCALE), None, None, "embed")
        width = self.config.transformer.width
        table = self.param("positions", init, (*self.config.position_grid, width))
        if self.config.position_grid == (rows, columns):
            return table
        return jax.image.resize(table, (rows, columns, width), "linear", antialias=True)


class AttentionPool(nn.Module):
    """One vector a picture: a learned query attends over the patches, then an MLP with residual (SigLIP's MAP head)."""

    config: TransformerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, features: Float[Array, "B Y X D"]) -> Float[Array, "B D"]:
        batch, rows, columns, width = features.shape
        probe_init = partitioned(nn.initializers.normal(INIT_SCALE), None, "embed")
        probe = self.param("probe", probe_init, (1, width)).astype(self.dtype)
        queries = jnp.broadcast_to(probe, (batch, 1, width))
        keys = features.reshape(batch, rows * columns, width)
        pooled = Attention(self.config, self.dtype, name="attention")(queries, keys)
        pooled = pooled + Mlp(self.config, self.dtype, name="mlp")(layer_norm(self.dtype, "norm")(pooled))
        return pooled[:, 0]
