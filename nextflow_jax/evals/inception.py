"""InceptionV3 as the FID is defined with: pictures to 2048 features, weights from pytorch-fid's published file.

The network is the TensorFlow one of 2015 (`inception-2015-12-05`), which pytorch-fid ported to torchvision's names. It
differs from torchvision's in its pools: averages leave out the padding, and Mixed_7c takes a maximum. Its layers are
one table, `LAYERS`; modules have the published names, so the table of names in nextflow_jax/convert/inception.py is
short. Sources: arXiv 1512.00567 (the architecture), arXiv 1706.08500 (the FID), github.com/mseitzer/pytorch-fid.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from nextflow_jax.convert.inception import read_inception
from nextflow_jax.convert.weight_files import read_arrays
from nextflow_jax.resize import resize_grid

INPUT_SIDE = 299
"""Pictures of every size are resized to this square."""
FEATURES = 2048
"""Width of the last pooled layer, "pool3", whose features the FID compares."""
NORM_EPSILON = 1e-3

AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"
"""Pools of a branch: 3x3 means without the padding, 3x3 maxima, 3x3 maxima with stride 2."""


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with its norm and ReLU; with stride 1 it is padded to keep the size, unless `valid`."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False


Step = Conv | str | tuple[Conv, ...]
"""A convolution, a pool, or convolutions side by side whose results are concatenated."""
Branch = tuple[Step, ...]
Layer = Conv | str | tuple[str, tuple[Branch, ...]]
"""A convolution, a pool, or a named block of branches."""


def _grid_35(pooled: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (AVERAGE, Conv("branch_pool", pooled)),
    )


def _grid_17(width: int) -> tuple[Branch, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, row), Conv("branch7x7_3", 192, column)),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, column),
            Conv("branch7x7dbl_3", width, row),
            Conv("branch7x7dbl_4", width, column),
            Conv("branch7x7dbl_5", 192, row),
        ),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _grid_8(pool: str) -> tuple[Branch, ...]:
    row, column = (1, 3), (3, 1)
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, row), Conv("branch3x3_2b", 384, column))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, row), Conv("branch3x3dbl_3b", 384, column)),
        ),
        (pool, Conv("branch_pool", 192)),
    )


_TO_GRID_17: tuple[Branch, ...] = (
    (Conv("branch3x3", 384, (3, 3), 2),),
    (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
    (HALVE,),
)
_TO_GRID_8: tuple[Branch, ...] = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2),
    ),
    (HALVE,),
)

LAYERS: tuple[Layer, ...] = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), valid=True),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    HALVE,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), valid=True),
    HALVE,
    ("Mixed_5b", _grid_35(32)),
    ("Mixed_5c", _grid_35(64)),
    ("Mixed_5d", _grid_35(64)),
    ("Mixed_6a", _TO_GRID_17),
    ("Mixed_6b", _grid_17(128)),
    ("Mixed_6c", _grid_17(160)),
    ("Mixed_6d", _grid_17(160)),
    ("Mixed_6e", _grid_17(192)),
    ("Mixed_7a", _TO_GRID_8),
    ("Mixed_7b", _grid_8(AVERAGE)),
    ("Mixed_7c", _grid_8(MAXIMUM)),
)
"""The network up to its last feature map, in order."""


class NormalisedConv(nn.Module):
    """Convolution without bias, batch norm with fixed statistics, ReLU; float32 at full precision on every device."""

    conv: Conv

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B y x c"]:
        conv, width = self.conv, (self.conv.features,)
        kernel = self.param("kernel", nn.initializers.he_normal(), (*conv.kernel, x.shape[-1], conv.features))
        mean = self.param("mean", nn.initializers.zeros, width)
        variance = self.param("variance", nn.initializers.ones, width)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        padding = "VALID" if conv.valid or conv.stride > 1 else "SAME"
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (conv.stride, conv.stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return nn.relu((y - mean) * (scale * jax.lax.rsqrt(variance + NORM_EPSILON)) + bias)


class MixedBlock(nn.Module):
    """Branches side by side, their results concatenated."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B y x c"]:
        results = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, tuple):
                    y = jnp.concatenate([NormalisedConv(conv, name=conv.name)(y) for conv in step], axis=-1)
                elif isinstance(step, Conv):
                    y = NormalisedConv(step, name=step.name)(y)
                else:
                    y = _POOLS[step](y)
            results.append(y)
        return jnp.concatenate(results, axis=-1)


class InceptionV3(nn.Module):
    """Pictures to pooled features; any size from 75 pixels on works, the FID uses 299."""

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B F"]:
        """Features of float32 images in [-1, 1]."""
        x = images
        for layer in LAYERS:
            if isinstance(layer, tuple):
                name, branches = layer
                x = MixedBlock(branches, name=name)(x)
            elif isinstance(layer, Conv):
                x = NormalisedConv(layer, name=layer.name)(x)
            else:
                x = _POOLS[layer](x)
        return jnp.mean(x, axis=(1, 2))


class InceptionFeatures:
    """The network with its weights, as evaluation uses it: uint8 pictures of any size in, features out, NumPy both."""

    def __init__(self, params: Mapping[str, Any], chunk: int = 32) -> None:
        """Takes the "params" collection.

        Args:
          params: of `InceptionV3`.
          chunk: pictures in one device call.
        """
        self._params = params
        self._chunk = chunk
        # Two programs: the resize compiles for every size of pictures, the network once.
        self._resize = jax.jit(network_input)
        self._network = jax.jit(lambda params, images: InceptionV3().apply({"params": params}, images))

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B F"]:
        """Features float32 [B, 2048]."""
        parts = [np.zeros((0, FEATURES), np.float32)]
        for start in range(0, len(images), self._chunk):
            index = np.arange(start, start + self._chunk)
            rows = images[np.where(index < len(images), index, start)]
            parts.append(np.asarray(self._network(self._params, self._resize(jnp.asarray(rows)))))
        return np.concatenate(parts)[: len(images)]


def load_inception(path: str | os.PathLike, chunk: int = 32) -> InceptionFeatures:
    """The network with the weights of pytorch-fid's file `pt_inception-2015-12-05-6726825d.pth`.

    Raises:
      UserError: no such file, an unreadable one, or arrays whose names and shapes are not the published ones.
    """
    return InceptionFeatures(read_inception(read_arrays(path), abstract_params(), str(path)), chunk)


@functools.cache
def abstract_params() -> Mapping[str, Any]:
    """Shapes and dtypes of the parameters."""
    image = jnp.zeros((1, 75, 75, 3))
    return jax.eval_shape(lambda: InceptionV3().init(jax.random.key(0), image))["params"]


def network_input(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 299 299 3"]:
    """Resized as torch's bilinear `interpolate` does (no antialiasing, no align_corners), in [-1, 1]."""
    with jax.default_matmul_precision("highest"):
        resized = resize_grid(images.astype(jnp.float32) / 255, (INPUT_SIDE, INPUT_SIDE), "bilinear")
    return 2 * resized - 1


_POOLS = {
    AVERAGE: functools.partial(
        nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
    ),
    MAXIMUM: functools.partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME"),
    HALVE: functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID"),
}
