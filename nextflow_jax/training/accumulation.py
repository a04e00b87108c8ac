"""Gradients of a batch from its parts, one after another: the memory of a part, the update of the whole."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.training.task import Metrics

Batch = dict[str, jax.Array]

LossOf = Callable[[Any, Batch, Key[Array, ""]], tuple[jax.Array, tuple[Metrics, Any]]]
"""(trained parameters, batch, key) -> loss, (metrics, the other collections)."""


def whole_gradients(
    loss_of: LossOf,
    weight_of: Callable[[Batch], Float[Array, ""]],
    trained: Any,
    variables: Any,
    batch: Batch,
    key: Key[Array, ""],
    parts: int,
) -> tuple[Float[Array, ""], Metrics, Any, Any]:
    """Loss, metrics, the other collections' new values and gradients of a batch that is worked on in `parts` parts.

    Equal to those of the whole batch, but for the order of sums and for what the loss draws at random: part i > 0 draws
    from a key of its own. Gradients are summed in float32. Each device's rows stay on it: part i is the i-th of `parts`
    blocks of every device's rows.

    Args:
      loss_of: the loss, a weighted mean over rows or positions of a batch.
      weight_of: what that mean is divided by.
      trained: parameters that gradients are taken of.
      variables: the other collections, as `loss_of` reads them.
      batch: arrays of equally many rows, `parts` times the number of row blocks of the mesh, or a multiple.
      key: of the step.
      parts: 1 = the whole batch at once.

    Raises:
      UserError: the loss changes the other collections, so that parts would not add up to the batch.
    """
    gradients_of = jax.value_and_grad(loss_of, has_aux=True)
    if parts == 1:
        (loss, (metrics, variables)), grads = gradients_of(trained, batch, key)
        return loss, metrics, variables, grads

    def add(carry: tuple[Any, Any, Any], part: tuple[jax.Array, Batch]) -> tuple[tuple[Any, Any, Any], Metrics]:
        total_weight, total_loss, total = carry
        index, rows = part
        (loss, (metrics, changed)), grads = gradients_of(trained, rows, jax.random.fold_in(key, index))
        _refuse_changes(variables, changed, parts)
        weight = weight_of(rows).astype(jnp.float32)
        total = jax.tree.map(lambda sums, grad: sums + weight * grad.astype(jnp.float32), total, grads)
        return (total_weight + weight, total_loss + weight * loss, total), metrics

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained))
    rows = {name: _split_rows(array, parts) for name, array in batch.items()}
    (weight, loss, total), metrics = jax.lax.scan(add, start, (jnp.arange(parts), rows))
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
    grads = jax.tree.map(lambda sums, leaf: (sums / weight).astype(leaf.dtype), total, trained)
    return loss / weight, jax.tree.map(lambda pairs: pairs.sum(axis=0), metrics), variables, grads


def _split_rows(array: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]."""
    mesh, axes = sharding.mesh_axes("batch")
    blocks = math.prod(mesh.shape[axis] for axis in axes) if mesh else 1
    rest = array.shape[1:]
    split = jnp.swapaxes(array.reshape(blocks, parts, -1, *rest), 0, 1).reshape(parts, -1, *rest)
    if not axes:
        return split
    # The reshapes are each device's own; said, so that the compiler does not come to think otherwise.
    placement = PartitionSpec(None, axes, *(PartitionSpec.UNCONSTRAINED for _ in rest))
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, placement))


def _refuse_changes(variables: Any, changed: Any, parts: int) -> None:
    old, new = (jax.tree_util.tree_leaves_with_path(tree) for tree in (variables, changed))
    moved = [path for (path, before), (_, after) in zip(old, new) if before is not after]
    if moved or len(old) != len(new):
        names = ", ".join(jax.tree_util.keystr(path, simple=True, separator="/") for path in moved[:3])
        raise UserError(
            f"config.train.accumulate = {parts}: this loss changes {names or 'its state'} with every batch, and a "
            "batch in parts would change it otherwise; use 1"
        )
