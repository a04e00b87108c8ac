"""The mixture: an endless stream of documents, tasks by weight, in which any stretch can be looked up."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from nextflow_jax.config import Fault, nearest
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.shards import DocumentIndex
from nextflow_jax.data.shuffle import shuffled
from nextflow_jax.errors import UserError

_BLOCK = 10_000
"""Stream positions that keep the weights exactly, up to rounding to whole documents."""


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Which tasks are read, how often."""

    weights: tuple[tuple[str, float], ...] = ()
    """(task, weight): documents of a task in proportion to its weight, reshuffled each time it is used up.
    Empty: every document once an epoch, whatever its task."""

    def faults(self) -> Iterator[Fault]:
        """The rules this mixture breaks."""
        total = sum(weight for _, weight in self.weights)
        for task, weight in self.weights:
            if weight <= 0 or weight * _BLOCK < total:
                rule = f"every weight must be positive and at least 1/{_BLOCK} of their sum"
                yield Fault("weights", (task, weight), rule, "leave the task out or raise it")
        names = [task for task, _ in self.weights]
        for task in sorted({name for name in names if names.count(name) > 1}):
            yield Fault("weights", task, "each task may appear once", "add the weights")


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentStream:
    """An endless sequence of record numbers, a pure function of the seed."""

    pools: tuple[Int[np.ndarray, "_"], ...]
    """The records of every task, or one pool of all."""
    names: tuple[str, ...]
    shares: tuple[int, ...]
    """How many of `_BLOCK` stream positions each pool gets."""
    seed: int

    def records(self, start: int, stop: int) -> Int[np.ndarray, "documents"]:
        """The record numbers at stream positions start <= i < stop."""
        blocks = range(start // _BLOCK, -(-stop // _BLOCK))
        parts = [np.empty(0, np.int64)]
        for block in blocks:
            chosen = slice(max(0, start - block * _BLOCK), min(_BLOCK, stop - block * _BLOCK))
            parts.append(self._stretch(block, chosen))
        return np.concatenate(parts)

    def _stretch(self, block: int, chosen: slice) -> Int[np.ndarray, "documents"]:
        pool_of = np.repeat(np.arange(len(self.pools)), self.shares)
        if len(self.pools) > 1:
            pool_of = numpy_generator(self.seed, "mixture", block).permutation(pool_of)
        result = np.empty(chosen.stop - chosen.start, np.int64)
        for number, (pool, name, share) in enumerate(zip(self.pools, self.names, self.shares)):
            mine = pool_of == number
            first = block * share + np.count_nonzero(mine[: chosen.start])
            here = mine[chosen]
            entries = first + np.arange(np.count_nonzero(here))
            result[here] = pool[shuffled(entries, len(pool), self.seed, "order", name)]
        return result


def make_stream(
    config: MixtureConfig, index: DocumentIndex, usable: Bool[np.ndarray, "records"], seed: int
) -> DocumentStream:
    """The stream of a split.

    Args:
      config: the weights.
      index: of the split.
      usable: records that may appear.
      seed: of the experiment.

    Raises:
      UserError: a task that the shards lack, or nothing to read.
    """
    if not usable.any():
        raise UserError(f"none of the {len(usable)} documents of the shards fits a row; raise row_length")
    if not config.weights:
        return DocumentStream((np.flatnonzero(usable),), ("all",), (_BLOCK,), seed)
    pools = []
    for task, _ in config.weights:
        known = task in index.tasks
        pool = np.flatnonzero(usable & (index.task == index.tasks.index(task))) if known else np.empty(0, np.int64)
        if not pool.size:
            there = sorted({index.tasks[number] for number in np.unique(index.task[usable])})
            raise UserError(f"mixture task {task!r} has no document in the shards; {nearest(task, there)}")
        pools.append(pool)
    names = tuple(task for task, _ in config.weights)
    return DocumentStream(tuple(pools), names, _whole_shares([weight for _, weight in config.weights]), seed)


def _whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in proportion to `weights` that sum to `_BLOCK` (largest remainders get the rest)."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * _BLOCK
    shares = np.floor(exact).astype(np.int64)
    rest = np.argsort(shares - exact, kind="stable")[: _BLOCK - shares.sum()]
    shares[rest] += 1
    return tuple(shares.tolist())
