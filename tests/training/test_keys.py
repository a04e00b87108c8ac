"""Keys depend on seed, name and step, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.training.keys import stream_key


def data(*arguments):
    return tuple(np.asarray(jax.random.key_data(stream_key(*arguments))).tolist())


def test_equal_arguments_give_equal_keys_traced_or_not():
    traced = jax.jit(lambda step: stream_key(3, "loss", step))(jnp.asarray(7))
    assert tuple(np.asarray(jax.random.key_data(traced)).tolist()) == data(3, "loss", 7) == data(3, "loss", 7)


def test_seed_name_and_step_all_matter():
    keys = {data(seed, name, step) for seed in (0, 1) for name in ("init", "loss") for step in range(5)}
    assert len(keys) == 20
