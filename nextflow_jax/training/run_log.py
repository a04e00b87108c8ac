"""From the metrics of finished steps to log records, with speeds; and the count of bad steps in a row."""

import pathlib
import time
from collections.abc import Callable, Mapping

import jax

from nextflow_jax.training.feed import FeedTotals
from nextflow_jax.training.goodput import Ledger
from nextflow_jax.training.memory import memory_in_use
from nextflow_jax.training.metrics import MetricsFiles, Window
from nextflow_jax.training.packed_metrics import PackedMetrics
from nextflow_jax.training.program import StepProgram
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import StateLayout
from nextflow_jax.training.step import peak_flops


class RunLog:
    """Turns the metrics of finished steps into log records."""

    def __init__(
        self,
        workdir: pathlib.Path,
        settings: TrainConfig,
        layout: StateLayout,
        progress: Progress,
        step: int,
        window: Window,
        ledger: Ledger,
        data: Callable[[int, int], Mapping[str, float]],
        bad: int = 0,
    ) -> None:
        """`data` says what the batches hold that were trained on after so many steps and before so many."""
        self.step = step
        self.bad = bad
        """Bad steps in a row up to now."""
        self.reason = ""
        """What was bad about the last step; empty: nothing."""
        self.last: dict[str, float | int] = {}
        """The last record."""
        self.window = window
        self.progress = progress
        self.ledger = ledger
        self._settings = settings
        self._data = data
        mesh = layout.mesh
        self._peak = peak_flops(mesh.devices.flat[0], settings.peak_flops)
        self._num_devices = mesh.size
        first = jax.process_index() == 0
        self._files = MetricsFiles(workdir, step, settings.tensorboard, settings.wandb) if first else None
        self._waited = 0.0
        self._begin_window(FeedTotals())

    def add(self, step: int, metrics: PackedMetrics, program: StepProgram, fed: FeedTotals) -> None:
        """Takes the metrics of `step` (blocks until they are computed); writes a record every `log_every` steps.

        Args:
          step: the step just finished, counted from 1.
          metrics: of the step.
          program: what computed the step.
          fed: what the feed counted since the run began.
        """
        host, before = metrics.fetch(), self.bad
        self.ledger.charge("data_wait", fed.waited - self._waited)
        self._waited = fed.waited
        self.step = step
        self.window.add(host)
        self._steps += 1
        self._tokens += program.tokens
        self._flops += program.model_flops
        self.progress.advance(step)
        self.bad, self.reason = 0, ""
        if host["bad_steps"][0]:
            self.bad = before + 1
            is_spike = "spikes" in host and host["spikes"][0]
            self.reason = "leapt above the recent ones" if is_spike else "is not finite"
        if step % self._settings.log_every == 0 or step == self._settings.steps or self.bad:
            self._write(step, fed)

    def close(self) -> None:
        """Closes the files."""
        self.ledger.write(self.step)
        if self._files:
            self._files.close()

    def _write(self, step: int, fed: FeedTotals) -> None:
        seconds = max(self._running_seconds() - self._begin, 1e-9)
        waited, batches, ready = (now - before for now, before in zip(fed, self._fed))
        rate = self._steps / seconds
        record = {"step": step, "time": time.time(), **self.window.means()}
        record |= {
            "tokens_per_s": self._tokens / seconds,
            "tokens_per_s_per_device": self._tokens / seconds / self._num_devices,
            "examples_per_s": rate * self._settings.batch_size,
            "step_ms": 1000 * seconds / self._steps,
            "data_wait": waited / seconds,
            "data_wait_s": waited,
            "batches_ready": ready / max(batches, 1),
            "goodput": self.ledger.account().goodput,
        }
        if self._peak:
            record["mfu"] = self._flops / (seconds * self._peak * self._num_devices)
        record |= memory_in_use()
        self.last = record
        if self._files:
            held = self._data(step - self.window.steps, step)
            self._files.write(record | {f"data/{name}": value for name, value in held.items()})
        self.ledger.write(step)
        self.progress.report(step, record)
        self.window.clear()
        self._begin_window(fed)

    def _begin_window(self, fed: FeedTotals) -> None:
        self._begin, self._fed = self._running_seconds(), fed
        self._steps, self._tokens, self._flops = 0, 0, 0.0

    def _running_seconds(self) -> float:
        """Seconds of this attempt in which it stepped or waited for data; those of checkpoints are not among them."""
        spent = self.ledger.spent()
        return spent["step"] + spent["data_wait"]
