"""What is packed comes back by name, through a compiled function, in one array."""

import jax
import jax.numpy as jnp

from nextflow_jax.training.packed_metrics import PackedMetrics


def test_what_goes_in_comes_out_by_name():
    def step(x):
        return PackedMetrics.of({"loss": (x * 3, x), "bad": (jnp.zeros(()), jnp.ones((), jnp.int32))})

    packed = jax.jit(step)(jnp.float32(2))
    assert len(jax.tree.leaves(packed)) == 1
    assert packed.fetch() == {"loss": (6.0, 2.0), "bad": (0.0, 1.0)}
