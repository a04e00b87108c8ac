"""Plans written ahead: the rows of some global batches in a file, which the pipeline reads in place of planning them.

Both ways give the same rows: the file holds what `Plan.batch` answers. Reading starts at any batch at once, where
planning goes through the lengths of all before it.
"""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nextflow_jax.config import to_plain_dict
from nextflow_jax.data.atomic_files import write_atomically
from nextflow_jax.data.costs import RowCost
from nextflow_jax.data.plan import RowPlan
from nextflow_jax.data.shards import ShardSet
from nextflow_jax.errors import UserError

_NOT_PLANNED = {
    *("shards", "verify", "plan_file", "sequence", "response_only"),
    *("max_broken_fraction", "reader_threads", "prefetch_batches", "workers"),
}
"""Fields of a pipeline's configuration that say nothing of which documents lie where."""

_COLUMNS = tuple(field.name for field in dataclasses.fields(RowPlan))

_AGAIN = "write it again with python -m nextflow_jax.plan_rows"


@runtime_checkable
class PlannedRows(Protocol):
    """What the pipeline needs of a plan, made now or before."""

    def batch(self, n: int) -> list[RowPlan]:
        """The rows of global batch n."""
        ...


def plan_settings(
    config: Any, shards: ShardSet, split: str, seed: int, batch_size: int, cost: RowCost
) -> dict[str, Any]:
    """All that a plan depends on, JSON-ready: `PipelineConfig`, shards and the further arguments of `make_plan`."""
    planned = {name: value for name, value in to_plain_dict(config).items() if name not in _NOT_PLANNED}
    own = {"shards": shards.fingerprint, "split": split, "seed": seed, "batch_size": batch_size}
    return own | planned | {"cost": dataclasses.asdict(cost)}


def write_plan(path: pathlib.Path, plan: PlannedRows, start: int, stop: int, settings: dict[str, Any]) -> None:
    """Writes the rows of global batches start..stop-1, eighteen bytes a document.

    Args:
      path: an .npz file, which is there whole or not at all.
      plan: made with `settings`.
      start: the first batch.
      stop: the batch after the last one.
      settings: see `plan_settings`.
    """
    rows = [row for n in range(start, stop) for row in plan.batch(n)]
    arrays = {
        "start": np.asarray(start),
        "settings": np.asarray(json.dumps(settings)),
        "ends": np.cumsum([0, *(len(row.records) for row in rows)]),
        **{name: np.concatenate([getattr(row, name) for row in rows]) for name in _COLUMNS},
    }

    def write(partial: pathlib.Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


class PlanFile:
    """Looks up the rows of the batches of a file. A worker process that it is sent to reads the file itself.

    Args:
      path: what `write_plan` wrote.
      settings: what the plan is to depend on.

    Raises:
      UserError: no such file, a damaged one, or one of other settings; names them.
    """

    def __init__(self, path: str | pathlib.Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = pathlib.Path(path), settings
        try:
            with np.load(self._path) as file:
                self._arrays: dict[str, np.ndarray] = dict(file)
            self._start = int(self._arrays["start"])
            written = json.loads(str(self._arrays["settings"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"config.pipeline.plan_file {path} is not readable ({error}); {_AGAIN}") from error
        if differing := list(_differing(written, json.loads(json.dumps(settings)))):
            raise UserError(f"config.pipeline.plan_file {path} was planned with {'; '.join(differing)}; {_AGAIN}")

    def __reduce__(self) -> tuple:
        return PlanFile, (self._path, self._settings)

    @property
    def batches(self) -> range:
        """The global batches that it holds."""
        rows = len(self._arrays["ends"]) - 1
        return range(self._start, self._start + rows // self._settings["batch_size"])

    def batch(self, n: int) -> list[RowPlan]:
        """The rows of global batch n; UserError for one that the file does not hold."""
        if n not in self.batches:
            first, last = self.batches.start, self.batches.stop - 1
            raise UserError(
                f"config.pipeline.plan_file {self._path} holds global batches {first} to {last}, not {n}; "
                "plan more of them, or leave it out"
            )
        size = self._settings["batch_size"]
        first = (n - self._start) * size
        ends = self._arrays["ends"][first : first + size + 1].tolist()
        columns = [self._arrays[name] for name in _COLUMNS]
        return [RowPlan(*(column[begin:end] for column in columns)) for begin, end in zip(ends, ends[1:])]


def _differing(written: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    for name in sorted({*written, *expected}):
        if written.get(name) != expected.get(name):
            yield f"{name} {written.get(name)!r}, not {expected.get(name)!r}"
