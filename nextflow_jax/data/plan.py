"""The plan: which documents make up each row of each global batch. Global batch n is a pure function of (seed, n).

Batches are planned in windows, so many at a time. A window takes the longest stretch of the document stream that packs
into its rows, and the next window goes on where it ended:

    stream   d0 d1 d2 d3 d4 d5 | d6 d7 d8 d9 | d10 ...
    window          0          |      1      |   2        each: window_batches * batch_size rows, packed, then shuffled

Nothing else is remembered: the position of a run is the number of its next batch. Planning is a few array operations a
window and the same on every process, each of which reads only its own rows. A run that starts at batch n plans all
windows before once, from their lengths alone: about 100,000 short documents a second.
"""

import collections
import dataclasses
import threading

import numpy as np
from jaxtyping import Bool, Float, Int

from nextflow_jax.data.costs import DEFAULT_COST, RowCost
from nextflow_jax.data.keys import numpy_generator, uniform_range
from nextflow_jax.data.mixture import DocumentStream
from nextflow_jax.data.packing import Strategy

_KEPT_WINDOWS = 3
"""Reader threads may be at the end of one window and the beginning of the next."""


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
    """Share of the documents that can be turned around that are."""
    ranks: int = 0
    """Groups of a batch's rows, equally many each, that wait for one another; 0: every row is one."""
    cost: RowCost = DEFAULT_COST

    @property
    def groups(self) -> int:
        """Groups of a batch's rows."""
        return self.ranks or self.batch_size


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentTable:
    """What a plan knows of every record of a split."""

    length: Int[np.ndarray, "records"]
    """Positions with the condition."""
    condition: Int[np.ndarray, "records"]
    """Positions that dropping the condition saves."""
    task: Int[np.ndarray, "records"]
    tasks: tuple[str, ...]
    inverted_length: Int[np.ndarray, "records"]
    """Positions turned around (from text to image into captioning); 0 where a document cannot be."""
    pairs: Int[np.ndarray, "records"]
    """Visible pairs of `length` positions."""
    condition_pairs: Int[np.ndarray, "records"]
    """Pairs that dropping the condition saves."""
    inverted_pairs: Int[np.ndarray, "records"]
    """Pairs of `inverted_length` positions."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowPlan:
    """The documents of a row, in order."""

    records: Int[np.ndarray, "documents"]
    dropped: Bool[np.ndarray, "documents"]
    """True: without its condition."""
    inverted: Bool[np.ndarray, "documents"]
    """True: turned around; then nothing of it is dropped."""

    @classmethod
    def empty(cls) -> "RowPlan":
        """Of a row of padding."""
        return cls(np.empty(0, np.int64), np.empty(0, bool), np.empty(0, bool))


@dataclasses.dataclass(frozen=True, eq=False)
class _Stretch:
    """Documents drawn from the stream, in stream order."""

    records: Int[np.ndarray, "documents"]
    dropped: Bool[np.ndarray, "documents"]
    inverted: Bool[np.ndarray, "documents"]
    lengths: Int[np.ndarray, "documents"]
    pairs: Int[np.ndarray, "documents"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    stretch: _Stretch
    rows: list[Int[np.ndarray, "_"]]
    """Positions in the stretch."""
    costs: Float[np.ndarray, "rows"]


class Plan:
    """Looks up the rows of any global batch. Safe to share between threads and to send to worker processes."""

    def __init__(self, config: PlanConfig, stream: DocumentStream, table: DocumentTable, strategy: Strategy):
        self._config = config
        self._stream = stream
        self._table = table
        self._strategy = strategy
        self._cursors = [0]
        self._windows: collections.OrderedDict[int, _Window] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def batch(self, n: int) -> list[RowPlan]:
        """The rows of global batch n, `batch_size` of them; a row may be empty."""
        number, within = divmod(n, self._config.window_batches)
        window = self._window(number)
        rows = window.rows[within * self._config.batch_size : (within + 1) * self._config.batch_size]
        stretch = window.stretch
        return [RowPlan(stretch.records[row], stretch.dropped[row], stretch.inverted[row]) for row in rows]

    def statistics(self, n: int) -> dict[str, float]:
        """The mixture and padding that the window of global batch n realises.

        Returns:
          padding_share of all positions, documents_per_row, cost_imbalance (of the group of a batch's rows that costs
          most to the mean one, averaged over batches), and for every task documents/<task> and tokens/<task>:
          its share of the documents and of the positions that are no padding; with task inversion, also
          documents/inverted, which count among those of their task.
        """
        window = self._window(n // self._config.window_batches)
        stretch, tasks = window.stretch, self._table.tasks
        task = self._table.task[stretch.records]
        documents = np.bincount(task, minlength=len(tasks))
        tokens = np.bincount(task, weights=stretch.lengths, minlength=len(tasks))
        statistics = {
            "padding_share": 1 - float(tokens.sum()) / (len(window.rows) * self._config.row_length),
            "documents_per_row": len(task) / len(window.rows),
            "cost_imbalance": imbalance(window.costs, self._config.batch_size, self._config.groups),
        }
        for number in np.flatnonzero(documents):
            statistics[f"documents/{tasks[number]}"] = float(documents[number] / documents.sum())
            statistics[f"tokens/{tasks[number]}"] = float(tokens[number] / tokens.sum())
        if self._config.task_inversion:
            statistics["documents/inverted"] = float(stretch.inverted.mean())
        return statistics

    def _window(self, number: int) -> _Window:
        with self._lock:
            while len(self._cursors) <= number:
                self._plan_next_window()
            if number not in self._windows:
                self._keep(number, self._finish(number, *self._fit(self._cursors[number])))
            self._windows.move_to_end(number)
            return self._windows[number]

    def _plan_next_window(self) -> None:
        """Finds where the window after the last known one starts."""
        number = len(self._cursors) - 1
        if number in self._windows:
            taken = len(self._windows[number].stretch.records)
        else:
            stretch, rows = self._fit(self._cursors[number])
            taken = len(stretch.records)
            self._keep(number, self._finish(number, stretch, rows))
        self._cursors.append(self._cursors[number] + taken)

    def _keep(self, number: int, window: _Window) -> None:
        self._windows[number] = window
        while len(self._windows) > _KEPT_WINDOWS:
            self._windows.popitem(last=False)

    def _finish(self, number: int, stretch: _Stretch, rows: list[Int[np.ndarray, "_"]]) -> _Window:
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

    def _fit(self, cursor: int) -> tuple[_Stretch, list[Int[np.ndarray, "_"]]]:
        """The longest stretch from `cursor` that packs into a window's rows, and those rows.

        Every shorter stretch is taken to fit too. First fit decreasing is not quite monotone, but a stretch is only
        chosen after it has been packed, so the worst that can happen is a little more padding.
        """
        total = self._config.window_batches * self._config.batch_size
        drawn = self._draw(cursor, total * self._config.row_length)
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
        return _Stretch(*(getattr(drawn, name)[:best] for name in _FIELDS)), rows

    def _draw(self, cursor: int, capacity: int) -> _Stretch:
        """Documents from `cursor` on, as many as fill `capacity` positions at most."""
        stop, mean = cursor, max(1.0, float(self._table.length.mean()))
        parts: list[_Stretch] = []
        filled = 0
        while filled <= capacity:
            start, stop = stop, stop + max(16, int((capacity - filled) / mean * 1.05))
            parts.append(self._look_up(start, stop))
            filled += int(parts[-1].lengths.sum())
        whole = _Stretch(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
        count = int(np.searchsorted(np.cumsum(whole.lengths), capacity, side="right"))
        return _Stretch(*(getattr(whole, name)[:count] for name in _FIELDS))

    def _look_up(self, start: int, stop: int) -> _Stretch:
        config, table = self._config, self._table
        records = self._stream.records(start, stop)
        drawn = uniform_range(start, stop, config.seed, "inversion") < config.task_inversion
        inverted = drawn & (table.inverted_length[records] > 0)
        dropped = (uniform_range(start, stop, config.seed, "condition") < config.condition_dropout) & ~inverted
        lengths = table.length[records] - dropped * table.condition[records]
        pairs = table.pairs[records] - dropped * table.condition_pairs[records]
        return _Stretch(
            records,
            dropped,
            inverted,
            np.where(inverted, table.inverted_length[records], lengths),
            np.where(inverted, table.inverted_pairs[records], pairs),
        )


def imbalance(costs: Float[np.ndarray, "rows"], batch_size: int, groups: int) -> float:
    """The cost of the dearest group of a batch's rows, as a multiple of the mean group's; the mean over batches."""
    of_groups = costs.reshape(-1, groups, batch_size // groups).sum(axis=2)
    return float((of_groups.max(axis=1) / of_groups.mean(axis=1)).mean())


_FIELDS = tuple(field.name for field in dataclasses.fields(_Stretch))
