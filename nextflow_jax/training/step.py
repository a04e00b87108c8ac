"""The training step: a pure function of (state, batch), compiled ahead of the loop with explicit shardings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nextflow_jax import sharding
from nextflow_jax.aot.chips import PEAK_FLOPS as TPU_PEAK_FLOPS
from nextflow_jax.training.accumulation import whole_gradients
from nextflow_jax.training.keys import stream_key
from nextflow_jax.training.module_groups import norms
from nextflow_jax.training.optimizer import Optimizer, learning_rate, merge_params
from nextflow_jax.training.packed_metrics import PackedMetrics
from nextflow_jax.training.spikes import NO_RULE, SpikeConfig, is_spike, with_step
from nextflow_jax.training.state import StateLayout, TrainState
from nextflow_jax.training.task import BatchSpec, Metrics, Task

PEAK_FLOPS = {
    **TPU_PEAK_FLOPS,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 FLOP/s by `Device.device_kind`, as the makers state them; none was measured here."""


TrainStep = Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, Metrics]]
"""(state, the task's constants, batch) -> (next state, metrics)."""


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The compiled step and what the compiler says about it."""

    call: Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, PackedMetrics]]
    """As a `TrainStep`, with metrics in one array; donates the state passed in."""
    flops: float
    """Operations of the compiled program on one device, as XLA counts them: with rematerialisation, and the body of a
    loop (over layers, over parts of a batch) once."""
    memory: dict[str, int]
    """Bytes on one device: arguments, outputs, aliased (donated), temporaries."""
    metrics: tuple[str, ...]
    """Names of what it reports."""


def make_train_step(
    task: Task,
    optimizer: Optimizer,
    seed: int,
    accumulate: int = 1,
    norms_every: int = 0,
    gradients: Any = None,
    spikes: SpikeConfig = NO_RULE,
) -> TrainStep:
    """The training step as a pure function; `accumulate` parts of the batch one after another, see `whole_gradients`.

    The task's own "loss" pair, which may weigh steps by their tokens, goes before the plain mean over steps. A step
    whose loss or gradient is not finite, or a spike by the rule of `spikes`, changes nothing but the step count, and
    its metrics weigh nothing except "bad_steps" and "spikes": so no checkpoint ever holds a poisoned state.

    Every `norms_every` steps (0: never) the metrics have the norms of `step_norms`, in others these weigh nothing and
    cost nothing.

    `gradients` are the shardings of the trained parameters' gradients, None for those that the compiler chooses.
    """

    def train_step(state: TrainState, constants: Any, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        trained, frozen = optimizer.split(state.params)
        key = stream_key(seed, "loss", state.step)

        def loss_of(trained: Any, rows: dict[str, jax.Array], key: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            params = merge_params(sharding.with_gradients_at(trained, gradients), frozen)
            return task.loss(params, state.variables, constants, rows, key, state.step)

        loss, metrics, variables, grads = whole_gradients(
            loss_of, task.loss_weight, trained, state.variables, batch, key, accumulate
        )
        grad_norm = optax.tree.norm(optimizer.in_range(grads))
        spike = is_spike(spikes, state.recent, loss, grad_norm)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~spike

        def update(measure: bool = False) -> tuple[TrainState, Metrics]:
            new_trained, opt_state = optimizer.update(grads, state.opt_state, trained, state.step)
            new_state = TrainState(
                step=state.step,
                params=merge_params(new_trained, frozen),
                variables=variables,
                opt_state=opt_state,
                ema=optimizer.average(state.ema, new_trained, state.step),
                recent=with_step(spikes, state.recent, loss, grad_norm),
            )
            return new_state, step_norms(trained, new_trained, optimizer.in_range(grads)) if measure else unmeasured

        shapes = jax.eval_shape(step_norms, trained, trained, grads) if norms_every else {}
        unmeasured = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        branches = [lambda: (state, unmeasured), update]
        branch = good.astype(jnp.int32)
        if norms_every:
            # A branch of its own: measuring what exists only while parameters are updated needs no memory there.
            branches.append(functools.partial(update, measure=True))
            branch += good & ((state.step + 1) % norms_every == 0)
        new_state, measured = jax.lax.switch(branch, branches)
        one = jnp.ones((), jnp.float32)
        general = {
            "loss": (loss, one),
            "grad_norm": (grad_norm, one),
            "learning_rate": (learning_rate(optimizer.config, optimizer.steps, state.step), one),
        }
        metrics = {**measured, **general, **metrics}
        metrics = jax.tree.map(lambda value: jnp.where(good, value.astype(jnp.float32), 0), metrics)
        metrics["bad_steps"] = (1 - good.astype(jnp.float32), one)
        metrics |= {"spikes": (spike.astype(jnp.float32), one)} if spikes.on else {}
        return new_state.replace(step=state.step + 1), metrics

    return train_step


def step_norms(before: Any, after: Any, grads: Any) -> Metrics:
    """Norms of gradients, of what the step changed and of the parameters before it, by group of modules."""
    change = jax.tree.map(jnp.subtract, after, before)
    return {**norms("grad_norm", grads), **norms("update_norm", change), **norms("param_norm", before)}


def trace_step(
    task: Task, layout: StateLayout, seed: int, spec: BatchSpec, accumulate: int = 1, norms_every: int = 0
) -> jax.stages.Traced:
    """Traces the step for the layout's mesh and one kind of batch, without allocating anything."""
    rows = sharding.batch_sharding(layout.mesh, layout.rules, task.batch_axes())
    everywhere = sharding.replicated(layout.mesh)
    batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows) for name, array in spec.items()}
    plain = make_train_step(task, layout.optimizer, seed, accumulate, norms_every, layout.gradients, layout.spikes)

    def train_step(state: TrainState, constants: Any, batch: Any) -> tuple[TrainState, PackedMetrics]:
        state, metrics = plain(state, constants, batch)
        return state, PackedMetrics.of(metrics)

    step = jax.jit(
        train_step,
        in_shardings=(layout.shardings, everywhere, rows),
        out_shardings=(layout.shardings, everywhere),
        donate_argnums=0,
    )
    with sharding.logical_context(layout.mesh, layout.rules):
        return step.trace(layout.abstract, jax.eval_shape(task.constants), batch)


def lower_step(
    task: Task, layout: StateLayout, seed: int, spec: BatchSpec, accumulate: int = 1, norms_every: int = 0
) -> jax.stages.Lowered:
    """The traced step, lowered for the mesh's devices."""
    with sharding.logical_context(layout.mesh, layout.rules):
        return trace_step(task, layout, seed, spec, accumulate, norms_every).lower()


def compile_step(
    task: Task, layout: StateLayout, seed: int, spec: BatchSpec, accumulate: int = 1, norms_every: int = 0
) -> CompiledStep:
    """Compiles the step for one kind of batch; nothing is compiled inside the loop."""
    lowered = lower_step(task, layout, seed, spec, accumulate, norms_every)
    compiled, (_, metrics) = lowered.compile(), lowered.out_info
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis()
    return CompiledStep(
        call=compiled,
        flops=float(cost["flops"]) if cost and "flops" in cost else float("nan"),
        memory={
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        },
        metrics=metrics.names,
    )


def peak_flops(device: jax.Device, configured: float) -> float | None:
    """FLOP/s that the MFU divides by: the configured figure, else the device kind's, else None (no MFU is reported)."""
    return configured or PEAK_FLOPS.get(device.device_kind)
