"""The clock of hung steps: what takes too long ends the process, with the stack of every thread in the run's folder."""

import contextlib
import faulthandler
import os
import pathlib
import threading
from collections.abc import Iterator

import jax

from nextflow_jax.errors import TransientError, report

_TICKS = 20
"""A limit is counted in so many ticks of the watching thread. A machine that sleeps, or a clock that is set, makes the
thread miss ticks and nothing else."""


class Watchdog:
    """Watches the main thread while it is entered; `beat` after each step, `phase` around what has another limit.

    Args:
      workdir: where `hung-<process>.txt` goes.
      seconds: a step may take; 0 = forever.
    """

    def __init__(self, workdir: pathlib.Path, seconds: float) -> None:
        self._workdir = workdir
        self._limit = seconds
        self._doing, self._ticks = "the first step", 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nextflow_jax-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self, step: int) -> None:
        """Step `step` begins."""
        self._doing, self._ticks = f"step {step}", 0

    @contextlib.contextmanager
    def phase(self, doing: str, seconds: float) -> Iterator[None]:
        """Within it, the main thread does something that may take other seconds than a step; 0 = forever."""
        before = self._doing, self._limit
        self._doing, self._limit, self._ticks = doing, seconds, 0
        try:
            yield
        finally:
            (self._doing, self._limit), self._ticks = before, 0

    def _watch(self) -> None:
        while not self._stop.wait((self._limit or 1.0) / _TICKS):
            self._ticks += bool(self._limit)
            if self._limit and self._ticks > _TICKS:
                self._end()

    def _end(self) -> None:
        process = jax.process_index()
        path = self._workdir / f"hung-{process}.txt"
        where = f"; the stack of every thread is in {path}"
        try:
            with path.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            where = f"; its stacks could not be written ({error.strerror})"
        message = f"process {process} was at {self._doing} for more than {self._limit:g} s{where}"
        os._exit(report(TransientError(message)))
