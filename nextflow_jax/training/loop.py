"""The training loop: build, restore, step, log, save. What is trained is the Task's matter, never the loop's."""

import dataclasses
import functools
import io
import pathlib
import signal
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from nextflow_jax import sharding
from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import TransientError, UserError
from nextflow_jax.training.checkpoint import Checkpoints, Position, checkpoint_steps
from nextflow_jax.training.feed import Feed
from nextflow_jax.training.goodput import Ledger
from nextflow_jax.training.metrics import Window
from nextflow_jax.training.packed_metrics import PackedMetrics
from nextflow_jax.training.preemption import StopSignal
from nextflow_jax.training.profile import Profiler
from nextflow_jax.training.program import Program, StepProgram, build_program, lay_out
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.published_start import PublishedStart
from nextflow_jax.training.recovery import record_bad_batch
from nextflow_jax.training.run_log import RunLog
from nextflow_jax.training.saving import Found, Saver, Say, check_fit, find_newest, open_local
from nextflow_jax.training.settings import Experiment, TrainConfig
from nextflow_jax.training.state import TrainState, abstract_variables, init_state
from nextflow_jax.training.task import Task
from nextflow_jax.training.warm_start import INIT_FROM, WarmStart
from nextflow_jax.training.watchdog import Watchdog
from nextflow_jax.training.workdir import DISK_ERRORS, check_resume, require_space, save_config
from nextflow_jax.training.workdir_lock import only_job


def train(
    experiment: Experiment,
    task: Task,
    workdir: pathlib.Path,
    devices: Sequence[jax.Device] | None = None,
    stream: io.TextIOBase | None = None,
    ledger: Ledger | None = None,
) -> TrainState:
    """Trains to `experiment.train.steps`, continuing from the newest checkpoint that is whole, if there is one.

    Args:
      experiment: settings; `faults()` checked.
      task: what is trained.
      workdir: an existing, writable folder.
      devices: the devices of the mesh (all by default).
      stream: where progress goes (stderr by default).
      ledger: keeps the time of this attempt; by default one that begins now.

    Returns:
      The last state.

    Raises:
      UserError: the checkpoint does not fit the configuration, or steps were bad for too long.
      TransientError: another job trains in the folder, the disk is full, or storage failed too often.
      KeyboardInterrupt: after Ctrl-C, with a checkpoint saved.
    """
    try:
        with only_job(workdir):
            return _train(experiment, task, workdir, devices, stream, ledger or Ledger(workdir))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = error.filename or workdir
        raise TransientError(
            f"{where}: {error.strerror}; the last checkpoint stays; make room, and start again"
        ) from error


def _train(
    experiment: Experiment,
    task: Task,
    workdir: pathlib.Path,
    devices: Sequence[jax.Device] | None,
    stream: io.TextIOBase | None,
    ledger: Ledger,
) -> TrainState:
    settings, said = experiment.train, []
    mesh, local = sharding.make_mesh(experiment.mesh, devices), None
    if experiment.checkpoint.local:
        local = open_local(workdir, experiment.checkpoint, mesh, experiment.state_rules(), said.append)
    found = find_newest(workdir, experiment.checkpoint, local, said.append)
    start = found.step if found else 0
    fingerprints, warm_start = _check_start(experiment, task, found, said.append)
    progress = Progress(experiment.name or experiment.kind, start, settings.steps, stream)
    for message in said:
        progress.say(message)
    if warm_start:
        progress.say(f"starting with {warm_start.count} arrays of {warm_start.origin}")
    checkpoints = Checkpoints(workdir, settings.keep, to_plain_dict(experiment), fingerprints, experiment.checkpoint)
    profiler = Profiler(settings.profile, workdir, progress.say)
    with StopSignal() as stop, profiler, checkpoints:
        with ledger.phase("compile"):
            layout = lay_out(experiment, task, mesh)
            if found:
                check_fit(found, layout.abstract, checkpoints, local)
            require_space(workdir, layout.abstract, resumed=found is not None)
            program = build_program(experiment, task, layout, workdir, progress)
        with Watchdog(workdir, experiment.recovery.step_seconds) as watchdog:
            saver = Saver(checkpoints, local, settings, experiment.checkpoint, watchdog, progress.say)
            run = _Run(experiment, task, workdir, program, saver, stop, watchdog, progress, ledger, profiler)
            with ledger.phase("restore" if found else "init"):
                state, position = _restore_or_init(run, found, warm_start)
            save_config(workdir, experiment)
            if jax.process_index() == 0:
                task.save_artifacts(workdir)
            ledger.stand_at(start)
            saver.stand_at(start)
            try:
                state = _run(run, state, start, position)
                progress.say(ledger.account().describe())
            finally:
                progress.close()
    if stop.interrupted:
        raise KeyboardInterrupt
    return state


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    experiment: Experiment
    task: Task
    workdir: pathlib.Path
    program: Program
    saver: Saver
    stop: StopSignal
    watchdog: Watchdog
    progress: Progress
    ledger: Ledger
    profiler: Profiler

    @property
    def settings(self) -> TrainConfig:
        """Length and rhythm."""
        return self.experiment.train

    @functools.cached_property
    def constants(self) -> Any:
        """The task's, on the devices."""
        return jax.device_put(self.task.constants(), sharding.replicated(self.program.layout.mesh))

    @property
    def rows(self) -> NamedSharding:
        """Where the rows of a batch go."""
        layout = self.program.layout
        return sharding.batch_sharding(layout.mesh, layout.rules, self.task.batch_axes())


def _data_statistics(task: Task, ahead: int, first: int, stop: int) -> dict[str, float]:
    """Of the batches of steps first + 1..stop, whose numbers are `ahead` of the steps done before them."""
    return task.data_statistics(first + ahead, stop + ahead)


def _check_start(
    experiment: Experiment, task: Task, found: Found | None, say: Say
) -> tuple[dict[str, str], WarmStart | PublishedStart | None]:
    """Fingerprints of the run, and the weights that a fresh one starts from; before anything is compiled.

    What a resumed run does otherwise than before is said.
    """
    fingerprints = task.describe()
    if found:
        # Kept from the checkpoint: a resumed run needs its source no more.
        fingerprints |= {name: value for name, value in found.meta["fingerprints"].items() if name == INIT_FROM}
        for change in check_resume(experiment, fingerprints, found.meta):
            say(f"since step {found.step}, {change}")
        return fingerprints, None
    warm_start = experiment.load_start(functools.partial(abstract_variables, task))
    return fingerprints | ({INIT_FROM: warm_start.origin} if warm_start else {}), warm_start


def _restore_or_init(
    run: _Run, found: Found | None, warm_start: WarmStart | PublishedStart | None
) -> tuple[TrainState, Position]:
    if found:
        return run.saver.restore(found, run.program.layout.abstract)
    changes = {"start": warm_start.apply, "given": warm_start.given} if warm_start else {}
    return init_state(run.task, run.program.layout, run.experiment.seed, **changes), Position(batch=0)


def _run(run: _Run, state: TrainState | None, start: int, position: Position) -> TrainState:
    """All steps: once through, and again from the last checkpoint after each rollback."""
    while True:
        log = RunLog(
            run.workdir,
            run.settings,
            run.program.layout,
            run.progress,
            start,
            Window(position.window),
            run.ledger,
            functools.partial(_data_statistics, run.task, position.batch - start),
            position.bad,
        )
        try:
            with run.ledger.phase("step"):
                state, end = _leg(run, state, start, position, log)
        finally:
            log.close()
        if state is not None:
            return state
        start, state, position = _roll_back(run, log, end)
        run.ledger.stand_at(start)
        run.saver.stand_at(start)


def _leg(
    run: _Run, state: TrainState, start: int, position: Position, log: RunLog
) -> tuple[TrainState | None, Position]:
    """Steps from `start` to the end of the run, a signal, or too many bad steps, after which there is no state."""
    settings, step = run.settings, start
    pending = None
    stopping = run.stop.should_stop(step)

    def standing(step: int) -> Position:
        batch = position.batch + step - start
        return Position(batch, log.window.totals, log.bad, position.rollbacks)

    def take(pending: tuple[int, PackedMetrics, StepProgram]) -> bool:
        """Whether the run is still well after this step."""
        log.add(*pending, feed.totals)
        if log.bad:
            batch = standing(pending[0]).batch - 1
            documents = run.task.documents(batch) if jax.process_index() == 0 else []
            record_bad_batch(run.workdir, pending[0], batch, log.reason, documents)
        return log.bad <= settings.max_bad_steps

    with Feed(run.task, position.batch, run.rows, settings.prefetch) as feed:
        while step < settings.steps and not stopping:
            run.watchdog.beat(step + 1)
            batch = feed.next_batch(busy=functools.partial(_runs, pending))
            step_program = run.program.step_for(batch)
            step += 1
            if run.profiler.due(step):
                with run.ledger.phase("profile"):
                    run.profiler.open(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_program.compiled.call(state, run.constants, batch)
            if pending is not None and not take(pending):
                return None, standing(pending[0])
            pending = (step, metrics, step_program)
            stopping = run.stop.should_stop(step)
            shared = run.saver.due(step) or stopping
            saving = shared or run.saver.due_local(step)
            if saving or run.profiler.ends_with(step):
                if not take(pending):
                    return None, standing(step)
                pending = None
            if run.profiler.ends_with(step):
                with run.ledger.phase("profile"):
                    run.profiler.close()
            if saving:
                with run.ledger.phase("checkpoint"):
                    if shared:
                        run.saver.save(step, state, standing(step), log.last)
                    else:
                        run.saver.save_local(step, state, standing(step))
                run.ledger.write(step)
    with run.ledger.phase("checkpoint"):
        if step > start:
            run.saver.finish(step, state, standing(step), log.last)
        run.saver.wait()
    _say_end(run, step, start, stopping)
    return state, standing(step)


def _roll_back(run: _Run, log: RunLog, end: Position) -> tuple[int, TrainState, Position]:
    """The last checkpoint's step and state, and the batch after the bad ones; the metrics after it are forgotten.

    A run that is killed before its next checkpoint does the same again: it finds the bad steps where they were.
    """
    most = run.experiment.recovery.max_rollbacks
    problem = f"the loss or its gradient {log.reason} at step {log.step} ({log.bad} in a row)"
    found = None
    with run.ledger.phase("restore"):
        run.saver.wait()
        if end.rollbacks < most:
            found = run.saver.newest(run.workdir)
        if found is None:
            raise UserError(f"{problem}{_no_way_back(run, end.rollbacks)}")
        run.progress.say(
            f"{problem}: back to the checkpoint of step {found.step}, and on with batch {end.batch} "
            f"(rollback {end.rollbacks + 1} of {most})"
        )
        state, saved = run.saver.restore(found, run.program.layout.abstract)
    return found.step, state, dataclasses.replace(saved, batch=end.batch, bad=0, rollbacks=end.rollbacks + 1)


def _no_way_back(run: _Run, rollbacks: int) -> str:
    """Why the run stops after so many rollbacks, what stays of it, and what may help."""
    after = f" after {rollbacks} rollbacks" if rollbacks else ""
    steps = checkpoint_steps(run.workdir)
    advice = "lower config.optimizer.learning_rate, or raise config.train.max_bad_steps"
    if steps:
        return f"{after}; the checkpoint of step {steps[-1]} stays; {advice} or config.recovery.max_rollbacks"
    earlier = ", or lower config.train.checkpoint_every" if rollbacks < run.experiment.recovery.max_rollbacks else ""
    return f"{after}; the run's folder has no checkpoint yet to go back to; {advice}{earlier}"


def _say_end(run: _Run, step: int, start: int, stopping: bool) -> None:
    if stopping and step < run.settings.steps:
        received = run.stop.received
        reason = signal.Signals(received).name if received else "preemption"
        saved = "saved; " if step > start else ""
        run.progress.say(f"stopped by {reason} after step {step}; {saved}run the same command again to continue")
    elif step > start:
        run.progress.say(f"done: step {step} of {run.settings.steps} saved")


def _runs(pending: tuple[int, PackedMetrics, StepProgram] | None) -> bool:
    """Whether the devices still work on the step that was dispatched last."""
    return pending is not None and not pending[1].values.is_ready()
