"""Draws are those of jax.random.categorical, whatever the key, shape and platform's way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.ops import categorical as module
from nextflow_jax.ops.categorical import categorical, first_largest


def logits_of(shape, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3.0, size=shape).astype(np.float32)
    logits[generator.random(shape) < 0.3] = -np.inf
    logits[..., 0] = 0.0
    return jnp.asarray(logits)


def jax_draws(key, logits):
    return jax.vmap(jax.random.categorical)(key, logits)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 7), (2, 33, 500)])
@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5])
def test_draws_are_jaxs_own(shape, seed):
    key = jax.random.split(jax.random.key(seed), shape[0])
    logits = logits_of(shape, seed % 97)
    drawn = jax.jit(categorical)(key, logits)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, jax_draws(key, logits))
    assert np.isfinite(np.take_along_axis(logits, np.asarray(drawn)[..., None], axis=-1)).all()


def test_noise_is_jaxs_own_bit_for_bit():
    key = jax.random.split(jax.random.key(4), 3)
    expected = jax.vmap(lambda one: jax.random.gumbel(one, (50, 64)))(key)
    np.testing.assert_array_equal(jax.jit(module._gumbel, static_argnums=1)(key, (50, 64)), expected)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_keep_their_draws(impl):
    key = jax.random.split(jax.random.key(3, impl=impl), 2)
    logits = logits_of((2, 3, 40))
    np.testing.assert_array_equal(categorical(key, logits), jax_draws(key, logits))


def test_other_platforms_and_dtypes_take_jaxs_way(monkeypatch):
    key, logits = jax.random.split(jax.random.key(3), 2), logits_of((2, 3, 40))
    half = logits.astype(jnp.bfloat16)
    np.testing.assert_array_equal(categorical(key, half), jax_draws(key, half))
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    monkeypatch.setattr(module, "_gumbel", None)
    np.testing.assert_array_equal(categorical(key, logits), jax_draws(key, logits))
    np.testing.assert_array_equal(first_largest(logits), jnp.argmax(logits, axis=-1))


def test_the_first_of_equals_is_the_largest():
    values = np.random.default_rng(0).integers(0, 5, (40, 300)).astype(np.float32)
    values[:3] = [[-np.inf], [np.inf], [7.0]]
    np.testing.assert_array_equal(jax.jit(first_largest)(values), np.argmax(values, axis=-1))
    broken = first_largest(jnp.full((2, 9), jnp.nan))
    assert ((broken >= 0) & (broken < 9)).all()
