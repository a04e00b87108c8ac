"""Resizing of grids as precomputed linear maps, equal to torch's interpolate and adaptive pooling (no align_corners).

Equal within 1e-6 for every pair of grids that a schedule uses, float32 rounding of coordinates included; where torch's
rounding moves a boundary of "nearest" by one sample, ours moves too.
A scale's codes live on a small grid; every resize between grids is a fixed sparse linear map. It is used in two forms:
a pair of matrices (features on the device, `resize_grid`) and a gather with weights (decoder inputs, `resize_gather`).
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nextflow_jax.errors import UserError

Grid = tuple[int, int]

CUBIC_A = -0.75
"""The cubic convolution constant of torch and OpenCV."""


@functools.cache
def resize_matrix(n_in: int, n_out: int, method: str) -> Float[np.ndarray, "n_out n_in"]:
    """The matrix that resizes a line of `n_in` samples to `n_out`; rows sum to one.

    Args:
      n_in: samples before.
      n_out: samples after.
      method: "nearest", "bilinear", "bicubic" or "area" (mean over the covered samples).

    Raises:
      UserError: an unknown method.
    """
    if method not in _TAPS:
        raise UserError(f"resize method {method!r} is not known; use one of {sorted(_TAPS)}")
    matrix = np.zeros((n_out, n_in), np.float64)
    for row in range(n_out):
        for column, weight in _TAPS[method](row, n_in, n_out):
            matrix[row, min(max(column, 0), n_in - 1)] += weight
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def resize_grid(features: Any, grid: Grid, method: str) -> Any:
    """Resizes the two grid axes of `features` [..., Y, X, C] to `grid`; numpy in, numpy out; JAX in, JAX out."""
    *lead, rows, columns, channels = features.shape
    if (rows, columns) == grid:
        return features
    by_rows = resize_matrix(rows, grid[0], method) @ features.reshape(*lead, rows, columns * channels)
    by_rows = by_rows.reshape(*lead, grid[0], columns, channels)
    return resize_matrix(columns, grid[1], method) @ by_rows


@functools.cache
def resize_gather(
    grid_from: Grid, grid_to: Grid, method: str
) -> tuple[Int[np.ndarray, "cells T"], Float[np.ndarray, "cells T"]]:
    """The resize as a gather: for every cell of `grid_to`, T source cells of `grid_from` and their weights.

    Args:
      grid_from: rows and columns of the source; its cells are numbered row by row.
      grid_to: rows and columns of the result.
      method: "nearest" (T=1) or "bilinear" (T=4).

    Returns:
      (indices int32, weights float32), both [cells of grid_to, T]; weights of a cell sum to one.
    """
    taps = gather_taps(method)
    line = 1 if taps == 1 else 2
    row_index, row_weight = _line_gather(grid_from[0], grid_to[0], method, line)
    column_index, column_weight = _line_gather(grid_from[1], grid_to[1], method, line)
    index = row_index[:, None, :, None] * grid_from[1] + column_index[None, :, None, :]
    weight = row_weight[:, None, :, None] * column_weight[None, :, None, :]
    cells = grid_to[0] * grid_to[1]
    index, weight = index.reshape(cells, taps).astype(np.int32), weight.reshape(cells, taps).astype(np.float32)
    index.setflags(write=False)
    weight.setflags(write=False)
    return index, weight


def gather_taps(method: str) -> int:
    """T, the source codes a gathered input mixes: 1 for nearest, 4 for bilinear."""
    taps = {"nearest": 1, "bilinear": 4}
    if method not in taps:
        raise UserError(f"input resize {method!r}: a gather knows {sorted(taps)}")
    return taps[method]


def _line_gather(n_in: int, n_out: int, method: str, taps: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = resize_matrix(n_in, n_out, method)
    index = np.argsort(-matrix, axis=1, kind="stable")[:, :taps]
    if n_in < taps:
        index = np.concatenate([index, np.zeros((n_out, taps - n_in), index.dtype)], axis=1)
        padding = np.zeros((n_out, taps - n_in), np.float32)
        return index, np.concatenate([np.take_along_axis(matrix, index[:, :n_in], 1), padding], axis=1)
    return index, np.take_along_axis(matrix, index, 1)


def _nearest_taps(row: int, n_in: int, n_out: int) -> list[tuple[int, float]]:
    return [(int(np.float32(row) * _step(n_in, n_out)), 1.0)]


def _bilinear_taps(row: int, n_in: int, n_out: int) -> list[tuple[int, float]]:
    center = max(_center(row, n_in, n_out), 0.0)
    left = int(center)
    return [(left, 1.0 - (center - left)), (left + 1, center - left)]


def _bicubic_taps(row: int, n_in: int, n_out: int) -> list[tuple[int, float]]:
    center = _center(row, n_in, n_out)
    left = int(np.floor(center))
    return [(left + step, _cubic(abs(center - left - step))) for step in (-1, 0, 1, 2)]


def _area_taps(row: int, n_in: int, n_out: int) -> list[tuple[int, float]]:
    start, end = row * n_in // n_out, -(-(row + 1) * n_in // n_out)
    return [(column, 1.0 / (end - start)) for column in range(start, end)]


def _step(n_in: int, n_out: int) -> np.float32:
    """Input samples an output sample, rounded as torch has it."""
    return np.float32(n_in) / np.float32(n_out)


def _center(row: int, n_in: int, n_out: int) -> float:
    """Where output sample `row` lies among the input samples. torch computes it in float32 by one fused multiply-add,
    which at 128 samples is 1e-5 off the exact value; published tokenizers were trained with that."""
    return float(np.float32(float(_step(n_in, n_out)) * (row + 0.5) - 0.5))


def _cubic(distance: float) -> float:
    if distance <= 1:
        return (CUBIC_A + 2) * distance**3 - (CUBIC_A + 3) * distance**2 + 1
    return CUBIC_A * (distance**3 - 5 * distance**2 + 8 * distance - 4)


_TAPS = {"nearest": _nearest_taps, "bilinear": _bilinear_taps, "bicubic": _bicubic_taps, "area": _area_taps}
