"""Scale schedules: the ladder of grids, coarse to fine, in which an image is written (recipe section 3)."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from nextflow_jax.config import Fault
from nextflow_jax.errors import UserError

BASE_LADDER = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
"""Side lengths of the square 1024-pixel schedule (NextFlow, tokenizer section)."""

LEVEL_SCALES = {256: 12, 512: 16, 1024: 18}
"""How many entries of the base ladder each resolution level uses."""

LEVEL_STRIDE = 16
"""Pixels a cell of the final grid covers on each side, at every level."""

_WIDE_GRIDS = (
    (32, 128),
    (32, 124),
    (32, 120),
    (32, 116),
    (36, 112),
    (36, 108),
    (36, 104),
    (40, 100),
    (40, 96),
    (44, 92),
    (44, 88),
    (44, 84),
    (48, 84),
    (48, 80),
    (52, 76),
    (52, 72),
    (56, 72),
    (56, 68),
    (60, 68),
    (60, 64),
)
FINAL_GRIDS = (*_WIDE_GRIDS, (64, 64), *((width, height) for height, width in reversed(_WIDE_GRIDS)))
"""The 41 final grids (rows, columns) of the 1024 level, from 1:4 to 4:1."""


@dataclasses.dataclass(frozen=True)
class ScaleSchedule:
    """The grids of one image, coarse to fine, and where each scale's codes lie in the flat code array.

    Scale k (1-based in the papers) is entry k-1 of each tuple. Example, a 32-pixel OpenMoji schedule:

        grids   (1,1) (2,2) (3,3) (4,4)
        offsets 0     1     5     14        num_tokens = 30
    """

    grids: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.grids or self.grids[0] != (1, 1):
            raise UserError(f"scale schedule {self.grids}: the first grid must be (1, 1); prepend it")
        for coarse, fine in zip(self.grids, self.grids[1:]):
            if fine[0] < coarse[0] or fine[1] < coarse[1] or fine == coarse:
                raise UserError(f"scale schedule {self.grids}: {fine} after {coarse} does not grow; order them")

    @property
    def num_scales(self) -> int:
        """K."""
        return len(self.grids)

    @property
    def final_grid(self) -> tuple[int, int]:
        """Rows and columns of the finest grid: the size of the tokenizer's feature map."""
        return self.grids[-1]

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Codes of each scale."""
        return tuple(height * width for height, width in self.grids)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of each scale's first code in the flat code array."""
        return tuple(sum(self.counts[:k]) for k in range(self.num_scales))

    @property
    def num_tokens(self) -> int:
        """Codes of the whole image (N)."""
        return sum(self.counts)

    def slice(self, k: int) -> "slice":
        """The flat code array's slice of the k-th scale, counted from 0."""
        return slice(self.offsets[k], self.offsets[k] + self.counts[k])


@functools.cache
def make_schedule(final_grid: tuple[int, int], ladder: tuple[int, ...] = BASE_LADDER) -> ScaleSchedule:
    """The schedule that ends in `final_grid`, its coarser grids scaled from the square ladder.

    Scale k is (max(1, round(rows * s_k / s_K)), max(1, round(columns * s_k / s_K))) with half-to-even rounding and s_K
    the ladder's last side (recipe section 3). A grid equal to the one before it (short ladders, extreme ratios) is
    kept once.

    Args:
      final_grid: rows and columns of the finest grid.
      ladder: sides of the square schedule, growing, starting at 1.

    Raises:
      UserError: the ladder does not start at 1 or does not grow, or the grid is not positive.
    """
    if not ladder or ladder[0] != 1 or any(b <= a for a, b in zip(ladder, ladder[1:])):
        raise UserError(f"scale ladder {ladder}: must start at 1 and grow, e.g. (1, 2, 3, 4)")
    if min(final_grid) < 1:
        raise UserError(f"final grid {final_grid}: rows and columns must be at least 1")
    height, width = final_grid
    grids = [(1, 1)]
    for side in ladder[1:]:
        grid = (max(1, round(height * side / ladder[-1])), max(1, round(width * side / ladder[-1])))
        if grid != grids[-1]:
            grids.append(grid)
    return ScaleSchedule(tuple(grids))


def level_schedule(level: int, final_grid: tuple[int, int] = (64, 64)) -> ScaleSchedule:
    """The published schedule of a resolution level: the first 12, 16 or 18 scales of a 1024-level schedule.

    Args:
      level: 256, 512 or 1024 (pixels on the side of the square).
      final_grid: one of `FINAL_GRIDS`, naming the aspect ratio by its 1024-level grid.
    """
    if level not in LEVEL_SCALES:
        raise UserError(f"resolution level {level}: known levels are {sorted(LEVEL_SCALES)}")
    return ScaleSchedule(make_schedule(final_grid).grids[: LEVEL_SCALES[level]])


@dataclasses.dataclass(frozen=True)
class ScheduleFamily:
    """The schedules a tokenizer and a decoder are trained on: one ladder, a stride, and the picture sizes allowed.

    Tokenizer, shards, decoder and bundle carry it, and refuse one another when it differs.
    """

    ladder: tuple[int, ...] = (1, 2, 3, 4)
    stride: int = 8
    """Pixels a cell of the final grid covers on each side."""
    sizes: tuple[tuple[int, int], ...] = ((32, 32),)
    """Picture sizes (height, width) in pixels."""

    def schedule(self, size: Sequence[int]) -> ScaleSchedule:
        """The schedule of a picture of `size` = (height, width) pixels.

        Raises:
          UserError: a size outside `sizes`, naming those there are.
        """
        size = (int(size[0]), int(size[1]))
        if size not in self.sizes:
            allowed = ", ".join(f"{height}x{width}" for height, width in self.sizes)
            raise UserError(f"picture size {size[0]}x{size[1]} is not supported; this model knows {allowed}")
        return make_schedule((size[0] // self.stride, size[1] // self.stride), self.ladder)

    def schedules(self) -> dict[tuple[int, int], ScaleSchedule]:
        """Every size's schedule."""
        return {size: self.schedule(size) for size in self.sizes}

    @property
    def max_scales(self) -> int:
        """The largest number of scales of any size."""
        return max(schedule.num_scales for schedule in self.schedules().values())

    def faults(self) -> Iterator[Fault]:
        """The rules this family breaks."""
        for size in self.sizes:
            if size[0] % self.stride or size[1] % self.stride:
                lower = tuple(max(self.stride, side // self.stride * self.stride) for side in size)
                yield Fault("sizes", size, f"sides must be multiples of stride {self.stride}", f"use {lower}")
        if not self.ladder or self.ladder[0] != 1 or any(b <= a for a, b in zip(self.ladder, self.ladder[1:])):
            yield Fault("ladder", self.ladder, "must start at 1 and grow", "use e.g. (1, 2, 3, 4)")
        if not self.sizes:
            yield Fault("sizes", self.sizes, "at least one size is needed", "use e.g. ((32, 32),)")


@functools.cache
def level_family(level: int, stride: int = LEVEL_STRIDE) -> ScheduleFamily:
    """The family of a resolution level: all 41 picture sizes from 1:4 to 4:1, with the published schedules.

    `level_family(level).schedule(size)` is `level_schedule(level, grid)` of the size's 1024-level grid.

    Args:
      level: 256, 512 or 1024 (pixels on the side of the square).
      stride: pixels a cell of the final grid covers on each side.

    Raises:
      UserError: an unknown level.
    """
    schedules = [level_schedule(level, grid) for grid in FINAL_GRIDS]
    sizes = tuple((stride * rows, stride * columns) for rows, columns in (each.final_grid for each in schedules))
    return ScheduleFamily(BASE_LADDER[: LEVEL_SCALES[level]], stride, sizes)
