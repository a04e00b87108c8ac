"""Being one of the processes of a job: joining it, and leaving at once when another is lost."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # the job's key-value store has no public name

from nextflow_jax.config import Fault
from nextflow_jax.errors import TransientError, UserError, report

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""How a job is described where JAX does not recognise one; `supervise` sets them."""

_BACKSTOP = 2
_BEATS = 5
"""Signs of life that a process gives in the time after which it would be taken for lost."""

_LAST_SECONDS = 3.0
"""Process 0 stays so much longer than its error."""

_ALIVE = "nextflow_jax/alive/"
_LEFT = "left"

_OURS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
"""Beginnings of errors of the runtime that would come again after a restart."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How long the processes of a job wait for one another, in seconds."""

    join_seconds: int = 300
    """For all to be there at the start: machines of a pod do not start at once."""
    heartbeat_seconds: int = 60
    """A process that was not heard of for so long is lost, and all others end, with status 75."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("join_seconds", "heartbeat_seconds"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use at least 1")


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Within it, this process belongs to a job: that of a TPU pod or of Slurm, or the one that `VARIABLES` describe.

    An error inside is reported and ends the process without waiting for the others, which it would otherwise keep in
    their collectives: they cannot go on without this one, and neither can it say goodbye to those that are lost.

    Raises:
      UserError: there is no job, or the variables make no sense.
      TransientError: not all of its processes came.
    """
    address, count, index = _described()
    try:
        jax.distributed.initialize(
            address,
            num_processes=count,
            process_id=index,
            initialization_timeout=config.join_seconds,
            # JAX's own watch ends a process in the middle of its output, with a stack trace; ours comes first.
            heartbeat_timeout_seconds=_BACKSTOP * config.heartbeat_seconds,
            shutdown_timeout_seconds=_BACKSTOP * config.heartbeat_seconds,
        )
    except ValueError as error:
        known = ", ".join(VARIABLES)
        raise UserError(f"--distributed: found no job to join ({error}); set {known}, or leave the flag out") from error
    except jax.errors.JaxRuntimeError as error:
        raise TransientError(
            f"not all processes of the job came within {config.join_seconds} s ({_first_line(error)}); start it again"
        ) from error
    try:
        with _Heartbeat(config.heartbeat_seconds):
            yield
    except BaseException as error:  # noqa: BLE001  (reported, and nothing runs after it)
        status = report(_explained(error))
        if jax.process_index() == 0 and jax.process_count() > 1:
            # It takes the others along, which may be about to say what they found themselves.
            time.sleep(_LAST_SECONDS)
        os._exit(status)


class Peers:
    """Which processes of a job still give signs of life.

    Silence is counted in looks, not by a clock: a process that was itself stopped for a while, or whose clock jumped,
    took none and takes nobody for lost.
    """

    def __init__(self, count: int) -> None:
        self._last = {str(index): ("", 0) for index in range(count)}

    def lost(self, words: Mapping[str, str]) -> list[int]:
        """Numbers of the processes whose word was the same at more than `_BEATS` looks in a row.

        Args:
          words: by number, what each wrote last; it changes with every sign of life, and `_LEFT` is for good.
        """
        for index, (before, looks) in self._last.items():
            word = words.get(index, "")
            self._last[index] = (word, looks + 1 if word == before else 0)
        return sorted(int(index) for index, (word, looks) in self._last.items() if looks > _BEATS and word != _LEFT)


class _Heartbeat:
    """A thread that tells the job's key-value store that this process lives, and ends it when another does not."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._client: Any = jax_distributed.global_state.client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nextflow_jax-heartbeat", daemon=True)

    def __enter__(self) -> None:
        if self._count > 1:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._say(_LEFT)

    def _run(self) -> None:
        peers, beat = Peers(self._count), 0
        while not self._stop.wait(self._seconds / _BEATS):
            beat += 1
            try:
                self._say(str(beat))
                words = {key.rpartition("/")[2]: word for key, word in self._client.key_value_dir_get(_ALIVE)}
            except jax.errors.JaxRuntimeError as error:
                self._end(f"process 0, which coordinates, does not answer ({_first_line(error)})")
            lost = peers.lost(words)
            if lost:
                if self._index == 0:
                    # The others ask the store that this one keeps.
                    time.sleep(2 * self._seconds / _BEATS)
                numbers = ", ".join(map(str, lost))
                self._end(f"process {numbers} of {self._count} was not heard of for {self._seconds} s")

    def _say(self, word: str) -> None:
        self._client.key_value_set(f"{_ALIVE}{self._index}", word, allow_overwrite=True)

    def _end(self, what: str) -> None:
        """Ends this process from its thread: the main one may wait for the lost process until the end of days."""
        os._exit(report(TransientError(f"{what}; process {self._index} ends, to start again from the last checkpoint")))


def _explained(error: BaseException) -> BaseException:
    """What to tell of an error in a job of several processes."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or str(error).startswith(_OURS) or jax.process_count() == 1:
        return error
    return TransientError(
        f"process {jax.process_index()} of {jax.process_count()} lost another one, or a device failed "
        f"({_first_line(error)}); all must start again, from the last checkpoint"
    )


def _described() -> tuple[str | None, int | None, int | None]:
    address, *numbers = (os.environ.get(name) for name in VARIABLES)
    values = [address, *numbers]
    missing = [name for name, value in zip(VARIABLES, values) if value is None]
    if len(missing) == len(VARIABLES):
        return None, None, None
    if missing:
        raise UserError(f"--distributed: {', '.join(missing)} must be set, too: the variables go together")
    try:
        count, index = (int(number) for number in numbers)
    except ValueError as error:
        raise UserError(
            f"--distributed: {VARIABLES[1]} and {VARIABLES[2]} must be whole numbers, not {numbers}"
        ) from error
    if not 0 <= index < count:
        raise UserError(f"--distributed: {VARIABLES[2]}={index} must be from 0 to {VARIABLES[1]} - 1 = {count - 1}")
    return address, count, index


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
