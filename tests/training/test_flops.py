"""FLOPs of functions whose count is known by hand."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from nextflow_jax.training.flops import forward_flops, traced_flops

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


def test_all_devices_of_a_sharded_map():
    mesh = Mesh(jax.devices()[:4], ("rows",))
    rows = PartitionSpec("rows")
    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert forward_flops(product, X, W) == 2 * 4 * 8 * 8


def test_kernels_are_counted_apart_block_by_block():
    def kernel(x, w, out):
        @pl.when(pl.program_id(0) >= 0)
        def _():
            out[...] = x[...] @ w[...]

    block = pl.BlockSpec((2, 8), lambda i: (i, 0))
    whole = pl.BlockSpec((8, 8), lambda i: (0, 0))
    call = pl.pallas_call(kernel, out_shape=X, grid=(2,), in_specs=[block, whole], out_specs=block)
    counted = traced_flops(jax.make_jaxpr(lambda x, w: call(x, w) @ w)(X, W))
    assert counted == (2 * 4 * 8 * 8, 2 * 4 * 8 * 8)
