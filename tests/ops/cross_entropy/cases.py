"""Random hidden states, heads and targets, and the losses with gradients of an implementation on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.ops.cross_entropy import reference


@functools.cache
def case(length=21, vocabulary=40, width=8, rows=2):
    """Hidden states [rows, length, width], head, targets."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, length, width)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(width, vocabulary)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, vocabulary, (rows, length)), jnp.int32)


def weighted(function, label_smoothing, targets, hidden, head):
    """A random mix of all losses, as an objective with weights, z-loss and smoothing has; and the losses."""
    losses = function(hidden, head, targets, label_smoothing=label_smoothing)
    mix = jnp.asarray(np.random.default_rng(1).normal(size=(3, *targets.shape)), jnp.float32)
    total = mix[0] * losses.cross_entropy + mix[1] * losses.log_normaliser + mix[2] * losses.smoothed
    return jnp.sum(total), losses


def gradients(function, label_smoothing, targets):
    """hidden, head -> (value, losses), gradients; compiled."""
    value = functools.partial(weighted, function, label_smoothing, targets)
    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))


def check(got, expected, tolerance=1e-5):
    """The largest difference of any array is at most `tolerance` of its largest value."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b, np.float64)
        assert np.max(np.abs(np.asarray(a, np.float64) - b)) <= tolerance * max(1.0, np.max(np.abs(b)))


def plain(hidden, head, targets, label_smoothing):
    """Value, losses and gradients of the reference."""
    return gradients(reference.linear_cross_entropy, label_smoothing, targets)(hidden, head)
