"""The document stream: records of several pools by weight, without end or to the end of each pool's epochs.

Positions are dealt to pools in blocks, each of which keeps the weights exactly. Where a pool has given all it may, a
new segment begins, without it:

    position   0                          p1                p2
    segment    | block | block | block ...|block|block| ... |     all pools, one is exhausted, another ...
                                                                  nothing is left: the stream ends

Where a segment ends follows from its weights alone: the block in which a pool gives its last document is a division,
the place in the block one permutation. So any stretch can be looked up, and nothing before it is replayed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.shuffle import shuffled

BLOCK = 10_000
"""Stream positions that keep weights of documents exactly, up to rounding to whole documents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """The documents of an entry of the mixture: each once, then each once more in another order, and so on."""

    name: str
    records: Int[np.ndarray, "documents"]
    limit: int | None = None
    """Documents that it gives in all; None: no end."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Segment:
    start: int
    """Its first position; in it, positions are counted from here."""
    used: Int[np.ndarray, "pools"]
    """Documents that each pool gave before."""
    shares: Int[np.ndarray, "pools"]
    """Positions of a block that each pool gets."""


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentStream:
    """A sequence of record numbers, a pure function of the seed."""

    pools: tuple[Pool, ...]
    weights: tuple[float, ...]
    """Documents of each pool, in proportion; 0: none."""
    seed: int
    block: int = BLOCK
    """Positions that keep the weights exactly."""
    start: int = 0
    """The first position at which these weights hold; what was there before is another stream's."""
    used: tuple[int, ...] = ()
    """Documents that each pool gave before `start`; empty: none."""

    def records(self, start: int, stop: int) -> Int[np.ndarray, "documents"]:
        """The record numbers at stream positions start <= i < stop; fewer where the stream ends before."""
        parts = [np.empty(0, np.int64)]
        for segment, first, last in self._parts(start, stop):
            for block in range(first // self.block, -(-last // self.block)):
                offset = block * self.block
                chosen = slice(max(0, first - offset), min(self.block, last - offset))
                parts.append(self._stretch(segment, block, chosen))
        return np.concatenate(parts)

    def used_at(self, position: int) -> Int[np.ndarray, "pools"]:
        """How many documents each pool gave before a position, which is at most the end."""
        segment = [segment for segment in self._segments if segment.start <= position][-1]
        block, within = divmod(position - segment.start, self.block)
        used = segment.used + block * segment.shares
        if within:
            used = used + np.bincount(self._pool_of(segment, block)[:within], minlength=len(self.pools))
        return used

    def changed(self, position: int, weights: Sequence[float]) -> "DocumentStream":
        """The stream that goes on at `position` with other weights; every pool goes on where it was."""
        used = tuple(self.used_at(position).tolist())
        return dataclasses.replace(self, weights=tuple(weights), start=position, used=used)

    @property
    def end(self) -> int | None:
        """The position after the last; None: there is no last."""
        return None if self._segments[-1].shares.any() else self._segments[-1].start

    @functools.cached_property
    def _segments(self) -> tuple[_Segment, ...]:
        """In order; where the stream ends, the last is of nothing."""
        segments = [self._segment(self.start, np.asarray(self.used or [0] * len(self.pools), np.int64))]
        while (stop := self._stop(segments[-1])) is not None:
            position, used = stop
            segments.append(self._segment(position, used))
        return tuple(segments)

    def _segment(self, start: int, used: Int[np.ndarray, "pools"]) -> _Segment:
        open_ = [pool.limit is None or count < pool.limit for pool, count in zip(self.pools, used)]
        return _Segment(start, used, _whole_shares(np.asarray(self.weights) * open_, self.block))

    def _stop(self, segment: _Segment) -> tuple[int, Int[np.ndarray, "pools"]] | None:
        """The position after which a pool of the segment is exhausted first, and what all gave before it."""
        left = [
            (divmod(pool.limit - int(used) - 1, int(share)), number)
            for number, (pool, used, share) in enumerate(zip(self.pools, segment.used, segment.shares))
            if pool.limit is not None and share
        ]
        if not left:
            return None
        block = min(place for (place, _), _ in left)
        pool_of = self._pool_of(segment, block)
        last = min(int(np.flatnonzero(pool_of == number)[nth]) for (place, nth), number in left if place == block)
        here = np.bincount(pool_of[: last + 1], minlength=len(self.pools))
        return segment.start + block * self.block + last + 1, segment.used + block * segment.shares + here

    def _parts(self, start: int, stop: int) -> Iterator[tuple[_Segment, int, int]]:
        """The segments of a stretch, with its first and last position counted from the segment's start."""
        if start < self.start:
            raise ValueError(f"position {start} is before the stream's start, {self.start}")
        ends = [*(segment.start for segment in self._segments[1:]), stop]
        for segment, end in zip(self._segments, ends):
            first, last = max(start, segment.start), min(stop, end)
            if first < last and segment.shares.any():
                yield segment, first - segment.start, last - segment.start

    def _pool_of(self, segment: _Segment, block: int) -> Int[np.ndarray, "block"]:
        """The pool of every position of a block."""
        pool_of = np.repeat(np.arange(len(self.pools)), segment.shares)
        if np.count_nonzero(segment.shares) > 1:
            names = (segment.start, block) if segment.start else (block,)
            pool_of = numpy_generator(self.seed, "mixture", *names).permutation(pool_of)
        return pool_of

    def _stretch(self, segment: _Segment, block: int, chosen: slice) -> Int[np.ndarray, "documents"]:
        pool_of = self._pool_of(segment, block)
        result = np.empty(chosen.stop - chosen.start, np.int64)
        for number, (pool, share) in enumerate(zip(self.pools, segment.shares)):
            if not share:
                continue
            mine = pool_of == number
            first = segment.used[number] + block * share + np.count_nonzero(mine[: chosen.start])
            here = mine[chosen]
            entries = first + np.arange(np.count_nonzero(here))
            result[here] = pool.records[shuffled(entries, len(pool.records), self.seed, "order", pool.name)]
        return result


def _whole_shares(weights: Float[np.ndarray, "pools"], block: int) -> Int[np.ndarray, "pools"]:
    """Whole numbers in proportion to `weights` that sum to `block` (largest remainders get the rest); 0 for 0."""
    if not weights.any():
        return np.zeros(len(weights), np.int64)
    exact = weights / weights.sum() * block
    shares = np.floor(exact).astype(np.int64)
    rest = np.argsort(shares - exact, kind="stable")[: block - shares.sum()]
    shares[rest] += 1
    return shares
