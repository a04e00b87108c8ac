"""Metrics on their way out: (sum, weight) pairs added up over a window; metrics.jsonl, TensorBoard, W&B."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from nextflow_jax.training.tensorboard import BoardFile
from nextflow_jax.training.wandb_run import WandbRun

METRICS_FILE = "metrics.jsonl"


class Window:
    """Sums of (sum, weight) pairs over the steps since the last log line.

    It travels in checkpoints, so that the first line after a resume equals that of a run never stopped.
    """

    def __init__(self, totals: Mapping[str, list[float]] | None = None) -> None:
        self.totals = {name: list(pair) for name, pair in (totals or {}).items()}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds one step's metrics (host scalars)."""
        for name, (total, weight) in metrics.items():
            pair = self.totals.setdefault(name, [0.0, 0.0])
            pair[0] += float(total)
            pair[1] += float(weight)

    def means(self) -> dict[str, float]:
        """sum / weight of every metric that weighs something, by name."""
        return {name: total / weight for name, (total, weight) in sorted(self.totals.items()) if weight}

    @property
    def steps(self) -> int:
        """Steps added since the last log line: "bad_steps" weighs 1 in each."""
        return round(self.totals.get("bad_steps", [0.0, 0.0])[1])

    def clear(self) -> None:
        """Starts the next window."""
        self.totals = {}


class MetricsFiles:
    """Appends records to `metrics.jsonl`, TensorBoard and Weights & Biases; one process of a job writes.

    Opening drops lines past `step` (they will be written again) and a line cut short by a kill.

    Args:
      workdir: the run's folder.
      step: steps done.
      tensorboard: whether TensorBoard's files are written.
      wandb: a project of Weights & Biases; empty: none.
    """

    def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool, wandb: str = "") -> None:
        path = workdir / METRICS_FILE
        _drop_lines_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._board = BoardFile(workdir, step) if tensorboard else None
        self._wandb = WandbRun(workdir, wandb) if wandb else None

    def write(self, record: Mapping[str, float | int]) -> None:
        """Writes one record with at least "step"; values that are not finite become null."""
        clean = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._board:
            shown = {name: value for name, value in clean.items() if name not in ("step", "time")}
            self._board.write(record["step"], {name: value for name, value in shown.items() if value is not None})
        if self._wandb:
            self._wandb.write(clean)

    def close(self) -> None:
        """Closes all of them."""
        self._file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl; a last line cut short is left out."""
    path = pathlib.Path(workdir) / METRICS_FILE
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(path)
