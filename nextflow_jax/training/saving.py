"""Saving as a run does it: when it is due, on which tier, what a failure means; and what to go on from."""

import dataclasses
import hashlib
import json
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from nextflow_jax.errors import TransientError, UserError
from nextflow_jax.folders import probe
from nextflow_jax.sharding import StateRules
from nextflow_jax.training.checkpoint import (
    Checkpoints,
    Position,
    checkpoint_steps,
    put_aside,
    read_meta,
    step_folder,
)
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.checkpoint_files import damage
from nextflow_jax.training.checkpoint_local import LocalTier
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import TrainState
from nextflow_jax.training.watchdog import Watchdog
from nextflow_jax.training.workdir import FULL

RUN_FILE = "run_id"

_STORAGE_STATUSES = (
    *("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "PERMISSION_DENIED", "DATA_LOSS"),
    *("ABORTED", "UNKNOWN", "NOT_FOUND", "FAILED_PRECONDITION"),
)
"""How messages of the array storage begin when writing fails."""

_TOLD_WAIT_SECONDS = 1.0
_RETRIES = 4
"""After a failure, saving is tried again so many times as often."""
_TOLD_BYTES = 1024
"""What one process tells the others of a damaged file is cut after so many."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint to go on from."""

    step: int
    is_local: bool
    meta: Mapping[str, Any]


def open_local(workdir: pathlib.Path, settings: CheckpointConfig, mesh: Mesh, rules: StateRules, say: Say) -> LocalTier:
    """This process's local checkpoints of the run in `workdir`, which its file `run_id` names.

    They belong to the run, not to its path: a folder that was removed and made again is another run.

    Raises:
      UserError: no files can be written there. (A disk that is full is told of, for it may have room later.)
    """
    path = workdir / RUN_FILE
    if jax.process_index() == 0 and not path.exists():
        path.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
    _meet("run_id")
    devices = [(device.process_index, device.id) for device in mesh.devices.flat]
    tables = [sorted((name, list(axes)) for name, axes in table.items()) for table in rules]
    layout = json.dumps([dict(mesh.shape), devices, tables])
    key = hashlib.sha256(layout.encode()).hexdigest()
    run = path.read_text(encoding="utf-8").strip()
    folder = pathlib.Path(settings.local).absolute() / run / f"process-{jax.process_index():05}"
    try:
        probe(folder)
    except OSError as error:
        problem = f"config.checkpoint.local = {settings.local!r}: cannot be written ({error.strerror})"
        if error.errno not in FULL:
            raise UserError(f"{problem}; choose another folder, or '' for none") from error
        say(f"warning: {problem}; make room")
    return LocalTier(folder, key)


def find_newest(workdir: pathlib.Path, settings: CheckpointConfig, local: LocalTier | None, say: Say) -> Found | None:
    """The newest checkpoint that is whole, of both tiers; every process of a job gets the same answer.

    A damaged one is put aside, so that it counts no more, and `say` tells.

    Raises:
      UserError: it is damaged, and `strict` is on; or none that there is can be read.
    """
    shared = _newest_shared(workdir, settings, say)
    step = _newest_local(local) if local else -1
    newest_shared = -1 if shared is None else shared
    if step > newest_shared:
        say(f"going on from the local checkpoint of step {step}")
        return Found(step, True, {**local.read_about(step)[1], "step": step})
    return None if shared is None else Found(shared, False, read_meta(workdir, shared))


def check_fit(found: Found, abstract: TrainState, checkpoints: Checkpoints, local: LocalTier | None) -> None:
    """Refuses a checkpoint that the state cannot be made of, before minutes go into compiling.

    Raises:
      UserError: as `check_tree`.
    """
    tier = local if found.is_local else checkpoints
    tier.check(found.step, abstract)


class Saver:
    """Saves for the loop, on both tiers.

    Args:
      checkpoints: those in the run's folder.
      local: those on this machine's disk.
      train: says how often.
      settings: likewise.
      watchdog: ends the process when saving takes too long.
      say: tells the user a line.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        local: LocalTier | None,
        train: TrainConfig,
        settings: CheckpointConfig,
        watchdog: Watchdog,
        say: Say,
    ) -> None:
        self._checkpoints, self._local = checkpoints, local
        self._train, self._settings = train, settings
        self._watchdog, self._say = watchdog, say
        self._failed, self._writing = 0, False
        self._saved_at = self._local_at = time.monotonic()

    def stand_at(self, step: int) -> None:
        """The run goes on from `step`: local checkpoints of later ones, of whatever layout, are removed.

        The run makes these steps again, perhaps otherwise. Of one that only some processes have, and which did not
        count, one part of each would pass for a whole.
        """
        if self._local:
            self._local.forget_after(step)

    def due(self, step: int) -> bool:
        """Whether the run's folder gets a checkpoint after `step`."""
        every = self._train.checkpoint_every
        if self._failed and not self._writing:
            every = max(1, every // _RETRIES)
        if step == self._train.steps or step % every == 0:
            return True
        return self._is_time(step, self._settings.minutes, self._saved_at)

    def due_local(self, step: int) -> bool:
        """Whether the machines' own disks do."""
        return self._local is not None and self._is_time(step, self._settings.local_minutes, self._local_at)

    def save(self, step: int, state: TrainState, position: Position, metrics: Mapping[str, float | int]) -> None:
        """Starts saving to the run's folder.

        Raises:
          TransientError: that failed too often in a row; the last good checkpoint stays.
        """
        self._saved_at = time.monotonic()
        with self._watchdog.phase(f"saving the checkpoint of step {step}", self._settings.save_seconds):
            try:
                waited = self._wait()
                if waited > _TOLD_WAIT_SECONDS:
                    advice = "save less often, or to faster storage"
                    self._say(f"waited {waited:.1f} s for the checkpoint before this one to be written: {advice}")
                chosen = {name: value for name, value in metrics.items() if name == self._settings.metric}
                self._checkpoints.save(step, state, position, chosen)
                self._writing = True
            except Exception as error:  # noqa: BLE001  (told apart by is_storage_error)
                self._fail(error)

    def save_local(self, step: int, state: TrainState, position: Position) -> None:
        """Starts saving to this machine's disk; when that fails, the run goes on without."""
        self._local_at = time.monotonic()
        with self._watchdog.phase(f"saving the local checkpoint of step {step}", self._settings.save_seconds):
            self._wait_local()
            # This one takes the place of the last but one, which is all that a process whose disk is slower may have.
            _meet(f"local {step}")
            self._local.save(step, state, dataclasses.asdict(position), self._checkpoints.meta)

    def finish(self, step: int, state: TrainState, position: Position, metrics: Mapping[str, float | int]) -> None:
        """Waits until the checkpoint of `step`, which was saved last, is on disk; tries again at once if it failed.

        Raises:
          TransientError: that failed too often.
        """
        self.wait()
        while self._checkpoints.latest != step:
            self.save(step, state, position, metrics)
            self.wait()

    def wait(self) -> None:
        """Blocks until what was saved on either tier is on disk, or has failed.

        Raises:
          TransientError: that failed too often.
        """
        with self._watchdog.phase("writing a checkpoint", self._settings.save_seconds):
            try:
                self._wait()
            except Exception as error:  # noqa: BLE001  (told apart by is_storage_error)
                self._fail(error)
            self._wait_local()

    def newest(self, workdir: pathlib.Path) -> Found | None:
        """The newest checkpoint in the folder or on the machines' own disks, as `find_newest`."""
        with self._watchdog.phase("looking for the newest checkpoint", self._settings.save_seconds):
            return find_newest(workdir, self._settings, self._local, self._say)

    def restore(self, found: Found, abstract: TrainState) -> tuple[TrainState, Position]:
        """The state and the position of a checkpoint that `find_newest` found."""
        with self._watchdog.phase(f"reading the checkpoint of step {found.step}", self._settings.save_seconds):
            if found.is_local:
                data, _ = self._local.read_about(found.step)
                return self._local.restore(found.step, abstract), Position(**data)
            return self._checkpoints.restore(found.step, abstract)

    def _wait(self) -> float:
        """For the save before this one; returns the seconds it took."""
        begin, writing, self._writing = time.monotonic(), self._writing, False
        self._checkpoints.wait()
        self._failed = 0 if writing else self._failed
        return time.monotonic() - begin

    def _wait_local(self) -> None:
        """For the local save before this one."""
        try:
            if self._local:
                self._local.wait()
        except OSError as error:
            self._say(f"warning: a local checkpoint was not written ({error}); going on without it")

    def _fail(self, error: Exception) -> None:
        if not is_storage_error(error):
            raise error
        self._failed += 1
        problem = " ".join(str(error).split())[:300]
        last = self._checkpoints.latest
        kept = "there is none yet" if last is None else f"that of step {last} stays the last"
        if self._failed > self._settings.max_failed_saves or jax.process_count() > 1:
            raise TransientError(f"a checkpoint could not be written ({problem}); {kept}; make room, and start again")
        self._say(f"warning: a checkpoint could not be written ({problem}); {kept}; trying again soon")
        self._checkpoints.give_up()

    def _is_time(self, step: int, minutes: float, since: float) -> bool:
        """By the first process's clock; all ask at the same steps, for the answer is a message to all."""
        if not minutes or step % self._train.log_every:
            return False
        late = time.monotonic() - since >= 60 * minutes
        if jax.process_count() == 1:
            return late
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(late)))


def is_storage_error(error: BaseException) -> bool:
    """Whether it says that writing or reading failed, rather than that the program is wrong."""
    if isinstance(error, OSError):
        return True
    return isinstance(error, ValueError | RuntimeError) and str(error).startswith(_STORAGE_STATUSES)


def _newest_shared(workdir: pathlib.Path, settings: CheckpointConfig, say: Say) -> int | None:
    steps = checkpoint_steps(workdir)
    for step in reversed(steps):
        folder, problem = step_folder(workdir, step), ""
        if settings.verify:
            problem = damage(folder, jax.process_index(), jax.process_count())
        problem = _first_told(problem)
        if not problem:
            return step
        if settings.strict:
            raise UserError(
                f"the checkpoint of step {step} is damaged: {problem}; remove {folder}, or set strict to False"
            )
        if jax.process_index() == 0:
            put_aside(workdir, step)
        _meet(f"aside {step}")
        say(f"warning: the checkpoint of step {step} is damaged and put aside: {problem}; going back to the one before")
    if steps:
        raise UserError(f"all checkpoints in {workdir} are damaged; start in another --workdir, or bring back a copy")
    return None


def _newest_local(local: LocalTier) -> int:
    """The newest step that every process has; -1 where there is none."""
    mine = np.full(2, -1)
    steps = local.steps()[-2:]
    mine[: len(steps)] = steps
    if jax.process_count() == 1:
        return int(mine.max())
    everyone = multihost_utils.process_allgather(mine)
    common = set.intersection(*(set(row.tolist()) for row in everyone))
    return max(common, default=-1)


def _first_told(problem: str) -> str:
    """What the first process says that has a problem, on all of them; "" where none has."""
    if jax.process_count() == 1:
        return problem
    mine = np.zeros(_TOLD_BYTES, np.uint8)
    data = np.frombuffer(problem.encode()[:_TOLD_BYTES], np.uint8)
    mine[: data.size] = data
    told = (row.tobytes().rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(mine))
    return next(filter(None, told), "")


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"nextflow_jax {name}")
