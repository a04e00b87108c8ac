"""Being asked to stop: SIGTERM (a preempted machine) and Ctrl-C become a flag that the loop reads between steps."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Catches SIGTERM and SIGINT while it is entered; a second Ctrl-C interrupts at once.

    A checkpoint needs all processes of a job. Where there are several, JAX's preemption service catches SIGTERM instead
    and makes them agree on the step to stop at, whichever of them received it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def should_stop(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received is not None

    @property
    def interrupted(self) -> bool:
        """Whether the stop was asked for with Ctrl-C."""
        return self.received == signal.SIGINT

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
