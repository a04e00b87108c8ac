"""How long a step takes: the roofline of `work`, with what chips and links reached of it in published runs.

    seconds = (matmul + attention / 0.5) / (peak x efficiency of the generation)
            + update / memory bandwidth + a share of the time on ICI + a share of the time on DCN
            + a share of the ideal compute time for every doubling of the slices

The shares stand for what overlap does not hide, the last one for stragglers and whatever else grows with slices. The
free parameters (an efficiency a generation, three shares) are fitted to some of the published runs, in relative
errors, none negative; the others say how far off a prediction is.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from nextflow_jax.errors import UserError
from nextflow_jax.planning.published import PublishedRun
from nextflow_jax.planning.work import ChipWork, Placement, chip_work

ATTENTION_EFFICIENCY = 0.5
"""Of attention kernels, relative to that of matrix products. An assumption; published runs have too little attention to
tell (any value from 0.4 to 1 fits them as well)."""


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What is reached of the rooflines."""

    compute: Mapping[str, float]
    """Share of the peak FLOP/s by generation, in matrix products."""
    ici: float
    """Share of the time on ICI that computation does not hide; likewise `dcn`."""
    dcn: float
    doubling: float
    """Of the ideal compute time, added by every doubling of the slices."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on; they add up."""

    compute: float
    update: float
    ici: float
    dcn: float
    doubling: float

    @property
    def total(self) -> float:
        """Of the step."""
        return sum(dataclasses.astuple(self))


def step_time(work: ChipWork, place: Placement, efficiency: Efficiency) -> StepTime:
    """Seconds of a step in which every chip does `work`.

    Raises:
      UserError: no published run says what this generation reaches.
    """
    if place.generation not in efficiency.compute:
        known = ", ".join(efficiency.compute)
        raise UserError(f"{place.generation}: no published run of a dense decoder to go by; known: {known}")
    ideal = _ideal(work, place)
    return StepTime(
        compute=ideal.compute / efficiency.compute[place.generation],
        update=ideal.update,
        ici=efficiency.ici * ideal.ici,
        dcn=efficiency.dcn * ideal.dcn,
        doubling=efficiency.doubling * ideal.doubling,
    )


def fit_efficiency(runs: Sequence[PublishedRun]) -> Efficiency:
    """The parameters that fit these runs best, by least squares of relative errors with none negative."""
    generations = sorted({run.place.generation for run in runs})
    rows, targets = [], []
    for run in runs:
        ideal = _ideal(chip_work(run.shape, run.batch, run.place, run.again), run.place)
        compute = [ideal.compute * (run.place.generation == name) for name in generations]
        rows.append(np.array([*compute, ideal.ici, ideal.dcn, ideal.doubling]) / run.seconds)
        targets.append(1 - ideal.update / run.seconds)
    inverse = _non_negative(np.array(rows), np.array(targets))
    ici, dcn, doubling = (float(value) for value in inverse[len(generations) :])
    return Efficiency({name: float(1 / inverse[i]) for i, name in enumerate(generations)}, ici, dcn, doubling)


def relative_error(run: PublishedRun, efficiency: Efficiency) -> float:
    """(predicted - published) / published seconds."""
    work = chip_work(run.shape, run.batch, run.place, run.again)
    return step_time(work, run.place, efficiency).total / run.seconds - 1


def _ideal(work: ChipWork, place: Placement) -> StepTime:
    """Every resource at its full rate, alone; and the compute time once for every doubling of the slices."""
    compute = (work.matmul_flops + work.attention_flops / ATTENTION_EFFICIENCY) / place.chip.peak_flops
    return StepTime(
        compute=compute,
        update=work.update_bytes / place.chip.hbm_bandwidth,
        ici=work.ici_bytes / place.ici_bandwidth if work.ici_bytes else 0.0,
        dcn=work.dcn_bytes / place.chip.dcn_bandwidth,
        doubling=compute * math.log2(place.slices),
    )


def _non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with no coefficient below 0: the best of those over all subsets of the few columns."""
    best, least = np.zeros(matrix.shape[1]), np.inf
    for size in range(1, matrix.shape[1] + 1):
        for columns in itertools.combinations(range(matrix.shape[1]), size):
            found = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            error = float(((matrix[:, columns] @ found - target) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(matrix.shape[1]), error
                best[list(columns)] = found
    return best
