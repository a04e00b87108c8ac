"""Cross-entropy from logits, and the plain head + cross-entropy that keeps them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextflow_jax.ops.linear import linear


class TokenLosses(NamedTuple):
    """What each position contributes to the loss and to the metrics, before weights; all float32."""

    cross_entropy: Float[Array, "B S"]
    """-log p(target), in nats."""
    log_normaliser: Float[Array, "B S"]
    """log-sum-exp of the logits, for the z-loss."""
    correct: Float[Array, "B S"]
    """1 where no logit exceeds the target's (ties count), else 0."""
    smoothed: Float[Array, "B S"]
    """What is to be minimised: the cross-entropy with the smoothed target; without smoothing, `cross_entropy`."""


class Statistics(NamedTuple):
    """What the losses need to know of each position's logits; float32."""

    log_normaliser: Float[Array, "*tokens"]
    """log-sum-exp."""
    target: Float[Array, "*tokens"]
    """The target's logit."""
    peak: Float[Array, "*tokens"]
    """The largest; no gradient passes."""
    sum: Float[Array, "*tokens"]
    """The sum of all; 0 where it is not needed."""


def logits_of(hidden: Float[Array, "B S D"], head: Float[Array, "D V"]) -> Float[Array, "B S V"]:
    """Float32 logits; the product takes its inputs in the dtype of `hidden`."""
    return linear(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def token_losses(
    logits: Float[Array, "B S V"], targets: Int[Array, "B S"], label_smoothing: float = 0.0
) -> TokenLosses:
    """The losses of logits, computed in float32; see `nextflow_jax.ops.cross_entropy.linear_cross_entropy`."""
    logits = logits.astype(jnp.float32)
    peak = jax.lax.stop_gradient(logits.max(axis=-1))
    log_normaliser = jnp.log(jnp.exp(logits - peak[..., None]).sum(axis=-1)) + peak
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    total = logits.sum(axis=-1) if label_smoothing else jnp.zeros_like(target)
    return losses_of(Statistics(log_normaliser, target, peak, total), logits.shape[-1], label_smoothing)


def losses_of(statistics: Statistics, size: int, label_smoothing: float) -> TokenLosses:
    """The losses of positions with these statistics of `size` logits each."""
    cross_entropy = smoothed = statistics.log_normaliser - statistics.target
    if label_smoothing:
        mean_cross_entropy = statistics.log_normaliser - statistics.sum / size
        smoothed = (1 - label_smoothing) * cross_entropy + label_smoothing * mean_cross_entropy
    correct = jax.lax.stop_gradient(statistics.target >= statistics.peak).astype(jnp.float32)
    return TokenLosses(cross_entropy, statistics.log_normaliser, correct, smoothed)


def linear_cross_entropy(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    *,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """See `nextflow_jax.ops.cross_entropy.linear_cross_entropy`. Holds B x S x V logits."""
    return token_losses(logits_of(hidden, head), targets, label_smoothing)
