"""What moves in a video, from small grey pictures of its frames: shots, kinds of motion, and which frames to keep.

A baseline without optical flow: frames are compared with the next one, cell by cell.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from nextflow_jax.data.image_files import Size
from nextflow_jax.data.ingest.config import VideoConfig

CELL = 4
"""Pixels a side of a cell: the mean over it lets noise and compression pass."""
_PIXELS = 36 * 64
"""About how many pixels the small pictures have: 144 cells."""
_LEAST_SHARE = 0.25
"""Of the share of motion that should lie between two chosen frames: with less, the second one shows nothing new."""

Thumbnails = UInt8[np.ndarray, "frames height width"]
"""Grey, of a size that `thumbnail_size` gives."""
Cells = Float32[np.ndarray, "pairs rows columns"]
"""Mean absolute difference of neighbouring frames in every cell, 0 to 1."""


def thumbnail_size(picture: Size) -> Size:
    """Height and width of the small pictures, about the picture's ratio, in whole cells."""
    zoom = (_PIXELS / (picture[0] * picture[1])) ** 0.5
    height, width = (CELL * max(1, round(side * zoom / CELL)) for side in picture)
    return height, width


def cell_differences(frames: Thumbnails) -> Cells:
    """How much every cell changes from each frame to the next."""
    count, height, width = frames.shape
    result = np.empty((max(count - 1, 0), height // CELL, width // CELL), np.float32)
    for i in range(len(result)):
        change = np.abs(frames[i + 1].astype(np.int16) - frames[i])
        cells = change.reshape(height // CELL, CELL, width // CELL, CELL)
        result[i] = cells.mean(axis=(1, 3), dtype=np.float32) / 255
    return result


def longest_shot(motion: Float[np.ndarray, "pairs"], cut_above: float) -> tuple[int, int]:
    """First frame of the longest shot, and the one after its last; the first of equally long ones.

    Args:
      motion: mean difference of neighbouring frames, 0 to 1.
      cut_above: where it is larger, a new shot begins.
    """
    borders = [0, *(np.flatnonzero(motion > cut_above) + 1).tolist(), len(motion) + 1]
    longest = int(np.argmax(np.diff(borders)))
    return borders[longest], borders[longest + 1]


def kind_of_motion(cells: Cells, config: VideoConfig) -> str:
    """One of config.MOTIONS, by the share of cells that change: few, most, or a part of the picture.

    The parts of a video in which nothing moves do not make a moving camera an object.
    """
    shares = (cells > config.cell_changes).mean(axis=(1, 2))
    if not len(shares) or shares.mean() < config.static_below:
        return "static"
    moving = shares[shares >= config.static_below]
    return "camera" if moving.mean() > config.camera_above else "object"


def choose_frames(
    motion: Float[np.ndarray, "pairs"], times: Float[np.ndarray, "frames"], most: int, selection: str
) -> Int[np.ndarray, "chosen"]:
    """Numbers of at most `most` frames of a shot, the first among them, in order.

    Args:
      motion: mean difference of neighbouring frames.
      times: of the frames in seconds.
      most: frames wanted; there are fewer where some would be nearly the same, such as before and after a single jump.
      selection: "motion": between neighbours lies as nearly as can be an equal share of the summed motion;
        "uniform": of the time.
    """
    passed = times - times[0]
    if selection == "motion" and np.any(motion > 0):
        passed = np.concatenate([[0.0], np.cumsum(motion, dtype=np.float64)])
    wanted = np.linspace(0.0, passed[-1], most)
    after = np.searchsorted(passed, wanted)
    before = np.maximum(after - 1, 0)
    nearer_before = wanted - passed[before] < passed[after] - wanted
    chosen = [0]
    for frame in np.where(nearer_before, before, after).tolist():
        if passed[frame] - passed[chosen[-1]] > _LEAST_SHARE * passed[-1] / max(most - 1, 1):
            chosen.append(frame)
    return np.asarray(chosen)
