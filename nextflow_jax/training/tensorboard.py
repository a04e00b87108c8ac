"""TensorBoard's files, written where the run is: a full disk is an error of the run, as it is for metrics.jsonl.

(tensorboardX.SummaryWriter writes in a thread. When that dies of a full disk, the eleventh value waits for ever.)
"""

import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

FOLDER = "tensorboard"
_FLUSH_SECONDS = 120.0


class BoardFile:
    """One file of events.

    Args:
      workdir: the run's folder.
      step: steps done; what other files have of later ones is not shown.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        folder = workdir / FOLDER
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        self._flushed = time.monotonic()
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values of a step by name; raises an OSError when they cannot be written."""
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def close(self) -> None:
        """Writes what is left; likewise."""
        self._writer.close()

    def _write(self, step: int, **what: object) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **what))
