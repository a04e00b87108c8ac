"""The pixel decoder in strips of rows: exactly its pictures, in a fraction of the memory.

A picture cannot simply be cut: attention sees all cells, and a group norm's statistics are over the whole grid. But
attention is at the coarsest level, which is small and runs whole, and a later level needs just its norms' statistics,
a few numbers. So each later level keeps its input (a quarter of its own grid) and nothing else at full size: pass j
goes over the level in strips, computes the layers before the level's norm j with the statistics found so far, and adds
up that norm's; the last pass computes the level's output strip by strip. A strip carries as many more rows on both
sides as its convolutions see (`_reach`), and strips never leave the picture, so that zeros are added where the whole
decoder adds them.

The price: a level of c convolutions computes about (c + 1) / 2 times as many (published decoder: c = 8 in the last
level, 4.5 times; with 5 blocks c = 12, 6.5 times), and (strip + 2 x reach) / strip times as many rows. What it saves
stands in experiments/bench/tiled_decode.py: at 1024 x 1024, 0.3 instead of 1.6 GB.

The layers are those of `cnn.decoder_stages` with the decoder's own parameters; nothing is defined twice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.vision.cnn import PixelConfig, decoder_stages
from nextflow_jax.vision.conv_layers import GIVEN_MOMENTS, ROW_MEANS, ResidualBlock
from nextflow_jax.vision.vit import join_patches

Moments = dict[tuple[str, ...], Float[Array, "2 B G"]]
"""Mean and mean square of each norm whose statistics are known; the key is the way to its variable "means"."""


def tiled_decode(
    config: PixelConfig, dtype: DTypeLike, params: Any, latents: Float[Array, "B Y X Z"], rows: int = 64
) -> Float[Array, "B H W 3"]:
    """What `PixelDecoder(config, dtype)` makes of `latents`, in strips.

    Args:
      config: of the decoder.
      dtype: of the computation.
      params: the decoder's "params", unboxed.
      latents: on the code grid.
      rows: height of a strip on each level's own grid; levels of at most so many rows run whole. Less takes less
        memory, and more time.

    Returns:
      Pictures, float32, meant for [-1, 1] and not clamped.
    """
    first, *later = decoder_stages(dataclasses.replace(config, remat="none"), dtype)
    x, _ = _apply(first, params, {}, latents.astype(dtype))
    for stage in later:
        if 2 * x.shape[1] <= rows:
            x, _ = _apply(stage, params, {}, x)
        else:
            x = _Strips(stage, params, x.shape[1], max(1, rows // 2)).apply(x)
    return join_patches(x, config.stem).astype(jnp.float32)


class _Strips:
    """One stage over strips of `rows` rows of its input; the last strip begins earlier where they do not divide."""

    def __init__(self, stage: Sequence[nn.Module], params: Any, height: int, rows: int) -> None:
        self._stage, self._params, self._height, self._rows = stage, params, height, rows
        # The stage doubles the grid first: reach is in rows of the doubled one.
        self._halo = -(-_reach(stage) // 2)
        self._window = min(rows + 2 * self._halo, height)
        self._count = -(-height // rows)

    def apply(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B V U O"]:
        """The stage's output."""
        output, found = jax.eval_shape(lambda x: self._run(x, jnp.int32(0), {}), x)
        moments: Moments = {}
        # Norms run in the order of their layers, and within a block in that of their names.
        for name in sorted(found, key=lambda name: ([layer.name for layer in self._stage].index(name[0]), name)):
            moments[name] = self._measure(x, name, found[name].shape, dict(moments))
        factor = output.shape[1] // self._window
        # Every row is overwritten. Filled from x because constants may be laid out before the first stage begins.
        shape = (output.shape[0], self._height * factor, *output.shape[2:])
        whole = jnp.full(shape, x[0, 0, 0, 0].astype(output.dtype))

        def write(index: Array, whole: Float[Array, "B V U O"]) -> Float[Array, "B V U O"]:
            begin, start = self._place(index)
            strip, _ = self._run(x, index, moments)
            strip = jax.lax.dynamic_slice_in_dim(strip, (begin - start) * factor, self._rows * factor, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(whole, strip, begin * factor, axis=1)

        return jax.lax.fori_loop(0, self._count, write, whole)

    def _measure(
        self, x: Float[Array, "B Y X I"], name: tuple[str, ...], shape: tuple[int, ...], moments: Moments
    ) -> Float[Array, "2 B G"]:
        """The statistics of one norm from all strips; what the strips compute beyond that norm, the compiler drops."""
        factor = shape[2] // self._window

        def add(index: Array, total: Float[Array, "2 B G"]) -> Float[Array, "2 B G"]:
            row_means = self._run(x, index, moments)[1][name]
            row = self._place(index)[1] * factor + jnp.arange(shape[2])
            counted = (row >= index * self._rows * factor) & (row < (index + 1) * self._rows * factor)
            return total + jnp.sum(jnp.where(counted[:, None], row_means, 0.0), axis=2)

        zeros = jnp.zeros((*shape[:2], shape[3]), jnp.float32)
        return jax.lax.fori_loop(0, self._count, add, zeros) / (self._height * factor)

    def _run(
        self, x: Float[Array, "B Y X I"], index: Array, moments: Moments
    ) -> tuple[Float[Array, "B V U O"], dict[tuple[str, ...], Float[Array, "2 B V G"]]]:
        """The stage on the window around strip `index`."""
        window = jax.lax.dynamic_slice_in_dim(x, self._place(index)[1], self._window, axis=1)
        return _apply(self._stage, self._params, moments, window)

    def _place(self, index: Array) -> tuple[Array, Array]:
        """First row of strip `index`, and of the window around it, which lies within the picture."""
        begin = jnp.minimum(index * self._rows, self._height - self._rows)
        return begin, jnp.clip(begin - self._halo, 0, self._height - self._window)


def _apply(
    layers: Sequence[nn.Module], params: Any, moments: Moments, x: Float[Array, "B Y X I"]
) -> tuple[Float[Array, "B V U O"], dict[tuple[str, ...], Float[Array, "2 B V G"]]]:
    """The layers one after another, norms with the statistics given; also each norm's means of rows."""
    given, found = unflatten_dict(moments), {}
    for layer in layers:
        variables = {"params": params.get(layer.name, {}), GIVEN_MOMENTS: given.get(layer.name, {})}
        x, new = layer.apply(variables, x, mutable=["intermediates"])
        for path, value in flatten_dict(new.get("intermediates", {})).items():
            if path[-1] == ROW_MEANS:
                found[(layer.name, *path[:-1], "means")] = value[0]
    return x, found


def _reach(layers: Sequence[nn.Module]) -> int:
    """Rows above and below that one row of the output depends on, statistics aside, in rows of the output."""
    kernels = [layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv)]
    blocks = sum(isinstance(layer, ResidualBlock) for layer in layers)
    return sum(size // 2 for size in kernels) + 2 * blocks
