"""The product of activations with weights, in the form that the platform's compiler turns into one matrix product."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nextflow_jax.sharding import platform

DimensionNumbers = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def linear_dot(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."],
    dimension_numbers: DimensionNumbers,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Float[Array, "..."]:
    """`lax.dot_general` of x's last dimensions with the kernel's first ones; flax modules take it as `dot_general`.

    On CPU all other dimensions of `x` are merged into one: with several, XLA transposes a copy of the activations for
    the weight gradient, which made a training step of the small decoder up to twice as slow. Elsewhere they stay apart,
    since rows and positions may lie on different mesh axes.
    """
    if platform() != "cpu":
        return lax.dot_general(
            x, kernel, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type
        )
    (contracted, _), _ = dimension_numbers
    split = x.ndim - len(contracted)
    flat_x = x.reshape(-1, math.prod(x.shape[split:]))
    flat_kernel = kernel.reshape(flat_x.shape[1], -1)
    product = jnp.dot(flat_x, flat_kernel, precision=precision, preferred_element_type=preferred_element_type)
    return product.reshape(*x.shape[:split], *kernel.shape[len(contracted) :])


def linear(x: Float[Array, "*rows D"], kernel: Float[Array, "D F"], preferred_element_type: Any = None) -> jax.Array:
    """x @ kernel through `linear_dot`."""
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    return linear_dot(x, kernel, dimensions, preferred_element_type=preferred_element_type)
