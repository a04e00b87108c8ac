"""ViTamin's convolutional stem (arXiv 2404.02132): pictures to patch vectors, by inverted bottlenecks."""

import dataclasses
import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.config import Fault
from nextflow_jax.vision.transformer import NORM_EPSILON, partitioned

EXPANSION = 4
"""Channels inside a bottleneck, as a multiple of those that leave it."""

gelu = functools.partial(jax.nn.gelu, approximate=False)


@dataclasses.dataclass(frozen=True)
class MbConvStemConfig:
    """Channels and bottlenecks of each stage; the picture is halved before the first, by each, and after the last.

    Without stages there is no such stem.
    """

    channels: tuple[int, ...] = (192, 384)
    blocks: tuple[int, ...] = (2, 4)

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if len(self.channels) != len(self.blocks):
            rule = f"needs as many entries as channels = {self.channels}"
            yield Fault("blocks", self.blocks, rule, "use (192, 384) and (2, 4)")


class MbConvStem(nn.Module):
    """Two convolutions, the stages, a strided convolution to the tower's width."""

    config: MbConvStemConfig
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X D"]:
        x = _convolution(self.config.channels[0], self.dtype, "stem_0", stride=2)(images.astype(self.dtype))
        x = gelu(_norm(self.dtype, "stem_norm")(x))
        x = _convolution(self.config.channels[0], self.dtype, "stem_1")(x)
        for stage, (channels, blocks) in enumerate(zip(self.config.channels, self.config.blocks)):
            for block in range(blocks):
                name = f"stage_{stage}_block_{block}"
                x = MbConv(channels, 1 if block else 2, self.dtype, name=name)(x)
        return _convolution(self.width, self.dtype, "out", stride=2)(_norm(self.dtype, "out_norm")(x))


class MbConv(nn.Module):
    """Norm, widening, depthwise 3 x 3 and narrowing convolution, added to the (pooled, projected) input."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B V U I"]) -> Float[Array, "B Y X O"]:
        shortcut, inner = x, self.channels * EXPANSION
        if self.stride > 1:
            # 3 x 3 windows; cells outside the picture do not count
            padding = ((1, 1), (1, 1))
            shortcut = nn.avg_pool(x, (3, 3), (self.stride, self.stride), padding, count_include_pad=False)
        if x.shape[-1] != self.channels:
            shortcut = _convolution(self.channels, self.dtype, "skip", size=1)(shortcut)
        x = _norm(self.dtype, "norm")(x)
        x = gelu(_convolution(inner, self.dtype, "widen", size=1)(x))
        x = gelu(_convolution(inner, self.dtype, "depthwise", stride=self.stride, groups=inner)(x))
        return shortcut + _convolution(self.channels, self.dtype, "narrow", size=1)(x)


def _convolution(
    features: int, dtype: DTypeLike, name: str, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv:
    """Zeros on all sides alike, also where the stride is 2."""
    conv_in = None if groups > 1 else "conv_in"
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        feature_group_count=groups,
        dtype=dtype,
        kernel_init=partitioned(nn.initializers.lecun_normal(), None, None, conv_in, "conv_out"),
        bias_init=partitioned(nn.initializers.zeros, "conv_out"),
        name=name,
    )


def _norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Over the channels of each cell."""
    scale_init = partitioned(nn.initializers.ones, "conv_out")
    bias_init = partitioned(nn.initializers.zeros, "conv_out")
    return nn.LayerNorm(
        epsilon=NORM_EPSILON,
        dtype=dtype,
        scale_init=scale_init,
        bias_init=bias_init,
        name=name,
        use_fast_variance=False,
    )
