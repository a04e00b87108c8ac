"""Checkpoints: `checkpoints/<step>/{state,data,meta}` in the run's folder, asynchronous, atomic, strict on restore.

`state` is the TrainState, `data` the position in the data (the index of the next global batch, and the log window), and
`meta` the resolved configuration, fingerprints and format version; checksums of the files lie beside them. Restoring
names the target's shapes and shardings, so a checkpoint moves freely between meshes and numbers of hosts.

    python -m nextflow_jax.training.checkpoint WORKDIR        # what is in them; --help says what else it does
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint_config import NEWEST_ALONE, CheckpointConfig
from nextflow_jax.training.checkpoint_files import require_whole, write_checksums
from nextflow_jax.training.checkpoint_tree import check_tree
from nextflow_jax.training.optimizer import merge_params
from nextflow_jax.training.quiet_failures import quiet_failures
from nextflow_jax.training.state import TrainState, leaves_by_name

FORMAT_VERSION = 1
FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints.damaged"

_POLL_SECONDS = 0.1
_REMOVALS = 20
_FOREVER = 10**9


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands in its data."""

    batch: int
    """Index of the next global batch."""
    window: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    """Metric sums since the last log line (metrics.Window.totals)."""
    bad: int = 0
    """Bad steps in a row up to now."""
    rollbacks: int = 0
    """How often the run went back to a checkpoint because of bad steps."""


class Restored(NamedTuple):
    """What users of trained weights read from a checkpoint; arrays are NumPy arrays on the host."""

    config: dict[str, Any]
    """The resolved configuration of the run."""
    params: Any
    """The "params" collection; the moving average where one was kept."""
    variables: dict[str, Any]
    """The other collections, e.g. "codebook"."""
    meta: dict[str, Any]
    """format, step, config, fingerprints."""


class Checkpoints:
    """The checkpoints in one run's folder, for its training loop. Close it: saving is asynchronous.

    Args:
      workdir: the run's folder.
      keep: how many of the newest stay.
      config: the resolved configuration, JSON-ready.
      fingerprints: `Task.describe()`.
      settings: which others stay, and how long writing may take.
      more: what else the meta says.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: int,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        settings: CheckpointConfig = NEWEST_ALONE,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._folder = _folder(workdir)
        self.meta = {"format": FORMAT_VERSION, "config": config, "fingerprints": dict(fingerprints), **more}
        self._manager = _open(
            self._folder,
            preservation_policy=_preservation(keep, settings),
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=int(settings.save_seconds) or _FOREVER),
        )
        self._summing: threading.Thread | None = None
        self._finished = threading.Event()

    def __enter__(self) -> "Checkpoints":
        quiet_failures()
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            # Once something is wrong, that a save failed too is no news.
            with contextlib.suppress(Exception) if error else contextlib.nullcontext():
                self._manager.close()
        finally:
            self._join_summing()
            self._remove_unfinished()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, position: Position, metrics: Mapping[str, float | int] | None = None
    ) -> None:
        """Starts saving; returns once the arrays are copied, before they are written. A step saved already is kept.

        Waits for the one before to be written first, and raises what went wrong with it.

        Args:
          step: steps done.
          state: after them.
          position: in the data.
          metrics: by which the best are known (`CheckpointConfig.metric`).
        """
        if step == self.latest:
            return
        self.wait()
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave(dataclasses.asdict(position)),
            meta=ocp.args.JsonSave({**self.meta, "step": step}),
        )
        self._manager.save(step, args=args, metrics=dict(metrics) if metrics else None)
        self._summing = threading.Thread(
            target=self._write_checksums, args=(step,), name="nextflow_jax-checksums", daemon=True
        )
        self._summing.start()

    def wait(self) -> None:
        """Blocks until what was saved is complete on disk; raises what went wrong."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._join_summing()

    def give_up(self) -> None:
        """After a save that failed: removes what it wrote, which may be what fills the disk, and forgets it."""
        self._remove_unfinished()
        self._manager.reload()

    def check(self, step: int, abstract: TrainState) -> Any:
        """Refuses a checkpoint that `restore` could not make the state of; returns what it says of its arrays.

        Raises:
          UserError: no such step, or as `check_tree`.
        """
        _require_step(self._folder, step)
        saved = self._manager.item_metadata(step)["state"].tree
        check_tree(leaves_by_name(saved), abstract, self._folder / str(step))
        return saved

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Position]:
        """The state with the shapes, dtypes and shardings of `abstract`, and the position in the data.

        Floating-point arrays come in the dtype that is asked for.

        Raises:
          UserError: as `check`.
        """
        saved = self.check(step, abstract)
        everywhere = abstract.step.sharding
        there = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
            for name, leaf in saved.get("recent", {}).items()
        }
        # Read as it was saved, and taken over where it is wanted.
        known = abstract.replace(recent=there)
        # Checkpoints of before there was such a collection have no place for it.
        partial = "recent" not in saved
        restore_args = ocp.checkpoint_utils.construct_restore_args(known)
        args = ocp.args.PyTreeRestore(known, restore_args=restore_args, partial_restore=partial)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=args, data=ocp.args.JsonRestore()))
        state = restored["state"]
        zeros = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in abstract.recent.items()}
        taken = {name: state.recent.get(name, zero) for name, zero in zeros.items()}
        state = state.replace(recent=jax.device_put(taken, everywhere))
        return state, Position(**restored["data"])

    def _remove_unfinished(self) -> None:
        """No other process can finish what the first one does not wait for.

        Writes that a failed save left behind make their folders anew, until they have failed too.
        """
        for _ in range(_REMOVALS if jax.process_index() == 0 else 0):
            unfinished = list(self._folder.glob("*.orbax-checkpoint-tmp*"))
            if not unfinished:
                break
            for folder in unfinished:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(_POLL_SECONDS)

    def _write_checksums(self, step: int) -> None:
        """In a thread: waits for the step to be complete, then sums up this process's share of its files."""
        folder = self._folder / str(step)
        while not folder.exists():
            if self._finished.wait(_POLL_SECONDS):
                break
        if folder.exists():
            # It may be removed meanwhile, to make room for newer ones.
            with contextlib.suppress(FileNotFoundError):
                write_checksums(folder, jax.process_index(), jax.process_count())

    def _join_summing(self) -> None:
        """The manager has finished: a step that is not there by now will not come."""
        self._finished.set()
        if self._summing:
            self._summing.join()
        self._summing = None
        self._finished.clear()


def checkpoint_steps(workdir: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a run's folder, ascending."""
    folder = _folder(workdir)
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def read_meta(workdir: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
    """The `meta` of a checkpoint (the newest by default): format, step, config, fingerprints.

    Raises:
      UserError: no checkpoint, no such step (lists those there are), or a format this version does not read.
    """
    folder = _folder(workdir)
    step = _require_step(folder, step)
    with _open(folder, create=False) as manager:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta["format"] != FORMAT_VERSION:
        raise UserError(f"{folder / str(step)}: format {meta['format']}, this version reads {FORMAT_VERSION}")
    return meta


def restore_variables(workdir: str | os.PathLike, step: int | None = None) -> Restored:
    """Trained weights of a run, without its optimizer state, on the host, after a look at the checksums.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the newest when None.

    Raises:
      UserError: as `read_meta`, or a damaged file, which is named.
    """
    folder = _folder(workdir)
    require_whole(folder / str(_require_step(folder, step)))
    meta = read_meta(workdir, step)
    with _open(folder, create=False) as manager:
        saved = manager.item_metadata(meta["step"])["state"].tree
        wanted = {name: saved[name] for name in ("params", "variables", "ema") if saved[name]}
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
        to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=to_host, partial_restore=True)
        trees = manager.restore(meta["step"], args=ocp.args.Composite(state=args))["state"]
    params = merge_params(trees["params"], trees["ema"]) if "ema" in trees else trees["params"]
    return Restored(meta["config"], params, trees.get("variables", {}), meta)


def saved_arrays(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """Shape and dtype of every array of a checkpoint, by path."""
    with _open(_folder(workdir), create=False) as manager:
        return leaves_by_name(manager.item_metadata(step)["state"].tree)


def put_aside(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Moves a damaged checkpoint out of the way; returns where it is now."""
    target = pathlib.Path(workdir) / DAMAGED_FOLDER / f"{step}-{time.time_ns()}"
    target.parent.mkdir(exist_ok=True)
    (_folder(workdir) / str(step)).rename(target)
    return target


def step_folder(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Where a checkpoint is."""
    return _folder(workdir) / str(step)


def _preservation(keep: int, settings: CheckpointConfig) -> checkpoint_managers.AnyPreservationPolicy:
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    if settings.keep_every:
        policies.append(checkpoint_managers.EveryNSteps(settings.keep_every))
    if settings.keep_best:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[settings.metric],
                reverse=settings.best == "lowest",
                n=settings.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return checkpoint_managers.AnyPreservationPolicy(policies)


def _open(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=ocp.CheckpointManagerOptions(**options))


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / FOLDER


def split_path(path: str | os.PathLike) -> tuple[pathlib.Path, int | None]:
    """(the run's folder, the step or None) of such a folder, of the `checkpoints` in it, or of one of these."""
    absolute = pathlib.Path(path).absolute()
    if absolute.name == FOLDER and checkpoint_steps(absolute.parent):
        return absolute.parent, None
    if absolute.name.isdigit() and absolute.parent.name == FOLDER:
        return absolute.parent.parent, int(absolute.name)
    return pathlib.Path(path), None


def _require_step(folder: pathlib.Path, step: int | None) -> int:
    steps = checkpoint_steps(folder.parent)
    run = split_path(folder.parent)[0]
    if not steps and run != folder.parent:
        raise UserError(f"{folder.parent} is inside of a run's folder; give that: {run}")
    if not steps:
        raise UserError(f"{folder.parent} has no checkpoints; train there first (python -m nextflow_jax.train)")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise UserError(f"{folder.parent} has no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
    return step


if __name__ == "__main__":
    from nextflow_jax.errors import run_entry_point
    from nextflow_jax.training.checkpoint_report import main

    run_entry_point(main)
