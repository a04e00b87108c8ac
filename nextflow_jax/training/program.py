"""What exists before the first step: mesh, layout of the state and the compiled step, reported as they are built."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

import jax

from nextflow_jax import sharding
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.settings import Experiment
from nextflow_jax.training.state import StateLayout, make_layout, num_parameters
from nextflow_jax.training.step import CompiledStep, compile_step
from nextflow_jax.training.task import Task

SHARDING_FILE = "sharding.txt"


@dataclasses.dataclass(frozen=True)
class Program:
    """The layout of the state, the compiled step and the step's size."""

    layout: StateLayout
    compiled: CompiledStep
    model_flops: float
    """Model FLOPs of a step, over all devices."""
    tokens: int
    """Positions of a step."""


def build_program(
    experiment: Experiment,
    task: Task,
    devices: Sequence[jax.Device] | None,
    workdir: pathlib.Path,
    progress: Progress,
) -> Program:
    """Lays the state out over the mesh and compiles the step; reports both, the full table in `sharding.txt`."""
    mesh = sharding.make_mesh(experiment.mesh, devices)
    rules = sharding.make_rules(experiment.rules)
    layout = make_layout(task, experiment.optimizer, experiment.train.steps, mesh, rules)
    sharding.local_part(sharding.batch_sharding(mesh, rules), experiment.train.batch_size)
    begin = time.perf_counter()
    compiled = compile_step(task, layout, experiment.seed)
    seconds = time.perf_counter() - begin
    model_flops = task.flops_per_step(layout.abstract.params)
    if jax.process_index() == 0:
        table = sharding.sharding_table(layout.abstract.params, layout.shardings.params)
        (workdir / SHARDING_FILE).write_text(table + "\n", encoding="utf-8")
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    total, frozen = num_parameters(layout.abstract.params), layout.optimizer.split(layout.abstract.params)[1]
    progress.say(f"mesh: {shape}; {total:,} parameters, {num_parameters(frozen):,} of them frozen")
    memory = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in compiled.memory.items())
    progress.say(
        f"compiled in {seconds:.1f} s; GFLOP a step: model {model_flops / 1e9:.2f}, "
        f"program {compiled.flops / 1e9:.2f} a device; MiB a device: {memory}"
    )
    return Program(layout, compiled, model_flops, task.tokens_per_step)
