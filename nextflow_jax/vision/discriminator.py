"""Discriminators for adversarial training of the pixel decoder: PatchGAN and StyleGAN2's, for pictures of any size.

    logits = discriminator(config).apply({"params": params}, images)           # [B, Y, X], one a patch

The PatchGAN (Isola et al., arXiv 1611.07004; VQGAN, arXiv 2012.09841) judges overlapping patches; the StyleGAN
discriminator (Karras et al., arXiv 1912.04958) judges the whole picture, so its logits are [B, 1, 1].
"""

import dataclasses
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.config import Fault, nearest
from nextflow_jax.vision.transformer import partitioned

KINDS = ("patchgan", "stylegan")
NORMS = ("group", "batch", "spectral", "none")
STATE = "adversarial"
"""Collection of what a discriminator carries beside its parameters: the vectors of spectral norm."""
NORM_EPSILON = 1e-6
LEAK = 0.2
PATCH_KERNEL = 4
PATCH_INIT = 0.02
BLUR = (1.0, 3.0, 3.0, 1.0)
DEVIATION_FLOOR = 1e-8


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Kind and size of a discriminator."""

    kind: str = "patchgan"
    width: int = 64
    """Channels of the finest grid; they double with each halving of the grid."""
    max_width: int = 512
    layers: int = 3
    """Halvings of the grid. At 3 a PatchGAN's patches are 70 pixels wide; a StyleGAN's should end near 4 x 4 cells."""
    norm: str = "group"
    """Of a PatchGAN: group, batch, spectral or none. Group norm, not the published batch norm, is the default: batch
    statistics make devices wait for one another in every layer and let real pictures be told from the company they
    keep."""
    groups: int = 8
    """Groups of the group norm."""
    deviation_group: int = 4
    """Of a StyleGAN: most pictures whose standard deviation is shown to the last layers together."""
    dtype: str = "float32"
    """Of the computation; parameters and logits are float32."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels before the first halving (index 0) and after each."""
        return tuple(min(self.width * 2**level, self.max_width) for level in range(self.layers + 1))

    @property
    def smallest_side(self) -> int:
        """Pixels that a picture's sides need at least."""
        return 3 * 2**self.layers if self.kind == "patchgan" else 1

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        for name, known in (("kind", KINDS), ("norm", NORMS), ("dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in known:
                yield Fault(name, getattr(self, name), "is not known", nearest(getattr(self, name), known))
        for name in ("width", "max_width", "layers", "groups", "deviation_group"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use at least 1")
                return
        if self.kind == "patchgan" and self.norm == "group" and any(width % self.groups for width in self.channels):
            rule = f"channels {self.channels} must be multiples of groups"
            yield Fault("groups", self.groups, rule, "use a divisor of width and max_width")


def discriminator(config: DiscriminatorConfig) -> nn.Module:
    """The module of `config.kind`: `apply({"params": ...}, images) -> logits`; see the classes below."""
    return PatchDiscriminator(config) if config.kind == "patchgan" else StyleDiscriminator(config)


class PatchDiscriminator(nn.Module):
    """4x4 convolutions, `layers` of them with stride 2; a logit for each of the last grid's cells."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], update: bool = False) -> Float[Array, "B Y X"]:
        """Logits (float32, high = real) of pictures in [-1, 1]; sides of at least `config.smallest_side`.

        Args:
          images: the pictures.
          update: moves the vectors of the spectral norm; make the collection STATE mutable.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        x = images.astype(dtype)
        for index, width in enumerate(config.channels):
            stride = 2 if index < config.layers else 1
            x = Convolution(
                width,
                PATCH_KERNEL,
                stride,
                dtype,
                "spectral" if config.norm == "spectral" else "normal",
                axes=("conv_in" if index else None, "conv_out"),
                name=f"layer_{index}",
            )(x, update)
            if index and config.norm in ("group", "batch"):
                x = _norm(config, dtype, f"norm_{index}")(x)
            x = nn.leaky_relu(x, LEAK)
        scaling = "spectral" if config.norm == "spectral" else "normal"
        head = Convolution(1, PATCH_KERNEL, 1, dtype, scaling, axes=("conv_in", None), name="head")
        return head(x, update)[..., 0].astype(jnp.float32)


class StyleDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator: equalised learning rates, blurred halvings, minibatch standard deviation.

    The last grid is averaged before the dense layers (StyleGAN2 flattens it), so pictures may have any size and ratio.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], update: bool = False) -> Float[Array, "B 1 1"]:
        """Logits (float32, high = real) of pictures in [-1, 1]; `update` is there for the sake of one signature."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)

        def convolution(features: int, size: int, name: str, stride: int = 1, first: bool = False) -> Convolution:
            axes = (None if first else "conv_in", "conv_out")
            return Convolution(features, size, stride, dtype, "equalised", axes, name=name)

        x = _activate(convolution(config.channels[0], 1, "stem", first=True)(images.astype(dtype)))
        for index, width in enumerate(config.channels[1:], 1):
            skip = convolution(width, 1, f"block_{index}_skip")(blur(x, stride=2))
            x = _activate(convolution(x.shape[-1], 3, f"block_{index}_in")(x))
            x = _activate(convolution(width, 3, f"block_{index}_down", stride=2)(blur(x)))
            x = (x + skip) / math.sqrt(2)
        x = jnp.concatenate([x, minibatch_deviation(x, config.deviation_group)], axis=-1)
        # One channel more than the mesh divides: this kernel's input stays whole.
        x = _activate(convolution(config.channels[-1], 3, "last", first=True)(x))
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        x = _activate(convolution(config.channels[-1], 1, "dense")(x))
        head = Convolution(1, 1, 1, dtype, "equalised", axes=("conv_in", None), name="head")
        return head(x)[..., 0].astype(jnp.float32)


class Convolution(nn.Module):
    """A convolution with bias whose kernel is used as it is ("normal"), at equalised learning rate, or divided by its
    largest singular value ("spectral", Miyato et al., arXiv 1802.05957; one power iteration an update)."""

    features: int
    size: int
    stride: int
    dtype: DTypeLike
    scaling: str
    axes: tuple[str | None, str | None]
    """Logical axes of input and output channels."""

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X I"], update: bool = False) -> Float[Array, "B Y2 X2 O"]:
        """Even kernels lose a row and a column at stride 1, as published PatchGANs do."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        deviation = 1.0 if self.scaling == "equalised" else PATCH_INIT
        initial = partitioned(nn.initializers.normal(deviation), None, None, *self.axes)
        kernel = self.param("kernel", initial, shape, jnp.float32)
        bias = self.param("bias", partitioned(nn.initializers.zeros, self.axes[1]), shape[-1:], jnp.float32)
        if self.scaling == "equalised":
            kernel = kernel / math.sqrt(math.prod(shape[:-1]))
        elif self.scaling == "spectral":
            kernel = self._spectral(kernel, update)
        border = (self.size - 1) // 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(border, border)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)

    def _spectral(self, kernel: Float[Array, "K1 K2 I O"], update: bool) -> Float[Array, "K1 K2 I O"]:
        matrix = kernel.reshape(-1, kernel.shape[-1])
        right = self.variable(STATE, "right", _even_direction, matrix.shape[1])
        constant = jax.lax.stop_gradient(matrix)
        left = _unit(constant @ right.value)
        moved = _unit(left @ constant)
        if update:
            right.value = moved
        return kernel / (left @ matrix @ moved + NORM_EPSILON)


def blur(x: Float[Array, "B Y X I"], stride: int = 1) -> Float[Array, "B Y2 X2 I"]:
    """Low-pass filter [1, 3, 3, 1] in both directions; sides become ceil(side / stride), of any side from 1."""
    taps = jnp.asarray(BLUR, x.dtype) / sum(BLUR)
    kernel = jnp.broadcast_to(jnp.outer(taps, taps)[:, :, None, None], (4, 4, 1, x.shape[-1]))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(1, 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def minibatch_deviation(x: Float[Array, "B Y X I"], most: int) -> Float[Array, "B Y X 1"]:
    """One channel: the mean standard deviation of features within groups of neighbouring pictures (Karras et al.,
    arXiv 1710.10196), so that pictures too alike are seen.

    Groups have the largest size up to `most` that divides the batch. Neighbours, not strides as in StyleGAN2: rows of a
    sharded batch then stay on their device.
    """
    batch, rows, columns, channels = x.shape
    size = max(divisor for divisor in range(1, most + 1) if batch % divisor == 0)
    grouped = x.astype(jnp.float32).reshape(batch // size, size, rows, columns, channels)
    deviation = jnp.sqrt(jnp.var(grouped, axis=1) + DEVIATION_FLOOR)
    of_group = jnp.mean(deviation, axis=(1, 2, 3))
    return jnp.broadcast_to(jnp.repeat(of_group, size)[:, None, None, None], (batch, rows, columns, 1)).astype(x.dtype)


def _norm(config: DiscriminatorConfig, dtype: DTypeLike, name: str) -> nn.Module:
    scale_init = partitioned(nn.initializers.ones, "conv_out")
    bias_init = partitioned(nn.initializers.zeros, "conv_out")
    common = {"epsilon": NORM_EPSILON, "dtype": dtype, "scale_init": scale_init, "bias_init": bias_init, "name": name}
    if config.norm == "batch":
        # The batch at hand decides, in training and ever: nobody uses a discriminator afterwards.
        return nn.LayerNorm(reduction_axes=(0, 1, 2), feature_axes=-1, **common)
    return nn.GroupNorm(config.groups, **common)


def _activate(x: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
    """Leaky ReLU that keeps the variance of its input, as equalised layers need."""
    return nn.leaky_relu(x, LEAK) * math.sqrt(2)


def _even_direction(size: int) -> Float[Array, "N"]:
    return jnp.full((size,), size**-0.5, jnp.float32)


def _unit(vector: Float[Array, "N"]) -> Float[Array, "N"]:
    return vector / jnp.maximum(jnp.linalg.norm(vector), NORM_EPSILON)
