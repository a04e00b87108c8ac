"""FLOPs of functions whose count is known by hand."""

import jax
import jax.numpy as jnp

from nextflow_jax.training.flops import forward_flops

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def test_products_scans_and_nested_functions():
    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (jax.checkpoint(jnp.tanh)(c @ w), None), x, length=5)[0]

    assert forward_flops(jnp.matmul, X, W) == 2 * 4 * 8 * 8
    assert forward_flops(jax.jit(scanned), X, W) == 5 * 2 * 4 * 8 * 8
    assert forward_flops(lambda x, w: jnp.einsum("ab,cb->ac", x, w) + 1, X, W) == 2 * 4 * 8 * 8


def test_convolutions():
    image = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert forward_flops(convolve, image, kernel) == 2 * (2 * 3 * 3 * 5) * (3 * 3 * 3)
