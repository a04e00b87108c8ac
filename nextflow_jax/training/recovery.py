"""What a run does about steps that spoil it, the batches behind them, and steps that hang."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax

from nextflow_jax.config import Fault
from nextflow_jax.training.spikes import SpikeConfig

BAD_BATCHES_FILE = "bad_batches.jsonl"


@dataclasses.dataclass(frozen=True)
class RecoveryConfig:
    """Which faults a run survives by itself."""

    spikes: SpikeConfig = SpikeConfig()
    """Which steps are as bad as those whose loss or gradient is not finite, and change nothing either."""
    max_rollbacks: int = 0
    """More than train.max_bad_steps bad steps in a row bring back the last checkpoint, and the run goes on from it with
    the batch after the bad ones, so many times at most; then it stops."""
    step_seconds: float = 1800.0
    """A step that takes longer, waiting for data included, hangs: every thread's stack is written to the run's folder
    and the process ends with status 75. 0 = it may take forever."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("max_rollbacks", "step_seconds"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0")


def record_bad_batch(workdir: pathlib.Path, step: int, batch: int, reason: str, documents: Sequence[str]) -> None:
    """Appends a line to bad_batches.jsonl, from the first process: what was in the batch of a bad step.

    Args:
      workdir: the run's folder.
      step: the step, counted from 1.
      batch: number of the global batch.
      reason: what was bad.
      documents: keys of what it held.
    """
    if jax.process_index() != 0:
        return
    record = {"step": step, "batch": batch, "time": time.time(), "reason": reason, "documents": list(documents)}
    with (workdir / BAD_BATCHES_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
