"""The layers that convolutional encoder and decoder are made of: convolution, group norm, residual and attention block.

Definitions follow VQGAN (arXiv 2012.09841), so that weights published in that shape fit by renaming. Every layer but
attention and the statistics of a group norm sees a few rows only, and statistics may be given from outside (collection
"moments"): this allows decoding in strips (nextflow_jax/vision/tiled.py).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.vision.row_split import convolve
from nextflow_jax.vision.transformer import NORM_EPSILON, partitioned

GIVEN_MOMENTS = "moments"
"""Collection in which a caller may give a group norm its statistics, as `means`; see `GroupNorm`."""

ROW_MEANS = "row_means"
"""Name in the collection "intermediates" of what a group norm measures; see `GroupNorm`."""


def convolution(features: int, dtype: DTypeLike, name: str | None = None, size: int = 3) -> nn.Conv:
    """A `size` x `size` convolution that keeps the grid."""
    return nn.Conv(features, (size, size), dtype=dtype, name=name, **_settings())


def downsample(channels: int, dtype: DTypeLike, name: str) -> nn.Conv:
    """A 3 x 3 convolution with stride 2; zeros are added below and to the right only, as in VQGAN."""
    padding = ((0, 1), (0, 1))
    return nn.Conv(channels, (3, 3), strides=(2, 2), padding=padding, dtype=dtype, name=name, **_settings())


class Double(nn.Module):
    """Every cell four times: a grid of twice the rows and columns (nearest)."""

    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B Y2 X2 I"]:
        batch, rows, columns, channels = x.shape
        repeated = jnp.broadcast_to(x[:, :, None, :, None], (batch, rows, 2, columns, 2, channels))
        return repeated.reshape(batch, rows * 2, columns * 2, channels)


class GroupNorm(nn.Module):
    """Normalises each picture's groups of channels over the grid; statistics in float32.

    With a variable "means" in the collection "moments" ([2, B, groups]: mean and mean square) these are the statistics,
    whatever the grid holds. What the grid holds is sown as "row_means" ([2, B, Y, groups]: the same of each row) for a
    caller that makes "intermediates" mutable.
    """

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
        batch, rows, columns, channels = x.shape
        scale = self.param("scale", partitioned(nn.initializers.ones, "conv_out"), (channels,))
        bias = self.param("bias", partitioned(nn.initializers.zeros, "conv_out"), (channels,))
        x = x.astype(jnp.float32)
        grouped = x.reshape(batch, rows, columns, self.groups, channels // self.groups)
        squares = jnp.square(grouped)
        row_means = jnp.stack([jnp.mean(values, axis=(2, 4)) for values in (grouped, squares)])
        self.sow("intermediates", ROW_MEANS, row_means)
        if self.has_variable(GIVEN_MOMENTS, "means"):
            means = self.get_variable(GIVEN_MOMENTS, "means")
        else:
            means = jnp.stack([jnp.mean(values, axis=(1, 2, 4)) for values in (grouped, squares)])
        mean, square = jnp.repeat(means, channels // self.groups, axis=-1)[:, :, None, None, :]
        variance = jnp.maximum(0.0, square - jnp.square(mean))
        return ((x - mean) * (jax.lax.rsqrt(variance + NORM_EPSILON) * scale) + bias).astype(self.dtype)


class NormAct(nn.Module):
    """Group norm, then SiLU."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
        return nn.silu(GroupNorm(self.groups, self.dtype, name="norm")(x))


class ResidualBlock(nn.Module):
    """Two normalised convolutions around which the input passes, projected when the channels change."""

    channels: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X O"]:
        hidden = x
        for index in (1, 2):
            hidden = NormAct(self.groups, self.dtype, name=f"norm_{index}")(hidden)
            hidden = convolution(self.channels, self.dtype, f"conv_{index}")(hidden)
        if x.shape[-1] != self.channels:
            x = convolution(self.channels, self.dtype, "skip", size=1)(x)
        return x + hidden


class SelfAttention(nn.Module):
    """Every cell attends to every cell: one head over all channels, scores divided by sqrt(channels), softmax in
    float32; a group norm before, a residual around."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
        batch, rows, columns, channels = x.shape
        normed = GroupNorm(self.groups, self.dtype, name="norm")(x)
        query, key, value = (
            convolution(channels, self.dtype, name, size=1)(normed).reshape(batch, rows * columns, 1, channels)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return x + convolution(channels, self.dtype, "out", size=1)(mixed.reshape(x.shape))


def _settings() -> dict[str, Any]:
    """What all convolutions share."""
    return {
        "kernel_init": partitioned(nn.initializers.lecun_normal(), None, None, "conv_in", "conv_out"),
        "bias_init": partitioned(nn.initializers.zeros, "conv_out"),
        "conv_general_dilated": convolve,
    }
