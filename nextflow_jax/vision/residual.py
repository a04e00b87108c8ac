"""The add-one-scale function and the walks built on it: how codes of several scales make one feature map.

An image's feature map is a sum over scales: each scale's code embeddings, resized up to the final grid (and optionally
refined by a small convolution), are added to what the coarser scales made. `add_scale` is the only place where that
addition happens. Encoding, self-correction encoding, teacher-forcing features, sampling and partial decoding call it:

    accumulated = start(...)                                      zeros on the final grid
    for each scale k:
        residual_at(schedule, k, target, accumulated)             what is left to explain, on scale k's grid  (encoding)
        accumulated = add_scale(schedule, k, accumulated, ...)    scale k's embeddings join                   (everyone)
        next_scale_features(schedule, k, accumulated)             what scale k+1 sees       (accumulated-input ablation)

All functions are pure and take NumPy or JAX arrays alike. Source: VAR (arXiv 2404.02905), algorithms 1 and 2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from nextflow_jax.resize import resize_grid
from nextflow_jax.scales import ScaleSchedule

Features = Float[np.ndarray | jax.Array, "*B Y X C"]
Aux = TypeVar("Aux")

REFINE_SHARE = 0.5
"""Share of a refined map that comes from the convolution; the rest passes unchanged (VAR, `quant_resi`)."""


class Refinement(NamedTuple):
    """VAR's 3x3 convolutions "phi" after upsampling; scales share them in groups, coarse to fine."""

    kernels: Float[np.ndarray | jax.Array, "R 3 3 C C"]
    biases: Float[np.ndarray | jax.Array, "R C"]


def start(schedule: ScaleSchedule, like: Any) -> Any:
    """Zeros on the final grid with the batch dimensions, channels, dtype and kind of array of `like` [..., C]."""
    lead = like.shape[: like.ndim - 3]
    return like.__array_namespace__().zeros((*lead, *schedule.final_grid, like.shape[-1]), dtype=like.dtype)


def add_scale(
    schedule: ScaleSchedule, k: int, accumulated: Features, embeddings: Any, refinement: Refinement | None = None
) -> Features:
    """Adds one scale: the THE step of the representation.

    Args:
      schedule: the image's grids.
      k: the scale, counted from 0.
      accumulated: [..., Y, X, C] on the final grid, what scales before k made.
      embeddings: [..., y, x, C], the code embeddings of scale k on its own grid.
      refinement: the convolutions after upsampling, when the tokenizer has them.

    Returns:
      [..., Y, X, C]: what scales up to and including k make.

    Raises:
      ValueError: embeddings or map not on the grids that the schedule says.
    """
    _check_grid("embeddings", embeddings, schedule.grids[k])
    _check_grid("accumulated", accumulated, schedule.final_grid)
    step = resize_grid(embeddings, schedule.final_grid, "bicubic")
    if refinement is not None:
        step = _refine(step, refinement, k, schedule.num_scales)
    return accumulated + step


def residual_at(schedule: ScaleSchedule, k: int, target: Features, accumulated: Features) -> Any:
    """What scale k has to explain: (target - accumulated), area-resized to scale k's grid [..., y, x, C]."""
    return resize_grid(target - accumulated, schedule.grids[k], "area")


def next_scale_features(schedule: ScaleSchedule, k: int, accumulated: Features) -> Any:
    """What scale k+1 sees of the map after scale k: area-resized to its grid (after the last: the map itself)."""
    return resize_grid(accumulated, schedule.grids[min(k + 1, schedule.num_scales - 1)], "area")


def encode_scales(
    schedule: ScaleSchedule,
    target: Features,
    quantise: Callable[[int, Any], tuple[Any, Aux]],
    refinement: Refinement | None = None,
    present: Sequence[Any] | None = None,
) -> tuple[list[Features], list[Aux]]:
    """Explains `target` scale by scale, each scale quantising what the scales before it left.

    Args:
      schedule: the image's grids.
      target: [..., Y, X, C] on the final grid.
      quantise: (scale k from 0, residual [..., y, x, C]) -> (code embeddings of the same shape, anything to keep).
      refinement: as in `add_scale`.
      present: for each scale, booleans [...] of the batch: an image without the scale goes on as if it were not there.

    Returns:
      The accumulated map after each scale, and what `quantise` kept at each scale.
    """
    accumulated, maps, kept = start(schedule, target), [], []
    for k in range(schedule.num_scales):
        embeddings, aux = quantise(k, residual_at(schedule, k, target, accumulated))
        longer = add_scale(schedule, k, accumulated, embeddings, refinement)
        if present is not None:
            longer = longer.__array_namespace__().where(present[k][..., None, None, None], longer, accumulated)
        accumulated = longer
        maps.append(accumulated)
        kept.append(aux)
    return maps, kept


def accumulate(
    schedule: ScaleSchedule, embeddings: Float[np.ndarray | jax.Array, "*B N C"], refinement: Refinement | None = None
) -> list[Features]:
    """The accumulated map after each scale, from the flat embeddings of all codes of an image [..., N, C]."""
    scales = split_scales(schedule, embeddings)
    accumulated, maps = start(schedule, scales[0]), []
    for k, scale in enumerate(scales):
        accumulated = add_scale(schedule, k, accumulated, scale, refinement)
        maps.append(accumulated)
    return maps


def split_scales(schedule: ScaleSchedule, embeddings: Float[np.ndarray | jax.Array, "*B N C"]) -> list[Any]:
    """The flat embeddings [..., N, C] as one grid [..., y, x, C] a scale."""
    lead, channels = embeddings.shape[:-2], embeddings.shape[-1]
    return [
        embeddings[..., schedule.slice(k), :].reshape(*lead, *grid, channels) for k, grid in enumerate(schedule.grids)
    ]


def refinement_index(k: int, num_scales: int, groups: int) -> int:
    """Which of `groups` convolutions scale k (from 0) of `num_scales` uses: VAR's partial sharing, the nearest tick."""
    margin = 1 / 3 / groups if groups == 4 else 1 / 2 / groups
    ticks = np.linspace(margin, 1 - margin, groups)
    return int(np.argmin(np.abs(ticks - k / max(num_scales - 1, 1))))


def _refine(step: Features, refinement: Refinement, k: int, num_scales: int) -> Features:
    group = refinement_index(k, num_scales, refinement.kernels.shape[0])
    kernel, bias = refinement.kernels[group], refinement.biases[group]
    xp = step.__array_namespace__()
    rows, columns, channels = step.shape[-3:]
    padded = xp.pad(step, [(0, 0)] * (step.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    shifted = [padded[..., i : i + rows, j : j + columns, :] for i in range(3) for j in range(3)]
    convolved = xp.concatenate(shifted, axis=-1) @ kernel.reshape(9 * channels, channels) + bias
    return step * (1 - REFINE_SHARE) + convolved * REFINE_SHARE


def _check_grid(name: str, array: Any, grid: tuple[int, int]) -> None:
    if tuple(array.shape[-3:-1]) != tuple(grid):
        raise ValueError(f"{name} {tuple(array.shape)}: the schedule says grid {grid}")
