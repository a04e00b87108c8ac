"""The layout of one image in a sequence: the blocks of its scales, where they lie, what they weigh.

What training, sampling and partial decoding share of an image. `nextflow_jax.sequence` makes rows of documents with it
and gives out these names as its own: it remains the one definition of layout.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from nextflow_jax.config import Fault
from nextflow_jax.resize import gather_taps, resize_gather
from nextflow_jax.scales import ScaleSchedule

INPUTS = ("residual", "accumulated")


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """What the layout leaves open: how scale inputs are made, position constants, loss weights."""

    inputs: str = "residual"
    """"residual": scale k sees scale k-1's codes alone (NextFlow); "accumulated": the sum over scales (VAR)."""
    input_resize: str = "bilinear"
    """Resize of the previous scale's codes: "nearest" or "bilinear"."""
    rope_extent: float = 64.0
    """C of the multi-scale RoPE: every grid's cells span C on the square, whatever the resolution."""
    scale_reweight: float = 0.0
    """alpha: a scale's tokens weigh 1/(h*w)^alpha, normalised over the image; 0 = all tokens alike."""
    text_weight: float = 1.0
    """Loss weight of a text token."""
    vision_weight: float = 1.0
    """Mean loss weight of a vision token."""

    @property
    def taps(self) -> int:
        """T, the source codes mixed at a vision position."""
        return gather_taps(self.input_resize)

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if self.inputs not in INPUTS:
            yield Fault("inputs", self.inputs, f"must be one of {INPUTS}", "use 'residual' for NextFlow's recipe")
        if self.input_resize not in ("nearest", "bilinear"):
            yield Fault("input_resize", self.input_resize, "must be 'nearest' or 'bilinear'", "use 'bilinear'")
        if self.rope_extent <= 0:
            yield Fault("rope_extent", self.rope_extent, "must be positive", "use e.g. 64.0")
        for name in ("scale_reweight", "text_weight", "vision_weight"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 to switch it off")


@dataclasses.dataclass(frozen=True)
class ScaleLayout:
    """One scale's block, relative to its image: what training, sampling and partial decoding share."""

    scale: int
    num_scales: int
    gather: Int[np.ndarray, "cells T"]
    """Index into the previous scale's codes."""
    weights: Float[np.ndarray, "cells T"]
    time_offset: int
    """Time of the block minus the time of <boi>."""
    rows: Float[np.ndarray, "cells"]
    columns: Float[np.ndarray, "cells"]

    @property
    def cells(self) -> int:
        """Positions of the block."""
        return len(self.rows)


@functools.cache
def scale_layout(schedule: ScaleSchedule, scale: int, config: SequenceConfig) -> ScaleLayout:
    """The block of scale `scale` (2 ... K; K+1 = the context block, which repeats the last scale's own codes).

    Rows and columns are C/sqrt(h*w) * (cell + 0.5) (NextFlow, multi-scale 3D RoPE).
    """
    last = schedule.num_scales
    grid = schedule.grids[min(scale, last) - 1]
    source = schedule.grids[min(scale - 1, last) - 1]
    gather, weights = resize_gather(source, grid, config.input_resize)
    step = config.rope_extent / np.sqrt(grid[0] * grid[1])
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return ScaleLayout(
        scale=scale,
        num_scales=last,
        gather=gather,
        weights=weights,
        time_offset=scale - 1,
        rows=(step * (row.ravel() + 0.5)).astype(np.float32),
        columns=(step * (column.ravel() + 0.5)).astype(np.float32),
    )


@functools.cache
def scale_weights(schedule: ScaleSchedule, alpha: float) -> Float[np.ndarray, "K"]:
    """Loss weight of a token of each scale: 1/(h*w)^alpha, scaled so that an image's weights sum to its token count."""
    counts = np.asarray(schedule.counts, np.float64)
    weights = counts**-alpha
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def image_positions(schedule: ScaleSchedule, context_block: bool = False) -> int:
    """Positions an image takes: <boi>, scales 2..K, the context block if asked, <eoi>."""
    return schedule.num_tokens - 1 + 2 + (schedule.counts[-1] if context_block else 0)


@functools.cache
def image_pairs(schedule: ScaleSchedule, context_block: bool = False) -> int:
    """Pairs of an image's positions of which the first sees the second: a block sees itself and those before it."""
    cells = [1, *schedule.counts[1:], *([schedule.counts[-1]] if context_block else []), 1]
    return sum(count * seen for count, seen in zip(cells, itertools.accumulate(cells)))


def image_time(schedule: ScaleSchedule, context_block: bool = False) -> int:
    """Time steps from an image's <boi> to the token after its <eoi>."""
    return schedule.num_scales + 1 + int(context_block)
