"""What every experiment has, whatever it trains: length, batch, optimizer, mesh and how a run is watched and saved."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from nextflow_jax.config import Fault
from nextflow_jax.distributed import DistributedConfig
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import BATCH_AXES, MeshConfig, StateRules, make_rules
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.profile import ProfileConfig
from nextflow_jax.training.published_start import PublishedStart
from nextflow_jax.training.recovery import RecoveryConfig
from nextflow_jax.training.warm_start import InitFromConfig, MovedEntries, WarmStart, load_warm_start


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and rhythm of a run, in steps (optimizer updates)."""

    steps: int = 1000
    batch_size: int = 16
    """Rows of the global batch, over all devices of all hosts."""
    accumulate: int = 1
    """Parts of the batch worked on one after another in a step: the memory of a part, the update of the whole."""
    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2
    """Checkpoints that stay on disk."""
    max_bad_steps: int = 0
    """How many steps in a row may have a loss or gradient that is not finite; such steps change nothing."""
    prefetch: int = 2
    """Batches made ahead of the step that uses them."""
    peak_flops: float = 0.0
    """FLOP/s of one device for the MFU; 0 = known by device kind, and no MFU for unknown devices."""
    tensorboard: bool = True
    wandb: str = ""
    """Project of Weights & Biases that gets the records too; empty: none. WANDB_MODE=offline keeps them here."""
    profile: ProfileConfig = ProfileConfig()
    norms: bool = True
    """Norms of gradients, updates and parameters by group of modules, in the last step of each `log_every`."""
    activations: bool = True
    """The residual stream's RMS and outliers by quarter of the decoder's depth, in every step (decoder alone)."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep", "prefetch"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use at least 1")
        for name in ("max_bad_steps", "peak_flops"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0")
        if self.wandb and importlib.util.find_spec("wandb") is None:
            yield Fault("wandb", self.wandb, "needs the package wandb", "pip install 'nextflow_jax[wandb]', or use ''")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The fields all kinds share; each kind adds its model and data (nextflow_jax/training/experiment.py)."""

    kind: str = ""
    name: str = ""
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Rows of sharding.LOGICAL_RULES to replace: (logical axis, mesh axes)."""
    optimizer_rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Rows to replace beyond these for the optimizer's moments and the moving average. Parameters whole and moments
    split, e.g. (("embed", ("data",)),) on a mesh of data alone, is what ZeRO (arXiv 1910.02054) calls stage 1."""
    gradient_rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Likewise for the gradients: with the same rows as optimizer_rules, stage 2. (All three split, by the axis fsdp of
    the mesh, is stage 3 and needs neither.)"""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    init_from: InitFromConfig = InitFromConfig()
    """Another run whose weights this one starts from."""
    distributed: DistributedConfig = DistributedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()

    FIXED: ClassVar[tuple[str, ...]] = ("kind", "seed", "init_from")
    """Fields (or groups) that a resumed run must not change, because its checkpoint's arrays depend on them."""
    FREE: ClassVar[tuple[str, ...]] = ()
    """Fields inside FIXED groups that may change all the same."""

    def faults(self) -> Iterator[Fault]:
        """The rules between groups that this experiment breaks, whatever the devices and files."""
        for name in ("rules", "optimizer_rules", "gradient_rules"):
            try:
                make_rules(getattr(self, name))
            except UserError as error:
                yield Fault(name, getattr(self, name), str(error), "see nextflow_jax/sharding.py")
        reason = self.needs_whole_batch() if self.train.accumulate > 1 else ""
        if reason:
            fix = "use 1; for memory, remat, or more devices"
            yield Fault("train.accumulate", self.train.accumulate, reason, fix)

    def state_rules(self) -> StateRules:
        """Where parameters, moments and gradients lie."""
        rules = make_rules(self.rules)
        return StateRules(rules, make_rules(self.optimizer_rules, rules), make_rules(self.gradient_rules, rules))

    def needs_whole_batch(self) -> str:
        """Why the loss of this experiment is not the mean of those of a batch's parts; empty: it is."""
        return ""

    def device_faults(self, num_devices: int) -> Iterator[Fault]:
        """What does not fit `num_devices` devices."""
        try:
            sizes = self.mesh.resolve(num_devices)
        except UserError as error:
            yield Fault("mesh", dataclasses.astuple(self.mesh), str(error), f"fit it to {num_devices} devices")
            return
        blocks = math.prod(sizes[axis] for axis in BATCH_AXES)
        unit = blocks * max(1, self.train.accumulate)
        if self.train.batch_size % unit:
            below = self.train.batch_size // unit * unit
            fix = f"use {below} or {below + unit}" if below else f"use {unit}"
            parts = f" x train.accumulate = {blocks} x {self.train.accumulate}" if self.train.accumulate > 1 else ""
            rule = f"must be a multiple of slice x data x fsdp{parts} = {unit}"
            yield Fault("train.batch_size", self.train.batch_size, rule, fix)

    def input_faults(self) -> Iterator[Fault]:
        """Files and folders that must be there and are not."""
        for fault in self.init_from.input_faults((self.kind,)):
            yield dataclasses.replace(fault, field=f"init_from.{fault.field}")

    def load_start(self, abstract: Callable[[], Any]) -> WarmStart | PublishedStart | None:
        """The weights that `init_from` names, checked against the run's variables.

        Args:
          abstract: makes the shapes of these, by collection; not called where nothing is named.

        Raises:
          UserError: they cannot be read or do not fit.
        """
        return load_warm_start(self.init_from, abstract(), self.moved_entries()) if self.init_from.workdir else None

    def moved_entries(self) -> Mapping[str, MovedEntries]:
        """Arrays of the run that `init_from.workdir` names whose entries have other places in this one.

        Raises:
          UserError: they have none.
        """
        return {}

    def with_input_sizes(self) -> "Experiment":
        """This experiment with the sizes that its inputs decide; what config.json and checkpoints record."""
        return self

    def with_placeholder_sizes(self) -> "Experiment":
        """This experiment with 1 for every size that its (missing) inputs decide, to check the other rules."""
        return self
