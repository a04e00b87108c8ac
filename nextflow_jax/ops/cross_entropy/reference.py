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


def logits_of(hidden: Float[Array, "B S D"], head: Float[Array, "D V"]) -> Float[Array, "B S V"]:
    """Float32 logits; the product takes its inputs in the dtype of `hidden`."""
    return linear(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def token_losses(logits: Float[Array, "B S V"], targets: Int[Array, "B S"]) -> TokenLosses:
    """The losses of logits, computed in float32."""
    logits = logits.astype(jnp.float32)
    peak = jax.lax.stop_gradient(logits.max(axis=-1))
    log_normaliser = jnp.log(jnp.exp(logits - peak[..., None]).sum(axis=-1)) + peak
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = (target_logit >= peak).astype(jnp.float32)
    return TokenLosses(log_normaliser - target_logit, log_normaliser, correct)


def linear_cross_entropy(
    hidden: Float[Array, "B S D"], head: Float[Array, "D V"], targets: Int[Array, "B S"]
) -> TokenLosses:
    """See `nextflow_jax.ops.cross_entropy.linear_cross_entropy`. Holds B x S x V logits."""
    return token_losses(logits_of(hidden, head), targets)
