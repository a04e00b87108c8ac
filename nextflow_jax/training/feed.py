"""Batches on their way to the devices: a thread builds global arrays ahead, and the time spent waiting is measured."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from nextflow_jax.sharding import local_part
from nextflow_jax.training.task import BatchSpec, Task

_END = object()
_LOOK_EVERY = 0.005
"""Seconds between two looks at whether the devices still work, while no batch is there."""


class FeedTotals(NamedTuple):
    """What a feed counted since it began."""

    waited: float = 0.0
    """Seconds that `next_batch` blocked while the devices had nothing to do."""
    batches: int = 0
    """Batches asked for."""
    ready: int = 0
    """Batches that lay ready at each of those times, summed."""


class Feed:
    """Global batches `start`, `start` + 1, ... of a task, each process contributing its own rows.

    Use as a context manager; `next_batch` returns the arrays, and `totals` tells how well the feed kept up.

    Args:
      task: makes them.
      start: number of the first.
      rows: where the rows of their arrays go.
      depth: batches that lie ready on the devices at most, before the one that is being trained on ends.
    """

    def __init__(self, task: Task, start: int, rows: NamedSharding, depth: int) -> None:
        self.totals = FeedTotals()
        self.depth = depth
        self._specs = task.batch_specs()
        self._rows = rows
        part, num_parts = local_part(rows, _global_batch_size(self._specs))
        self._batches = task.batches(start, part, num_parts)
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="nextflow_jax-feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def next_batch(self, busy: Callable[[], bool] = lambda: False) -> dict[str, jax.Array]:
        """The next global batch.

        Args:
          busy: whether the devices still work on an earlier one; waiting costs nothing so long.

        Raises:
          BaseException: what the task's iterator raised; ValueError when it ended.
        """
        ready = self._queue.qsize()
        item, waited = self._get(busy)
        self.totals = FeedTotals(self.totals.waited + waited, self.totals.batches + 1, self.totals.ready + ready)
        if item is _END:
            raise ValueError("the task's batches ended; Task.batches must not end")
        if isinstance(item, BaseException):
            raise item
        return item

    def _get(self, busy: Callable[[], bool]) -> tuple[object, float]:
        """What lies in the queue next, and the seconds that it was waited for with idle devices."""
        begin = time.perf_counter()
        while busy():
            try:
                return self._queue.get(timeout=_LOOK_EVERY), 0.0
            except queue.Empty:
                begin = time.perf_counter()
        return self._queue.get(), time.perf_counter() - begin

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(self._to_devices(batch, find_spec(batch, self._specs))):
                    return
            self._put(_END)
        except BaseException as error:  # noqa: BLE001  (raised again in the loop's thread)
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _to_devices(self, batch: dict[str, np.ndarray], spec: BatchSpec) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(self._rows, batch[name], array.shape)
            for name, array in spec.items()
        }


def find_spec(batch: dict[str, np.ndarray], specs: Sequence[BatchSpec]) -> BatchSpec:
    """The one of the task's `batch_specs` that this process's rows of a batch belong to.

    Raises:
      ValueError: none has its names, dtypes and dimensions after the first; says what differs from the last.
    """
    for spec in specs:
        problem = _misfit(batch, spec)
        if not problem:
            return spec
    more = f" (nor any other of {len(specs)} specs)" if len(specs) > 1 else ""
    raise ValueError(problem + more)


def _misfit(batch: dict[str, np.ndarray], spec: BatchSpec) -> str:
    if set(batch) != set(spec):
        return f"batch has arrays {sorted(batch)}, batch_specs {sorted(spec)}"
    for name, expected in spec.items():
        array = batch[name]
        if array.dtype != expected.dtype or array.shape[1:] != expected.shape[1:]:
            said = f"batch_specs says {expected.dtype}{expected.shape}"
            return f"batch {name!r} is {array.dtype}{array.shape}, {said}"
    return ""


def _global_batch_size(specs: Sequence[BatchSpec]) -> int:
    sizes = {array.shape[0] for spec in specs for array in spec.values()}
    if len(sizes) != 1:
        raise ValueError(f"batch_specs disagree on the batch size: {sorted(sizes)}")
    return sizes.pop()
