"""The pixel branch: a VQGAN-style convolutional encoder and decoder around the code grid (recipe section 2)."""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.config import Fault
from nextflow_jax.vision.transformer import NORM_EPSILON, partitioned
from nextflow_jax.vision.vit import join_patches, split_patches


@dataclasses.dataclass(frozen=True)
class PixelConfig:
    """Channels and depth of the convolutional encoder and decoder.

    The picture is first cut into `stem` x `stem` patches (space-to-depth), which moves all convolutions to coarse
    grids; each level after the first halves the grid. stem=1 with multipliers (1, 1, 2, 2, 4) is the published shape.
    """

    stem: int = 4
    """Pixels on the side of the patches the stem cuts."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level, fine to coarse, as multiples of the base."""
    encoder_base: int = 64
    encoder_blocks: int = 1
    """Residual blocks a level."""
    decoder_base: int = 64
    decoder_blocks: int = 1
    latent: int = 64
    """Channels between the convolutions and the code projection."""
    groups: int = 8
    """Groups of the group norm."""

    @property
    def stride(self) -> int:
        """Pixels a cell of the code grid covers on each side."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if not self.multipliers:
            yield Fault("multipliers", self.multipliers, "at least one level is needed", "use e.g. (1, 2)")
        for name in ("encoder_base", "decoder_base"):
            base = getattr(self, name)
            if any(base * multiplier % self.groups for multiplier in self.multipliers):
                upper = -(-base // self.groups) * self.groups
                yield Fault(name, base, f"channels must be multiples of groups = {self.groups}", f"use {upper}")


def convolution(features: int, dtype: DTypeLike, name: str, size: int = 3, stride: int = 1) -> nn.Conv:
    """A `size` x `size` convolution that keeps the grid (divided by `stride`)."""
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        dtype=dtype,
        kernel_init=partitioned(nn.initializers.lecun_normal(), None, None, "conv_in", "conv_out"),
        bias_init=partitioned(nn.initializers.zeros, "conv_out"),
        name=name,
    )


class NormAct(nn.Module):
    """Group norm (statistics in float32), then SiLU."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
        scale_init = partitioned(nn.initializers.ones, "conv_out")
        bias_init = partitioned(nn.initializers.zeros, "conv_out")
        norm = nn.GroupNorm(
            self.groups, epsilon=NORM_EPSILON, dtype=self.dtype, scale_init=scale_init, bias_init=bias_init, name="norm"
        )
        return nn.silu(norm(x))


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


class PixelEncoder(nn.Module):
    """Pictures to `latent` channels on the code grid."""

    config: PixelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X Z"]:
        config = self.config
        channels = [config.encoder_base * multiplier for multiplier in config.multipliers]
        x = split_patches(images.astype(self.dtype), config.stem)
        x = convolution(channels[0], self.dtype, "stem")(x)
        for level, width in enumerate(channels):
            if level:
                x = convolution(width, self.dtype, f"down_{level}", stride=2)(x)
            for block in range(config.encoder_blocks):
                x = ResidualBlock(width, config.groups, self.dtype, name=f"level_{level}_block_{block}")(x)
        return convolution(config.latent, self.dtype, "out")(NormAct(config.groups, self.dtype, name="out_norm")(x))


class PixelDecoder(nn.Module):
    """`latent` channels on the code grid to pictures; the mirror of the encoder."""

    config: PixelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, latents: Float[Array, "B Y X Z"]) -> Float[Array, "B H W 3"]:
        """Values are meant for [-1, 1] and not clamped."""
        config = self.config
        channels = [config.decoder_base * multiplier for multiplier in config.multipliers]
        x = convolution(channels[-1], self.dtype, "stem")(latents.astype(self.dtype))
        for level in reversed(range(len(channels))):
            for block in range(config.decoder_blocks):
                x = ResidualBlock(channels[level], config.groups, self.dtype, name=f"level_{level}_block_{block}")(x)
            if level:
                x = convolution(channels[level - 1], self.dtype, f"up_{level}")(_double(x))
        x = convolution(3 * config.stem**2, self.dtype, "out")(NormAct(config.groups, self.dtype, name="out_norm")(x))
        return join_patches(x, config.stem).astype(jnp.float32)


def _double(x: Float[Array, "B Y X I"]) -> Float[Array, "B Y2 X2 I"]:
    batch, rows, columns, channels = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None], (batch, rows, 2, columns, 2, channels))
    return repeated.reshape(batch, rows * 2, columns * 2, channels)
