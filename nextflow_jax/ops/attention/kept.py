"""The name of what attention's backward pass needs of the forward one, by which remat policies may keep it."""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

NAME = "attention"


def keep(x: Shaped[Array, "..."]) -> jax.Array:
    """`x`, named: a result of attention that would have to be computed again for its backward pass."""
    return checkpoint_name(x, NAME)
