"""What exists before the first step: mesh, layout of the state and the compiled steps, reported as they are built."""

import dataclasses
import pathlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from nextflow_jax import sharding
from nextflow_jax.config import nearest
from nextflow_jax.errors import UserError
from nextflow_jax.sharding_table import PlacedArray, placed_arrays, table_of, whole_on_every_device
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.settings import Experiment
from nextflow_jax.training.state import StateLayout, make_layout, num_parameters
from nextflow_jax.training.step import CompiledStep, compile_step
from nextflow_jax.training.task import Task

SHARDING_FILE = "sharding.txt"

LARGE_ARRAY = 2**26
"""Bytes from which on an array that no axis splits is worth a line."""


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of a batch's arrays."""


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """The compiled step for one kind of batch, and the step's size."""

    compiled: CompiledStep
    model_flops: float
    """Model FLOPs of a step, over all devices."""
    tokens: int
    """Positions of a step."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The layout of the state and the step, compiled for every kind of batch."""

    layout: StateLayout
    steps: Mapping[Shapes, StepProgram]

    def step_for(self, batch: Mapping[str, jax.Array]) -> StepProgram:
        """The step that takes a batch of these shapes."""
        return self.steps[_shapes(batch)]


def lay_out(experiment: Experiment, task: Task, mesh: jax.sharding.Mesh) -> StateLayout:
    """The layout of the state over the mesh, which also divides the batch.

    Raises:
      UserError: as `make_layout`.
    """
    rules, spikes = experiment.state_rules(), experiment.recovery.spikes
    layout = make_layout(task, experiment.optimizer, experiment.train.steps, mesh, rules, spikes)
    sharding.local_part(sharding.batch_sharding(mesh, layout.rules), experiment.train.batch_size)
    return layout


def build_program(
    experiment: Experiment, task: Task, layout: StateLayout, workdir: pathlib.Path, progress: Progress
) -> Program:
    """Compiles the steps; reports them and the layout of the state, the full table in `sharding.txt`.

    Raises:
      UserError: the best checkpoints are to be known by a metric that no step reports.
    """
    begin = time.perf_counter()
    train, mesh = experiment.train, layout.mesh
    norms_every = train.log_every if train.norms else 0
    steps = {}
    for spec in task.batch_specs():
        compiled = compile_step(task, layout, experiment.seed, spec, train.accumulate, norms_every)
        model_flops = task.flops_per_step(layout.abstract.params, spec)
        steps[_shapes(spec)] = StepProgram(compiled, model_flops, task.tokens_per_step(spec))
    _check_metric(experiment.checkpoint, {name for step in steps.values() for name in step.compiled.metrics})
    seconds = time.perf_counter() - begin
    arrays = placed_arrays(layout.abstract, layout.axes, layout.shardings)
    if jax.process_index() == 0:
        (workdir / SHARDING_FILE).write_text(table_of(arrays) + "\n", encoding="utf-8")
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    total, frozen = num_parameters(layout.abstract.params), layout.optimizer.split(layout.abstract.params)[1]
    progress.say(f"mesh: {shape}; {total:,} parameters, {num_parameters(frozen):,} of them frozen")
    for line in (*_unsplit(arrays, mesh), *_describe(list(steps.values()), seconds)):
        progress.say(line)
    return Program(layout, steps)


def _check_metric(settings: CheckpointConfig, known: Collection[str]) -> None:
    if settings.keep_best and settings.metric not in known:
        raise UserError(
            f"config.checkpoint.metric = {settings.metric!r}: no step reports it; {nearest(settings.metric, [*known])}"
        )


def _unsplit(arrays: Sequence[PlacedArray], mesh: jax.sharding.Mesh) -> list[str]:
    """A line on large arrays that lie whole on every device, though the mesh is there to split the state."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return []
    whole = whole_on_every_device(arrays, LARGE_ARRAY)
    if not whole:
        return []
    names = ", ".join(f"{row.name} {'x'.join(map(str, row.shape))}" for row in whole[:3])
    total = sum(row.num_bytes for row in whole) / 2**20
    return [f"{total:,.0f} MiB lie whole on each of {mesh.size} devices: {names}; config.rules splits them"]


def _describe(steps: Sequence[StepProgram], seconds: float) -> list[str]:
    """One line on the only step, or on the smallest and the largest of several."""
    kinds = f"{len(steps)} kinds of batches " if len(steps) > 1 else ""
    lines = [f"compiled {kinds}in {seconds:.1f} s"]
    ordered = sorted(steps, key=lambda step: step.model_flops)
    for step in ordered if len(steps) == 1 else (ordered[0], ordered[-1]):
        memory = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in step.compiled.memory.items())
        lines.append(
            f"GFLOP a step: model {step.model_flops / 1e9:.2f}, program {step.compiled.flops / 1e9:.2f} a device; "
            f"{step.tokens} tokens; MiB a device: {memory}"
        )
    return lines if len(steps) > 1 else ["; ".join(lines)]


def _shapes(batch: Mapping[str, Any]) -> Shapes:
    return tuple(sorted((name, tuple(array.shape)) for name, array in batch.items()))
