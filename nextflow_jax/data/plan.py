"""The plan: which documents make up each row of each global batch. Global batch n is a pure function of (seed, n).

Batches are planned in windows, so many at a time. A window takes the longest stretch of the document stream that packs
into its rows, and the next window goes on where it ended:

    stream   d0 d1 d2 d3 d4 d5 | d6 d7 d8 d9 | d10 ...
    window          0          |      1      |   2        each: window_batches * batch_size rows, packed, then shuffled

A phase of the run, with other weights or more inversion, begins with a window, at whatever document that comes to.

Nothing else is remembered: the position of a run is the number of its next batch. Planning is a few array operations a
window and the same on every process, each of which reads only its own rows. A run that starts at batch n plans all
windows before once, from their lengths alone: about 100,000 short documents a second.
"""

import bisect
import collections
import dataclasses
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nextflow_jax.data.costs import DEFAULT_COST, RowCost
from nextflow_jax.data.drawing import Chances, DocumentTable, Stretch, draw
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.packing import Strategy
from nextflow_jax.data.stream import DocumentStream
from nextflow_jax.data.tally import Tally, count_groups, describe, imbalance
from nextflow_jax.errors import UserError

_KEPT_WINDOWS = 3
"""Reader threads may be at the end of one window and the beginning of the next."""
_KEPT_TALLIES = 64
"""Statistics are asked for when batches were trained on, which is some windows after they were planned."""
_PLANNED_AT_ONCE = 1_000_000
"""Documents that `check_length` plans, which takes some ten seconds; of more it looks at the mean."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The numbers that a plan depends on besides its documents."""

    seed: int
    batch_size: int
    """Rows of a global batch."""
    window_batches: int
    row_length: int
    condition_dropout: float
    """Share of documents whose condition text is dropped."""
    task_inversion: float = 0.0
    """Share of the documents that can be turned around that are, in the first phase."""
    ranks: int = 0
    """Groups of a batch's rows, equally many each, that wait for one another; 0: every row is one."""
    cost: RowCost = DEFAULT_COST

    @property
    def groups(self) -> int:
        """Groups of a batch's rows."""
        return self.ranks or self.batch_size


class Phase(NamedTuple):
    """What holds from a global batch on, which is the first of its window."""

    batch: int
    weights: tuple[float, ...]
    """Documents of each of the stream's pools, in proportion."""
    task_inversion: float


@dataclasses.dataclass(frozen=True, eq=False)
class RowPlan:
    """The documents of a row, in order."""

    records: Int[np.ndarray, "documents"]
    dropped: Bool[np.ndarray, "documents"]
    """True: without its condition."""
    inverted: Bool[np.ndarray, "documents"]
    """True: turned around; then nothing of it is dropped."""
    lengths: Int[np.ndarray, "documents"]
    """Positions that the index promises."""

    @classmethod
    def empty(cls) -> "RowPlan":
        """Of a row of padding."""
        return cls(np.empty(0, np.int64), np.empty(0, bool), np.empty(0, bool), np.empty(0, np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    stretch: Stretch
    rows: list[Int[np.ndarray, "_"]]
    """Positions in the stretch."""
    costs: Float[np.ndarray, "rows"]


class Plan:
    """Looks up the rows of any global batch. Safe to share between threads and to send to worker processes.

    Args:
      config: the numbers.
      stream: the documents of the first phase.
      table: of the split.
      strategy: of packing.
      phases: the further phases, in order.

    Raises:
      ValueError: a phase that does not begin with a window.
    """

    def __init__(
        self,
        config: PlanConfig,
        stream: DocumentStream,
        table: DocumentTable,
        strategy: Strategy,
        phases: Sequence[Phase] = (),
    ):
        if any(phase.batch % config.window_batches for phase in phases):
            raise ValueError(f"phases {[phase.batch for phase in phases]} in windows of {config.window_batches}")
        self._config = config
        self._streams = [stream]
        self._table = table
        self._strategy = strategy
        self._phases = tuple(phases)
        self._cursors = [0]
        self._windows: collections.OrderedDict[int, _Window] = collections.OrderedDict()
        self._tallies: collections.OrderedDict[int, Tally] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def batch(self, n: int) -> list[RowPlan]:
        """The rows of global batch n, `batch_size` of them; a row may be empty.

        Raises:
          UserError: the data end before it.
        """
        number, within = divmod(n, self._config.window_batches)
        window = self._window(number)
        rows = window.rows[within * self._config.batch_size : (within + 1) * self._config.batch_size]
        stretch = window.stretch
        columns = (stretch.records, stretch.dropped, stretch.inverted, stretch.lengths)
        return [RowPlan(*(column[row] for column in columns)) for row in rows]

    def statistics(self, n: int) -> dict[str, float]:
        """`realised` of the window of global batch n."""
        first = n // self._config.window_batches * self._config.window_batches
        return self.realised(first, first + self._config.window_batches)

    def realised(self, first: int, stop: int) -> dict[str, float]:
        """The mixture and padding that global batches first..stop-1 realise, a pure function of the two.

        Returns:
          As `tally.describe` has them, by task, by source ("@<source>") and by entry of the mixture; epochs/<entry>,
          how often the run has seen the entry's documents before batch `stop`; documents/inverted with task inversion.

        Raises:
          UserError: the data end before them.
        """
        size = self._config.window_batches
        numbers = range(first // size, -(-stop // size))
        parts = [
            self._tally(number).part(max(0, first - number * size), min(size, stop - number * size))
            for number in numbers
        ]
        inverts = self._config.task_inversion or any(phase.task_inversion for phase in self._phases)
        found = describe(parts, self._table.groupings, with_inverted=bool(inverts))
        return found | (self._epochs(numbers[-1], stop - numbers[-1] * size) if self._table.entry else {})

    def check_length(self, batches: int) -> None:
        """Refuses a run of more batches than the data have; of long runs, what is sure from mean lengths alone.

        Raises:
          UserError: says where the data end.
        """
        if all(pool.limit is None for pool in self._streams[0].pools):
            return
        row_positions = batches * self._config.batch_size * self._config.row_length
        if row_positions <= _PLANNED_AT_ONCE * self._table.length.mean():
            self.batch(batches - 1)
        elif not self._phases and self._streams[0].end is not None:
            longest = np.maximum(self._table.length, self._table.inverted_length)
            most = sum(pool.limit * longest[pool.records].mean() for pool in self._streams[0].pools)
            if most < row_positions:
                raise _ended(int(most / row_positions * batches))

    def _epochs(self, number: int, batches: int) -> dict[str, float]:
        """How often the entries were seen before the batch at place `batches` of a window."""
        pools = self._streams[0].pools
        seen = self._stream(number).used_at(self._cursors[number])
        seen = seen + self._tally(number).grouped[-1][0][:batches].sum(axis=0)
        return {f"epochs/{pool.name}": int(count) / len(pool.records) for pool, count in zip(pools, seen) if count}

    def _tally(self, number: int) -> Tally:
        with self._lock:
            tally = self._tallies.get(number)
        return self._count(self._window(number)) if tally is None else tally

    def _phase(self, number: int) -> int:
        """The phase of a window, 0 before the first of `phases`."""
        return bisect.bisect_right([phase.batch for phase in self._phases], number * self._config.window_batches)

    def _stream(self, number: int) -> DocumentStream:
        return self._streams[self._phase(number)]

    def _window(self, number: int) -> _Window:
        with self._lock:
            while len(self._cursors) <= number:
                self._plan_next_window()
            if number not in self._windows:
                self._keep(number, self._finish(number, *self._fit(number)))
            self._windows.move_to_end(number)
            return self._windows[number]

    def _plan_next_window(self) -> None:
        """Finds where the window after the last known one starts."""
        number = len(self._cursors) - 1
        if number in self._windows:
            taken = len(self._windows[number].stretch.records)
        else:
            stretch, rows = self._fit(number)
            taken = len(stretch.records)
            self._keep(number, self._finish(number, stretch, rows))
        cursor = self._cursors[number] + taken
        while len(self._streams) <= self._phase(number + 1):
            phase = self._phases[len(self._streams) - 1]
            self._streams.append(self._streams[-1].changed(cursor, phase.weights))
        self._cursors.append(cursor)

    def _keep(self, number: int, window: _Window) -> None:
        self._windows[number] = window
        while len(self._windows) > _KEPT_WINDOWS:
            self._windows.popitem(last=False)
        self._tallies[number] = self._count(window)
        while len(self._tallies) > _KEPT_TALLIES:
            self._tallies.popitem(last=False)

    def _count(self, window: _Window) -> Tally:
        size, batches = self._config.batch_size, self._config.window_batches
        counts = np.asarray([len(row) for row in window.rows])
        chosen = np.concatenate(window.rows).astype(np.int64)
        batch = np.repeat(np.arange(len(window.rows)) // size, counts)
        records, lengths = window.stretch.records[chosen], window.stretch.lengths[chosen]
        return Tally(
            rows=np.full(batches, size),
            positions=np.full(batches, size * self._config.row_length),
            documents=np.bincount(batch, minlength=batches),
            tokens=np.bincount(batch, weights=lengths, minlength=batches).astype(np.int64),
            inverted=np.bincount(batch[window.stretch.inverted[chosen]], minlength=batches),
            imbalance=imbalance(window.costs, size, self._config.groups),
            grouped=tuple(count_groups(group, records, lengths, batch, batches) for group in self._table.groupings),
        )

    def _finish(self, number: int, stretch: Stretch, rows: list[Int[np.ndarray, "_"]]) -> _Window:
        """Fills up with empty rows and arranges them: packing puts rows of long documents first."""
        total = self._config.window_batches * self._config.batch_size
        rows = rows + [np.empty(0, np.int64)] * (total - len(rows))
        pairs = np.asarray([stretch.pairs[row].sum() for row in rows], np.float64)
        # Padding is computed like everything else, and each of its positions sees itself.
        padding = self._config.row_length - np.asarray([stretch.lengths[row].sum() for row in rows])
        costs = self._config.cost.flops(np.full(total, self._config.row_length), pairs + padding)
        generator = numpy_generator(self._config.seed, "rows", number)
        order = self._strategy.arrange(costs, self._config.batch_size, self._config.groups, generator)
        return _Window(stretch, [rows[i] for i in order], costs[order])

    def _fit(self, number: int) -> tuple[Stretch, list[Int[np.ndarray, "_"]]]:
        """The longest stretch from a window's cursor that packs into its rows, and those rows.

        Every shorter stretch is taken to fit too. First fit decreasing is not quite monotone, but a stretch is only
        chosen after it has been packed, so the worst that can happen is a little more padding.
        """
        total = self._config.window_batches * self._config.batch_size
        phase = self._phase(number)
        inversion = self._phases[phase - 1].task_inversion if phase else self._config.task_inversion
        chances = Chances(self._config.seed, self._config.condition_dropout, inversion)
        capacity = total * self._config.row_length
        drawn, ended = draw(self._streams[phase], self._table, chances, self._cursors[number], capacity)
        too_many, best, rows = len(drawn.records) + 1, 0, []
        least = max(1, int(self._strategy.tolerance * len(drawn.records)))
        step, count = least, len(drawn.records)
        while best + least < too_many:
            packed = self._strategy.pack(drawn.lengths[:count], self._config.row_length, total)
            if packed is not None and len(packed) <= total:
                best, rows, step = count, packed, 0
            else:
                too_many, step = count, step * 2
            count = max(best + 1, too_many - step) if step else (best + too_many) // 2
        if ended and best == len(drawn.records):
            raise _ended(number * self._config.window_batches)
        return drawn.first(best), rows


def _ended(batch: int) -> UserError:
    return UserError(
        f"the data end after global batch {batch}: every entry of the mixture has been seen max_epochs times; set "
        f"config.train.steps to {batch} at most, or raise config.pipeline.mixture.max_epochs"
    )
