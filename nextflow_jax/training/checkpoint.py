"""Checkpoints: `checkpoints/<step>/{state,data,meta}` in the run's folder, asynchronous, atomic, strict on restore.

`state` is the TrainState, `data` the position in the data (the index of the next global batch, and the log window), and
`meta` the resolved configuration, fingerprints and format version. Restoring names the target's shapes and shardings,
so a checkpoint moves freely between meshes and numbers of hosts.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from nextflow_jax.errors import UserError
from nextflow_jax.training.optimizer import merge_params
from nextflow_jax.training.state import TrainState

FORMAT_VERSION = 1
FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands in its data."""

    batch: int
    """Index of the next global batch."""
    window: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    """Metric sums since the last log line (metrics.Window.totals)."""


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
    """The checkpoints of one run, for its training loop. Close it: saving is asynchronous.

    Args:
      workdir: the run's folder.
      keep: how many checkpoints stay.
      config: the resolved configuration, JSON-ready.
      fingerprints: `Task.describe()`.
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: int, config: Mapping[str, Any], fingerprints: Mapping[str, str]
    ) -> None:
        self._folder = _folder(workdir)
        self._meta = {"format": FORMAT_VERSION, "config": config, "fingerprints": dict(fingerprints)}
        self._manager = _open(self._folder, max_to_keep=keep, cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Starts saving; returns once the arrays are copied, before they are written. A step saved already is kept."""
        if step == self.latest:
            return
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave(dataclasses.asdict(position)),
            meta=ocp.args.JsonSave({**self._meta, "step": step}),
        )
        self._manager.save(step, args=args)

    def wait(self) -> None:
        """Blocks until what was saved is complete on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Position]:
        """The state with the shapes, dtypes and shardings of `abstract`, and the position in the data.

        Raises:
          UserError: no such step, or a saved array is missing, unexpected or shaped otherwise (the first is named).
        """
        _require_step(self._folder, step)
        _check_tree(self._manager.item_metadata(step)["state"].tree, abstract, self._folder / str(step))
        state = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        args = ocp.args.Composite(state=state, data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], Position(**restored["data"])


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
    """Trained weights of a run, without its optimizer state, on the host.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the newest when None.

    Raises:
      UserError: as `read_meta`.
    """
    folder = _folder(workdir)
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


def _open(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=ocp.CheckpointManagerOptions(**options))


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / FOLDER


def _require_step(folder: pathlib.Path, step: int | None) -> int:
    steps = checkpoint_steps(folder.parent)
    if not steps:
        raise UserError(f"{folder.parent} has no checkpoints; train there first (python -m nextflow_jax.train)")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise UserError(f"{folder.parent} has no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
    return step


def _check_tree(saved: Any, abstract: TrainState, where: pathlib.Path) -> None:
    saved_leaves, wanted = _leaves_by_name(saved), _leaves_by_name(abstract)
    for name in sorted(saved_leaves.keys() | wanted.keys()):
        if name not in saved_leaves:
            problem = "is needed by this configuration and missing from the checkpoint"
        elif name not in wanted:
            problem = "is in the checkpoint and not part of this configuration"
        elif (saved_leaves[name].shape, saved_leaves[name].dtype) != (wanted[name].shape, wanted[name].dtype):
            old, new = saved_leaves[name], wanted[name]
            problem = f"is {old.dtype}{tuple(old.shape)} in the checkpoint and {new.dtype}{tuple(new.shape)} here"
        else:
            continue
        raise UserError(f"{where}: {name} {problem}; use the configuration it was trained with, or another --workdir")


def _leaves_by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
