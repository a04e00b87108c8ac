"""Magnitudes of the residual stream after each layer, for whoever asks for them; nothing is computed for others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COLLECTION = "magnitudes"
"""The collection that must be mutable for `watch` to write; arrays [layers, B, S], float32:"""
LARGEST = "largest"
"""the largest absolute value of the vector at each position,"""
MEAN_SQUARE = "mean_square"
"""and the mean of its squares. Both need no word from other devices, which hold other positions."""


def watch(module: nn.Module, x: Float[Array, "B S D"]) -> None:
    """Leaves the magnitudes of `x` in the collection if the caller of the model made it mutable."""
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        size = jnp.abs(jax.lax.stop_gradient(x).astype(jnp.float32))
        for name, value in ((LARGEST, jnp.max(size, axis=-1)), (MEAN_SQUARE, jnp.mean(jnp.square(size), axis=-1))):
            module.sow(COLLECTION, name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
