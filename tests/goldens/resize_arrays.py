"""Which resizes resize.npz holds, for the script that makes it and the test that reads it."""

import numpy as np

from nextflow_jax.scales import FINAL_GRIDS, LEVEL_SCALES, level_schedule

PEERS = (
    (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (1, 2, 4, 6, 8, 10, 12, 14),
    (1, 2, 4, 6, 8, 10, 12, 14, 16),
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27),
)
"""Sides of VAR's and TokenFlow's scales."""

BICUBIC_SHARE = 5
"""Every fifth pair is kept of the bicubic ones, which do not compress."""

ROUNDED = ((40, 92), (40, 108), (36, 116), (62, 14), (124, 14))
"""Where "nearest" shows torch's float32 rounding: exact arithmetic takes another sample."""

GRIDS = (((1, 1), (3, 7)), ((2, 5), (8, 31)), ((13, 13), (16, 16)), ((31, 8), (4, 1)))
"""Grids before and after, for whole pictures."""


def pairs():
    """Method -> (samples before, samples after) of every resize of a line that some schedule makes."""
    schedules = [level_schedule(level, grid).grids for level in LEVEL_SCALES for grid in FINAL_GRIDS]
    schedules += [[(side, side) for side in sides] for sides in PEERS]
    up, down, following = set(), set(), set()
    for grids in schedules:
        for axis in (0, 1):
            sides = [grid[axis] for grid in grids]
            up |= {(side, sides[-1]) for side in sides}
            down |= {(sides[-1], side) for side in sides}
            following |= set(zip(sides, sides[1:]))
    return {
        "bicubic": sorted(up)[::BICUBIC_SHARE],
        "area": sorted(down | following),
        "bilinear": sorted(following),
        "nearest": sorted(following | set(ROUNDED)),
    }


def features(case):
    """A random picture [2, rows, columns, 3] on the first of `GRIDS[case]`."""
    return np.random.default_rng(case).uniform(-1, 1, (2, *GRIDS[case][0], 3)).astype(np.float32)
