"""Profiles of a few steps, by configuration or by signal, as xprof and TensorBoard read them; the run goes on.

`kill -USR1 PID` writes one from the next step on: of that process alone, or of all those that PID supervises
(`nextflow_jax.supervise`, `launch/host.sh`). Before the first step and after the last it does nothing. With xprof
installed, `xprof --logdir WORKDIR/profile` shows it.
"""

import dataclasses
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax

from nextflow_jax.config import Fault

FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Which steps are profiled without being asked."""

    steps: tuple[int, ...] = ()
    """First steps of the windows, counted from 1."""
    length: int = 5
    """Steps in a window, also in those that a signal opens."""
    processes: tuple[int, ...] = (0,)
    """The processes of a job that write these windows; empty: all."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if self.length < 1:
            yield Fault("length", self.length, "must be positive", "use at least 1")
        if any(step < 1 for step in self.steps):
            yield Fault("steps", self.steps, "steps are counted from 1", "use e.g. (10,)")


def ignore_signal() -> None:
    """Makes SIGUSR1 harmless until a `Profiler` listens: it would end a process that still joins its job or loads."""
    # Only the main thread may set handlers.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Profiler:
    """Opens and closes windows between steps; use as a context manager, which listens to SIGUSR1.

    The signal's handler sets a flag and nothing else. A window that cannot be written costs the profile, not the run.

    Args:
      config: windows known beforehand.
      workdir: the run's folder.
      say: tells the user.
    """

    def __init__(self, config: ProfileConfig, workdir: pathlib.Path, say: Callable[[str], None]) -> None:
        mine = not config.processes or jax.process_index() in config.processes
        self._steps = frozenset(config.steps if mine else ())
        self._length = config.length
        self._folder = workdir / FOLDER
        self._say = say
        self._asked = False
        self._first: int | None = None
        self._previous: object = None

    def __enter__(self) -> "Profiler":
        # Only the main thread may set handlers; a loop in another one has the configured windows.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
        if self._first is not None:
            self.close()

    def due(self, step: int) -> bool:
        """Whether a window begins with `step`, the next one; forgets a signal that was received."""
        asked, self._asked = self._asked, False
        return self._first is None and (asked or step in self._steps)

    def open(self, step: int) -> None:
        """Begins a window with `step`."""
        if jax.default_backend() != "tpu":
            # libtpu, installed without a TPU, would ask a server that is not there about the machine for two minutes.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        try:
            jax.profiler.start_trace(self._place(step))
            self._first = step
        except (OSError, RuntimeError) as error:
            self._say(f"no profile from step {step} on: {error}")

    def ends_with(self, step: int) -> bool:
        """Whether `step` is the last of the open window."""
        return self._first is not None and step >= self._first + self._length - 1

    def close(self) -> None:
        """Writes the window; the steps in it have ended."""
        first, self._first = self._first, None
        try:
            jax.profiler.stop_trace()
            self._say(f"profile of {self._length} steps from step {first} on: {self._place(first)}")
        except (OSError, RuntimeError) as error:
            self._say(f"the profile from step {first} on is lost: {error}")

    def _place(self, step: int) -> pathlib.Path:
        """A folder of its own: files are named by host and second, which windows and processes may share."""
        process = f"process_{jax.process_index()}" if jax.process_count() > 1 else ""
        return self._folder / f"step_{step:06d}" / process

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
