"""How gradients get past the choice of codes, which has none: straight-through, or the rotation trick.

Both give the accumulated map forward. Backward, straight-through copies the gradient of the map to the features as it
is (Bengio et al., arXiv 1308.3432); the rotation trick writes the map as a rotated and stretched copy of the features,
rotation and stretch held constant, so that the gradient turns with the vector it belongs to (Fifty et al.,
arXiv 2410.06424). Here one vector is one cell's half: the halves go to different decoders, and a rotation of both
together would mix their gradients.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SHORTEST = 1e-6
"""Lengths are not divided by less."""


def straight_through(features: Float[Array, "*B C"], accumulated: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """`accumulated`, with the gradient of the result also passed to `features` unchanged."""
    return accumulated + (features - jax.lax.stop_gradient(features))


def rotation(
    features: Float[Array, "*B C"], accumulated: Float[Array, "*B C"], halves: Sequence[int]
) -> Float[Array, "*B C"]:
    """`accumulated`, with the gradient of the result also passed to `features` through each vector's rotation.

    Args:
      features: e, what was quantised.
      accumulated: q, what it became.
      halves: widths of the parts that are vectors of their own; they add up to C.
    """
    ends = [sum(halves[: i + 1]) for i in range(len(halves) - 1)]
    parts = zip(jnp.split(features, ends, axis=-1), jnp.split(accumulated, ends, axis=-1))
    turned = jnp.concatenate([_turn(part, target) for part, target in parts], axis=-1)
    return accumulated + (turned - jax.lax.stop_gradient(turned))


def _turn(features: Float[Array, "*B c"], target: Float[Array, "*B c"]) -> Float[Array, "*B c"]:
    """R e |q| / |e| with R the rotation from e to q in their plane: I - 2 r r' + 2 q e' of the unit vectors."""
    source, target = jax.lax.stop_gradient((features, target))
    length, target_length = _length(source), _length(target)
    source, direction = source / length, target / target_length
    between = (source + direction) / _length(source + direction)
    dot = lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True)  # noqa: E731
    turned = features - 2 * dot(between, features) * between + 2 * dot(source, features) * direction
    return turned * (target_length / length)


def _length(vectors: Float[Array, "*B c"]) -> Float[Array, "*B 1"]:
    return jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), SHORTEST)
