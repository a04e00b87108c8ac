"""The training loop: build, restore, step, log, save. What is trained is the Task's matter, never the loop's."""

import functools
import io
import pathlib
import signal
from collections.abc import Sequence

import jax

from nextflow_jax import sharding
from nextflow_jax.config import to_plain_dict
from nextflow_jax.training.checkpoint import Checkpoints, Position, checkpoint_steps, read_meta
from nextflow_jax.training.feed import Feed
from nextflow_jax.training.goodput import Ledger
from nextflow_jax.training.metrics import Window
from nextflow_jax.training.preemption import StopSignal
from nextflow_jax.training.profile import Profiler
from nextflow_jax.training.program import Program, StepProgram, build_program
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.published_start import PublishedStart
from nextflow_jax.training.run_log import RunLog
from nextflow_jax.training.settings import Experiment, TrainConfig
from nextflow_jax.training.state import StateLayout, TrainState, abstract_variables, init_state
from nextflow_jax.training.task import Metrics, Task
from nextflow_jax.training.warm_start import INIT_FROM, WarmStart
from nextflow_jax.training.workdir import check_resume, save_config


def train(
    experiment: Experiment,
    task: Task,
    workdir: pathlib.Path,
    devices: Sequence[jax.Device] | None = None,
    stream: io.TextIOBase | None = None,
    ledger: Ledger | None = None,
) -> TrainState:
    """Trains to `experiment.train.steps`, continuing from the newest checkpoint in `workdir` if there is one.

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
      UserError: the checkpoint does not fit the configuration, or the loss was not finite for too long.
      KeyboardInterrupt: after Ctrl-C, with a checkpoint saved.
    """
    settings = experiment.train
    ledger = ledger or Ledger(workdir)
    steps = checkpoint_steps(workdir)
    start = steps[-1] if steps else 0
    fingerprints, warm_start = task.describe(), None
    if steps:
        meta = read_meta(workdir, start)
        # Kept from the checkpoint: a resumed run needs its source no more.
        fingerprints |= {name: value for name, value in meta["fingerprints"].items() if name == INIT_FROM}
        check_resume(experiment, fingerprints, meta)
    else:
        # Before anything is compiled: a source that does not fit is known at once.
        warm_start = experiment.load_start(abstract_variables(task))
        fingerprints |= {INIT_FROM: warm_start.origin} if warm_start else {}
    progress = Progress(experiment.name or experiment.kind, start, settings.steps, stream)
    if warm_start:
        progress.say(f"starting with {warm_start.count} arrays of {warm_start.origin}")
    checkpoints = Checkpoints(workdir, settings.keep, to_plain_dict(experiment), fingerprints)
    profiler = Profiler(settings.profile, workdir, progress.say)
    with StopSignal() as stop, profiler, checkpoints:
        with ledger.phase("compile"):
            program = build_program(experiment, task, devices, workdir, progress)
        with ledger.phase("restore" if steps else "init"):
            state, position = _restore_or_init(experiment, task, program.layout, checkpoints, start, warm_start)
        save_config(workdir, experiment)
        if jax.process_index() == 0:
            task.save_artifacts(workdir)
        ledger.stand_at(start)
        data = functools.partial(_data_statistics, task, position.batch - start)
        log = RunLog(workdir, settings, program.layout, progress, start, Window(position.window), ledger, data)
        try:
            with ledger.phase("step"):
                state = _run(settings, task, program, state, position.batch, checkpoints, stop, log, profiler)
            progress.say(ledger.account().describe())
        finally:
            log.close()
    if stop.interrupted:
        raise KeyboardInterrupt
    return state


def _data_statistics(task: Task, ahead: int, first: int, stop: int) -> dict[str, float]:
    """Of the batches of steps first + 1..stop, whose numbers are `ahead` of the steps done before them."""
    return task.data_statistics(first + ahead, stop + ahead)


def _restore_or_init(
    experiment: Experiment,
    task: Task,
    layout: StateLayout,
    checkpoints: Checkpoints,
    start: int,
    warm_start: WarmStart | PublishedStart | None,
) -> tuple[TrainState, Position]:
    if checkpoints.latest is not None:
        return checkpoints.restore(start, layout.abstract)
    changes = {"start": warm_start.apply, "given": warm_start.given} if warm_start else {}
    return init_state(task, layout, experiment.seed, **changes), Position(batch=0)


def _run(
    settings: TrainConfig,
    task: Task,
    program: Program,
    state: TrainState,
    first_batch: int,
    checkpoints: Checkpoints,
    stop: StopSignal,
    log: RunLog,
    profiler: Profiler,
) -> TrainState:
    step = start = log.step
    constants = jax.device_put(task.constants(), sharding.replicated(program.layout.mesh))
    rows = sharding.batch_sharding(program.layout.mesh, program.layout.rules, task.batch_axes())
    pending = None
    stopping = stop.should_stop(step)
    with Feed(task, first_batch, rows, settings.prefetch) as feed:
        while step < settings.steps and not stopping:
            batch = feed.next_batch(busy=functools.partial(_runs, pending))
            step_program = program.step_for(batch)
            step += 1
            if profiler.due(step):
                with log.ledger.phase("profile"):
                    profiler.open(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_program.compiled.call(state, constants, batch)
            if pending is not None:
                log.add(*pending, feed.totals)
            pending = (step, metrics, step_program)
            stopping = stop.should_stop(step)
            saving = step % settings.checkpoint_every == 0 or step == settings.steps or stopping
            if saving or profiler.ends_with(step):
                log.add(*pending, feed.totals)
                pending = None
            if profiler.ends_with(step):
                with log.ledger.phase("profile"):
                    profiler.close()
            if saving:
                with log.ledger.phase("checkpoint"):
                    checkpoints.save(step, state, Position(first_batch + step - start, log.window.totals))
                log.ledger.write(step)
    with log.ledger.phase("checkpoint"):
        checkpoints.wait()
    if stopping and step < settings.steps:
        reason = signal.Signals(stop.received).name if stop.received else "preemption"
        saved = "saved; " if step > start else ""
        log.progress.say(f"stopped by {reason} after step {step}; {saved}run the same command again to continue")
    elif step > start:
        log.progress.say(f"done: step {step} of {settings.steps} saved")
    return state


def _runs(pending: tuple[int, Metrics, StepProgram] | None) -> bool:
    """Whether the devices still work on the step that was dispatched last."""
    return pending is not None and not pending[1]["bad_steps"][0].is_ready()
