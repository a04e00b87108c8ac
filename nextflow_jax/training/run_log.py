"""From the metrics of finished steps to log records, with speeds; and the watch for losses that are not finite."""

import pathlib
import time
from typing import Any

import jax

from nextflow_jax.errors import UserError
from nextflow_jax.training.feed import FeedTotals
from nextflow_jax.training.metrics import MetricsFiles, Window
from nextflow_jax.training.program import StepProgram
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import StateLayout
from nextflow_jax.training.step import peak_flops


class RunLog:
    """Turns the metrics of finished steps into log records; stops the run when steps keep failing."""

    def __init__(
        self,
        workdir: pathlib.Path,
        settings: TrainConfig,
        layout: StateLayout,
        progress: Progress,
        step: int,
        window: Window,
    ) -> None:
        self.step = step
        self.window = window
        self.progress = progress
        self._settings = settings
        mesh = layout.mesh
        self._peak = peak_flops(mesh.devices.flat[0], settings.peak_flops)
        self._num_devices = mesh.size
        self._files = MetricsFiles(workdir, step, settings.tensorboard) if jax.process_index() == 0 else None
        self._bad = 0
        self._restart_clock(FeedTotals())

    def add(self, step: int, metrics: Any, program: StepProgram, fed: FeedTotals) -> None:
        """Takes the metrics of `step` (blocks until they are computed); writes a record every `log_every` steps.

        Args:
          step: the step just finished, counted from 1.
          metrics: (sum, weight) pairs on the devices.
          program: what computed the step.
          fed: what the feed counted since the run began.

        Raises:
          UserError: more than `max_bad_steps` steps in a row were not finite.
        """
        host = jax.device_get(metrics)
        self.step = step
        self.window.add(host)
        self._steps += 1
        self._tokens += program.tokens
        self._flops += program.model_flops
        self.progress.advance(step)
        self._bad = self._bad + 1 if host["bad_steps"][0] else 0
        if step % self._settings.log_every == 0 or step == self._settings.steps or self._bad:
            self._write(step, fed)
        if self._bad > self._settings.max_bad_steps:
            raise UserError(
                f"the loss or its gradient is not finite at step {step} ({self._bad} in a row); the last checkpoint "
                "stays; lower config.optimizer.learning_rate, or raise config.train.max_bad_steps"
            )

    def pause(self) -> "_Pause":
        """A context whose duration does not count as step time."""
        return _Pause(self)

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._files:
            self._files.close()
        self.progress.close()

    def _write(self, step: int, fed: FeedTotals) -> None:
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        waited, batches, ready = (now - before for now, before in zip(fed, self._fed))
        rate = self._steps / seconds
        record = {"step": step, "time": time.time(), **self.window.means()}
        record |= {
            "tokens_per_s": self._tokens / seconds,
            "examples_per_s": rate * self._settings.batch_size,
            "step_ms": 1000 * seconds / self._steps,
            "data_wait": waited / seconds,
            "data_wait_s": waited,
            "batches_ready": ready / max(batches, 1),
        }
        if self._peak:
            record["mfu"] = self._flops / (seconds * self._peak * self._num_devices)
        if self._files:
            self._files.write(record)
        self.progress.report(step, record)
        self.window.clear()
        self._restart_clock(fed)

    def _restart_clock(self, fed: FeedTotals) -> None:
        self._begin, self._fed = time.perf_counter(), fed
        self._steps, self._tokens, self._flops = 0, 0, 0.0


class _Pause:
    def __init__(self, log: RunLog) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._log._begin += time.perf_counter() - self._entered
