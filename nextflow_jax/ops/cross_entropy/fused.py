"""Head + cross-entropy without the logits of a row, on every device's own tokens under the mesh that is traced for.

Each device gathers the head over the axes that split its inputs once, in the compute dtype and before any block of
columns, keeps it for the backward pass, and its gradient is reduced and scattered once. Axes that split the vocabulary
(tensor) keep their own columns: maxima, sums and targets of the logits are combined between them. Left to the compiler,
a scan over chunks gathers the head once a pass and reduces its gradient once a CHUNK.

Memory of a device: the gathered head, its gradient in the same dtype, `BLOCK_LOGITS` logits a few times over, and the
hidden states' gradient in float32. experiments/bench/cross_entropy.py measures it. Source of the idea: NextFlow's fused
linear + cross-entropy (recipe section 5).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from nextflow_jax import sharding
from nextflow_jax.ops.cross_entropy import blocks
from nextflow_jax.ops.cross_entropy.reference import Statistics, TokenLosses, losses_of

BLOCK_LOGITS = 2**25
"""Logits of a device alive at once, about: 128 MiB in float32."""

LANES = 128
"""A block's columns are a multiple of it: the width of a TPU's registers."""


def linear_cross_entropy(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    *,
    label_smoothing: float = 0.0,
    block: int | None = None,
) -> TokenLosses:
    """See `nextflow_jax.ops.cross_entropy.linear_cross_entropy`.

    Args:
      hidden: last hidden states.
      head: output weights.
      targets: ids.
      label_smoothing: share of the target that is spread over all V ids.
      block: columns at once; None chooses by `BLOCK_LOGITS`.
    """
    plan = _make_plan(hidden, head, bool(label_smoothing), block)
    return losses_of(_statistics(plan, hidden, head, targets), head.shape[1], label_smoothing)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How the operation is cut: over the mesh, and on each device."""

    mesh: Mesh | None
    rows: tuple[str, ...]
    """Mesh axes that split the rows."""
    sequence: tuple[str, ...]
    inputs: tuple[str, ...]
    """Mesh axes that split the head's first dimension; each also splits tokens."""
    vocabulary: tuple[str, ...]
    """Mesh axes that split its second one; none splits tokens."""
    columns: int
    """V."""
    parts: int
    """Devices that share the vocabulary."""
    block: int
    with_sum: bool
    head_dtype: Any

    @property
    def local_columns(self) -> int:
        """A device's share of the vocabulary; the last devices' may be padded."""
        return -(-self.columns // self.parts)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Mesh axes that split the tokens."""
        return (*self.rows, *self.sequence)

    @property
    def token_spec(self) -> PartitionSpec:
        """Of [B, S] and [B, S, D]."""
        return PartitionSpec(self.rows or None, self.sequence or None)

    def head_spec(self, *, whole_inputs: bool = False) -> PartitionSpec:
        """Of [D, V]; gathered: with the first dimension whole."""
        return PartitionSpec(None if whole_inputs else self.inputs or None, self.vocabulary or None)

    def spread(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """The function on every device's part of its arguments; without a mesh, the function itself."""
        if self.mesh is None:
            return function
        # The gathered head leaves as what it is, the same on all devices that gathered it; JAX cannot see that.
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _make_plan(hidden: jax.Array, head: jax.Array, with_sum: bool, block: int | None) -> _Plan:
    mesh, _ = sharding.mesh_axes("batch")

    def axes(logical: str, size: int) -> tuple[str, ...]:
        found = sharding.mesh_axes(logical)[1]
        return found if size % _devices(mesh, found) == 0 else ()

    rows, sequence = axes("batch", hidden.shape[0]), axes("sequence", hidden.shape[1])
    tokens = (*rows, *sequence)
    inputs = tuple(axis for axis in axes("embed", head.shape[0]) if axis in tokens)
    vocabulary = tuple(axis for axis in axes("vocab", 0) if axis not in tokens)
    num_tokens = hidden.shape[0] * hidden.shape[1] // _devices(mesh, tokens)
    parts = _devices(mesh, vocabulary)
    columns = -(-head.shape[1] // parts)
    block = block or max(LANES, BLOCK_LOGITS // max(1, num_tokens))
    num_blocks = -(-columns // block)
    block = -(-columns // (num_blocks * LANES)) * LANES
    return _Plan(mesh, rows, sequence, inputs, vocabulary, head.shape[1], parts, block, with_sum, head.dtype)


def _devices(mesh: Mesh | None, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes) if mesh else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(plan: _Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> Statistics:
    return _forward(plan, hidden, head, targets)[0]


def _forward(plan: _Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[Statistics, tuple]:
    def on_device(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[Statistics, jax.Array]:
        padding = -head.shape[1] % plan.block
        head = jnp.pad(head.astype(hidden.dtype), [(0, 0), (0, padding)])
        if plan.inputs:
            head = lax.all_gather(head, plan.inputs, axis=0, tiled=True)
        flat, ids, columns = _local(plan, hidden, targets)
        parts = blocks.forward(flat, head, ids, columns, block=plan.block, with_sum=plan.with_sum)
        peak, (exp_sum, target, total) = parts.peak, parts[1:]
        if plan.vocabulary:
            peak = lax.pmax(parts.peak, plan.vocabulary)
            exp_sum = exp_sum * jnp.exp(parts.peak - peak)
            exp_sum, target, total = lax.psum((exp_sum, target, total), plan.vocabulary)
        statistics = Statistics(jnp.log(exp_sum) + peak, target, peak, total)
        return jax.tree.map(lambda x: x.reshape(targets.shape), statistics), head

    head = jnp.pad(head, [(0, 0), (0, plan.local_columns * plan.parts - plan.columns)])
    run = plan.spread(
        on_device,
        (plan.token_spec, plan.head_spec(), plan.token_spec),
        (plan.token_spec, plan.head_spec(whole_inputs=True)),
    )
    statistics, gathered = run(hidden, head, targets)
    return statistics, (hidden, gathered, targets, statistics.log_normaliser)


def _backward(plan: _Plan, kept: tuple, gradient: Statistics) -> tuple[jax.Array, jax.Array, None]:
    hidden, gathered, targets, log_normaliser = kept

    def on_device(
        hidden: jax.Array, head: jax.Array, targets: jax.Array, log_normaliser: jax.Array, gradient: Statistics
    ) -> tuple[jax.Array, jax.Array]:
        flat, ids, columns = _local(plan, hidden, targets)
        log_normaliser, gradient = jax.tree.map(jnp.ravel, (log_normaliser, gradient))
        to_hidden, to_head = blocks.backward(flat, head, ids, columns, log_normaliser, gradient, block=plan.block)
        if plan.vocabulary:
            to_hidden = lax.psum(to_hidden, plan.vocabulary)
        if plan.inputs:
            to_head = lax.psum_scatter(to_head, plan.inputs, scatter_dimension=0, tiled=True)
        to_head = to_head[:, : plan.local_columns].astype(plan.head_dtype)
        others = tuple(axis for axis in plan.tokens if axis not in plan.inputs)
        if others:
            to_head = lax.psum(to_head, others)
        return to_hidden.reshape(hidden.shape).astype(hidden.dtype), to_head

    tokens = plan.token_spec
    run = plan.spread(
        on_device,
        (tokens, plan.head_spec(whole_inputs=True), tokens, tokens, tokens),
        (tokens, plan.head_spec()),
    )
    to_hidden, to_head = run(hidden, gathered, targets, log_normaliser, gradient)
    return to_hidden, to_head[:, : plan.columns], None


_statistics.defvjp(_forward, _backward)


def _local(plan: _Plan, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This device's hidden states, [N, D], their targets counted from its first column, and how many are no padding."""
    first = lax.axis_index(plan.vocabulary) * plan.local_columns if plan.vocabulary else 0
    columns = jnp.clip(plan.columns - first, 0, plan.local_columns).astype(jnp.int32)
    return hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1) - first, columns
