"""The pixel branch: VQGAN's convolutional encoder and decoder (arXiv 2012.09841) around the code grid.

On a mesh with a "context" axis, feature maps are split by rows over its devices (nextflow_jax/vision/row_split.py), and
pictures come whole again. An experiment turns it off with `rules = (("image_rows", ()),)`.
"""

import dataclasses
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.config import Fault
from nextflow_jax.vision.conv_layers import Double, NormAct, ResidualBlock, SelfAttention, convolution, downsample
from nextflow_jax.vision.row_split import join_rows, split_rows
from nextflow_jax.vision.vit import join_patches, split_patches


def _is_convolution(primitive: object, *_: object, **__: object) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "convolutions": _is_convolution,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds stored of each block: everything, outputs of convolutions only, or its input only."""


@dataclasses.dataclass(frozen=True)
class PixelConfig:
    """Channels and depth of the convolutional encoder and decoder.

    The picture is first cut into `stem` x `stem` patches (space-to-depth), which moves all convolutions to coarse
    grids; each level after the first halves the grid. Published shape (TokenFlow, the recipe): stem=1, multipliers
    (1, 1, 2, 2, 4), bases 128, encoder_blocks=2, decoder_blocks=3 (VQGAN's decoders have one more), latent=256,
    groups=32, attention=True.
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
    attention: bool = False
    """Attention at the coarsest level after each residual block, and a middle section (residual block, attention,
    residual block) between the coarsest level and the latents."""
    projection_size: int = 1
    """Side of the convolutions between latents and codes: 1 (TokenFlow) or 3 (VAR)."""
    remat: str = "none"
    """A key of REMAT_POLICIES, for every residual and attention block."""

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
            if any(base * multiplier % self.groups for multiplier in (1, *self.multipliers)):
                upper = -(-base // self.groups) * self.groups
                yield Fault(name, base, f"channels must be multiples of groups = {self.groups}", f"use {upper}")
        if self.projection_size % 2 != 1:
            yield Fault("projection_size", self.projection_size, "must be odd to keep the grid", "use 1 or 3")
        if self.remat not in REMAT_POLICIES:
            yield Fault("remat", self.remat, f"must be one of {sorted(REMAT_POLICIES)}", "use 'none'")


class PixelEncoder(nn.Module):
    """Pictures to `latent` channels on the code grid."""

    config: PixelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X Z"]:
        config, dtype = self.config, self.dtype
        widths = [config.encoder_base * multiplier for multiplier in config.multipliers]
        layers = [convolution(config.encoder_base, dtype, "stem")]
        for level, width in enumerate(widths):
            layers += _level(config, level, width, config.encoder_blocks, dtype)
            if level < len(widths) - 1:
                layers.append(downsample(width, dtype, f"down_{level}"))
        layers += [*_middle(config, widths[-1], dtype), *_head(config, config.latent, dtype)]
        return _run(layers, split_patches(images.astype(dtype), config.stem))


class PixelDecoder(nn.Module):
    """`latent` channels on the code grid to pictures; the mirror of the encoder."""

    config: PixelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, latents: Float[Array, "B Y X Z"]) -> Float[Array, "B H W 3"]:
        """Values are meant for [-1, 1] and not clamped."""
        layers = [layer for stage in decoder_stages(self.config, self.dtype) for layer in stage]
        x = _run(layers, latents.astype(self.dtype))
        return join_rows(join_patches(x, self.config.stem).astype(jnp.float32))


def decoder_stages(config: PixelConfig, dtype: DTypeLike) -> list[list[nn.Module]]:
    """The pixel decoder's layers by level, coarse to fine, named as their parameters are.

    All but the first stage begin with the layers that double the grid; the first holds all attention. Called in a
    module, the layers are its own; called elsewhere they are free, for `layer.apply`.
    """
    widths = [config.decoder_base * multiplier for multiplier in config.multipliers]
    stages = [[convolution(widths[-1], dtype, "stem"), *_middle(config, widths[-1], dtype)]]
    for level in reversed(range(len(widths))):
        stages[-1] += _level(config, level, widths[level], config.decoder_blocks, dtype)
        if level:
            stages.append([Double(name=f"double_{level}"), convolution(widths[level], dtype, f"up_{level}")])
    stages[-1] += _head(config, 3 * config.stem**2, dtype)
    return stages


def _level(config: PixelConfig, level: int, width: int, blocks: int, dtype: DTypeLike) -> list[nn.Module]:
    residual, attention = _remat(ResidualBlock, config), _remat(SelfAttention, config)
    attends = config.attention and level == len(config.multipliers) - 1
    layers = []
    for block in range(blocks):
        layers.append(residual(width, config.groups, dtype, name=f"level_{level}_block_{block}"))
        if attends:
            layers.append(attention(config.groups, dtype, name=f"level_{level}_attention_{block}"))
    return layers


def _middle(config: PixelConfig, width: int, dtype: DTypeLike) -> list[nn.Module]:
    residual, attention = _remat(ResidualBlock, config), _remat(SelfAttention, config)
    if not config.attention:
        return []
    return [
        residual(width, config.groups, dtype, name="middle_block_0"),
        attention(config.groups, dtype, name="middle_attention"),
        residual(width, config.groups, dtype, name="middle_block_1"),
    ]


def _head(config: PixelConfig, features: int, dtype: DTypeLike) -> list[nn.Module]:
    return [NormAct(config.groups, dtype, name="out_norm"), convolution(features, dtype, "out")]


def _remat(layer: type[nn.Module], config: PixelConfig) -> type[nn.Module]:
    policy = REMAT_POLICIES[config.remat]
    return layer if policy is None else nn.remat(layer, policy=policy)


def _run(layers: list[nn.Module], x: Float[Array, "B Y X I"]) -> Float[Array, "B V U O"]:
    x = split_rows(x)
    for layer in layers:
        x = split_rows(layer(x))
    return x
