"""Programs to compile ahead of time, traced and lowered for a topology: what one is, and the training step."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from nextflow_jax import sharding
from nextflow_jax.aot.topology import Topology
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.models.remat import REMAT_POLICIES
from nextflow_jax.sharding_table import PlacedArray, placed_arrays
from nextflow_jax.training.experiment import FROM_SHARDS, DecoderExperiment
from nextflow_jax.training.flops import TracedFlops, traced_flops
from nextflow_jax.training.settings import Experiment
from nextflow_jax.training.state import StateLayout, make_layout, num_parameters
from nextflow_jax.training.step import trace_step
from nextflow_jax.training.task import BatchSpec
from nextflow_jax.training.tasks.planned import plan_task

REMAT_FIELDS = {
    "decoder": ("model.remat",),
    "contrastive": ("model.vit.transformer.remat", "model.text.remat"),
    "tokenizer": ("model.vit.transformer.remat", "model.semantic_decoder.remat", "model.pixel.remat"),
}
"""Kind of experiment -> the fields that say what its backward pass computes again."""


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A program that is ready to be compiled, and what is known of it before."""

    name: str
    lowered: jax.stages.Lowered
    flops: TracedFlops
    """Executed, over the devices that run one copy."""
    params: int
    """Numbers that the model consists of."""
    tokens: int
    """Positions, codes or the like that a run of all copies works on."""
    model_flops: float
    """Of a run of all copies; without rematerialisation."""
    argument_bytes: int
    """Of a device's part of what the program is called with."""
    mesh: Mapping[str, int]
    """Devices along each axis, of one copy."""
    copies: int = 1
    """Copies that run side by side, each on its own devices, without talking to one another."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Those that decide how much memory it needs, by their names in the configuration."""
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Input that is not at hand -> what it was taken for."""
    state: Sequence[PlacedArray] = ()
    """Where each array of a training state lies."""
    gradient_bytes: int = 0
    """Of a device's part of the gradients, where it trains."""


def training_step(experiment: Experiment, topology: Topology) -> PlannedProgram:
    """The step of `nextflow_jax.train` on all devices; of several kinds of batches, for the largest.

    Raises:
      UserError: the experiment breaks a rule, does not fit the devices, or lacks sizes that its inputs decide.
    """
    experiment = with_known_sizes(experiment)
    task, assumed = plan_task(experiment)
    faults = experiment.device_faults(len(topology.devices))
    preflight(experiment, extra=[dataclasses.replace(fault, field=f"config.{fault.field}") for fault in faults])
    mesh = sharding.make_mesh(experiment.mesh, topology.devices)
    train = experiment.train
    spikes = experiment.recovery.spikes
    layout = make_layout(task, experiment.optimizer, train.steps, mesh, experiment.state_rules(), spikes)
    rules = layout.rules
    spec = max(task.batch_specs(), key=_elements)
    with sharding.logical_context(mesh, rules):
        norms_every = train.log_every if train.norms else 0
        traced = trace_step(task, layout, experiment.seed, spec, train.accumulate, norms_every)
        lowered = traced.lower()
    rows = sharding.batch_sharding(mesh, rules, task.batch_axes())
    everywhere = sharding.replicated(mesh)
    arguments = (layout.abstract, placed(jax.eval_shape(task.constants), everywhere), placed(spec, rows))
    if len(task.batch_specs()) > 1:
        sizes = ", ".join("x".join(map(str, array.shape)) for array in spec.values())
        assumed = {**assumed, "batch": f"the largest of {len(task.batch_specs())} kinds: {sizes}"}
    return PlannedProgram(
        name="train",
        lowered=lowered,
        flops=traced_flops(traced.jaxpr),
        params=num_parameters(layout.abstract.params),
        tokens=task.tokens_per_step(spec),
        model_flops=task.flops_per_step(layout.abstract.params, spec),
        argument_bytes=local_bytes(arguments),
        mesh=dict(mesh.shape),
        settings=_memory_settings(experiment),
        assumed=assumed,
        state=placed_arrays(layout.abstract, layout.axes, layout.shardings),
        gradient_bytes=_gradient_bytes(layout),
    )


def placed(tree: Any, placement: NamedSharding) -> Any:
    """Arrays as shapes that lie there."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), tree)


def local_bytes(tree: Any) -> int:
    """Bytes of a device's part of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def with_known_sizes(experiment: Experiment) -> Experiment:
    """With the sizes of its shards, where it leaves them to those and they are there."""
    if not isinstance(experiment, DecoderExperiment) or FROM_SHARDS not in experiment.input_sizes().values():
        return experiment
    try:
        return experiment.with_input_sizes()
    except UserError:  # not there: `plan_task` says which sizes are missing
        return experiment


def remat_of(experiment: Experiment) -> dict[str, str]:
    """What the backward pass computes again, by field."""
    return {name: _field(experiment, name) for name in REMAT_FIELDS[experiment.kind]}


def remat_policies(kind: str) -> tuple[str, ...]:
    """The policies that a kind of experiment can have, those that need least memory first."""
    names = ("none", *REMAT_POLICIES) if kind == "decoder" else ("none", "full")
    return tuple(sorted(names, key=LEAST_MEMORY_FIRST.index))


def leaner_policies(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Field -> policies that need less memory than the experiment's own, the least first."""
    known = remat_policies(experiment.kind)
    return {name: known[: known.index(policy)] for name, policy in remat_of(experiment).items()}


LEAST_MEMORY_FIRST = ("offload", "full", "attention", "dots", "dots_attention", "none")
"""Remat policies (nextflow_jax/models/remat.py has the figures)."""


def _gradient_bytes(layout: StateLayout) -> int:
    trained = layout.optimizer.split(layout.abstract.params)[0]
    if layout.gradients is None:
        return local_bytes(trained)
    return local_bytes(jax.tree.map(placed, trained, layout.gradients))


def _memory_settings(experiment: Experiment) -> dict[str, Any]:
    return {
        **remat_of(experiment),
        "train.batch_size": experiment.train.batch_size,
        "train.accumulate": experiment.train.accumulate,
    }


def _field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _elements(spec: BatchSpec) -> int:
    return sum(math.prod(array.shape) for array in spec.values())
