"""Statistics of softmax(hidden @ head) on one device, one block of columns after another, and their gradients.

Forward and backward compute the same block of logits and throw it away: four products in place of three, and no more
than N x `block` logits at any time. Blocks are cut along the vocabulary, not along the tokens: each block of the head's
gradient is then one product over all tokens, summed in float32 inside it, whatever the dtype it is kept in. Cut along
the tokens, the whole gradient would be added to in every step, and need float32 (2.5 GiB for 3584 x 184,832) for that.

The gradient cannot be had in the forward pass, as Liger-Kernel does (arXiv 2410.10989): it needs the tokens' weights,
and those are applied to the losses later.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.cross_entropy.reference import Statistics

LOWEST = float(jnp.finfo(jnp.float32).min)
"""Stands for minus infinity: differences of two of them are 0, not nan."""


class Parts(NamedTuple):
    """Statistics of some of the columns, which further columns can be added to; float32."""

    peak: Float[Array, "N"]
    exp_sum: Float[Array, "N"]
    """Of exp(logit - peak)."""
    target: Float[Array, "N"]
    sum: Float[Array, "N"]


def forward(
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "N"],
    columns: Int[Array, ""],
    *,
    block: int,
    with_sum: bool,
) -> Parts:
    """The statistics of each token's logits over the first `columns` columns of the head.

    Args:
      hidden: in the dtype of the product, which is summed in float32.
      head: of the same dtype; V is a multiple of `block`.
      targets: columns; any other number means none.
      columns: those that count; the rest is padding.
      block: columns at once.
      with_sum: whether to sum the logits, too.
    """
    nothing = jnp.zeros(targets.shape, jnp.float32)

    def add(index: Int[Array, ""], parts: Parts) -> Parts:
        logits, real, is_target = _logits(index, hidden, head, targets, columns, block)
        peak = jnp.maximum(parts.peak, logits.max(axis=-1))
        exp_sum = parts.exp_sum * jnp.exp(parts.peak - peak) + jnp.exp(logits - peak[:, None]).sum(axis=-1)
        target = parts.target + jnp.where(is_target, logits, 0.0).sum(axis=-1)
        total = parts.sum + jnp.where(real, logits, 0.0).sum(axis=-1) if with_sum else parts.sum
        return Parts(peak, exp_sum, target, total)

    return lax.fori_loop(0, head.shape[1] // block, add, Parts(nothing + LOWEST, nothing, nothing, nothing))


def backward(
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "N"],
    columns: Int[Array, ""],
    log_normaliser: Float[Array, "N"],
    gradient: Statistics,
    *,
    block: int,
) -> tuple[Float[Array, "N D"], Float[Array, "D V"]]:
    """Gradients of the hidden states (float32) and of the head (its dtype); see `forward`.

    Args:
      hidden: as in `forward`.
      head: as in `forward`.
      targets: as in `forward`.
      columns: as in `forward`.
      log_normaliser: over all columns, those on other devices included.
      gradient: of the statistics; that of `peak` is left out.
      block: columns at once.
    """

    def add(index: Int[Array, ""], gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_gradient, head_gradient = gradients
        logits, real, is_target = _logits(index, hidden, head, targets, columns, block)
        share = jnp.exp(logits - log_normaliser[:, None])
        slope = gradient.log_normaliser[:, None] * share + jnp.where(is_target, gradient.target[:, None], 0.0)
        slope = slope + jnp.where(real, gradient.sum[:, None], 0.0)
        slope = slope.astype(hidden.dtype)
        weights = lax.dynamic_slice_in_dim(head, index * block, block, axis=1)
        hidden_gradient += _product(slope, weights, (1, 1))
        block_gradient = _product(hidden, slope, (0, 0)).astype(head.dtype)
        head_gradient = lax.dynamic_update_slice_in_dim(head_gradient, block_gradient, index * block, axis=1)
        return hidden_gradient, head_gradient

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(head.shape, head.dtype))
    return lax.fori_loop(0, head.shape[1] // block, add, start)


def _logits(
    index: Int[Array, ""],
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "N"],
    columns: Int[Array, ""],
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A block of logits, [N, block], `LOWEST` in padding; which columns are real; which is each token's target."""
    weights = lax.dynamic_slice_in_dim(head, index * block, block, axis=1)
    column = index * block + jnp.arange(block, dtype=jnp.int32)
    real = (column < columns)[None, :]
    logits = jnp.where(real, _product(hidden, weights, (1, 0)), LOWEST)
    # Another device's target may have the number of a column of padding here.
    return logits, real, real & (column[None, :] == targets[:, None])


def _product(left: jax.Array, right: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)
