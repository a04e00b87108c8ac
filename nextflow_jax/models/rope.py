"""Multi-scale 3D rotary positions: each frequency of a head turns with time, row or column.

With positions (t, t, t), as text has, this is the ordinary rotary embedding (RoFormer, arXiv 2104.09864); sections and
the pairing of dimension i with i + A/2 are Qwen2.5-VL's (arXiv 2502.13923), so its weights fit. What the positions of a
vision token are is decided in nextflow_jax/sequence.py.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Rotation(NamedTuple):
    """Cosines and sines of every position's angles, float32."""

    cos: Float[Array, "B S half"]
    sin: Float[Array, "B S half"]


def make_rotation(
    positions: Float[Array, "B S 3"], head_size: int, base: float, sections: tuple[int, int, int]
) -> Rotation:
    """The rotation of every position.

    Args:
      positions: (time, row, column).
      head_size: A.
      base: frequency i is base^(-2i/A) radians a unit of position.
      sections: how many frequencies, from the fastest, turn with time, then with row, then with column.
    """
    axis = np.repeat(np.arange(3), sections)
    frequency = (base ** (-np.arange(head_size // 2) * 2.0 / head_size)).astype(np.float32)
    angle = positions.astype(jnp.float32)[..., axis] * frequency
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B S H A"], rotation: Rotation) -> Float[Array, "B S H A"]:
    """Turns each pair (x[i], x[i + A/2]) by its angle; computed in float32, returned in the dtype of `x`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
