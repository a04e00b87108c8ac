"""The blocked entropies against the definition, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.vision.entropy import choice_entropies

TEMPERATURE = 0.3


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain_entropies(points, codes):
    distances = jnp.sum(jnp.square(points[:, :, None] - codes), axis=-1)
    shares = jax.nn.softmax(-distances / TEMPERATURE).reshape(-1, len(codes))
    average = shares.mean(axis=0)
    return -jnp.sum(shares * jnp.log(shares)), -jnp.sum(average * jnp.log(average))


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function, points, codes):
    """Both entropies, and the gradients of a mix of them."""
    mix = lambda points, codes: (lambda both: both[0] + 3 * both[1])(function(points, codes))  # noqa: E731
    return function(points, codes), jax.grad(mix, argnums=(0, 1))(points, codes)


@pytest.mark.parametrize("block", [1, 3 * 7, 2**20])
def test_blocks_have_the_entropies_of_the_whole(block):
    points, codes = random(2, 5, 3), random(7, 3, seed=1)
    ours = with_gradients(functools.partial(choice_entropies, temperature=TEMPERATURE, block=block), points, codes)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours,
        with_gradients(plain_entropies, points, codes),
    )


def test_known_choices():
    """Vectors on their codes are decided; all on one leave the others unused."""
    codes = 10 * jnp.eye(4)
    sample, batch = choice_entropies(codes[None], codes, 0.1)
    np.testing.assert_allclose([sample, batch], [0, np.log(4)], atol=1e-5)
    sample, batch = choice_entropies(jnp.tile(codes[:1], (2, 3, 1)), codes, 0.1)
    np.testing.assert_allclose([sample, batch], [0, 0], atol=1e-5)
    sample, batch = choice_entropies(jnp.zeros((1, 2, 4)), codes, 0.1)
    np.testing.assert_allclose([sample, batch], [2 * np.log(4), np.log(4)], rtol=1e-5)


def test_gradients_need_no_table_either():
    points, codes = jax.ShapeDtypeStruct((2, 512, 8), jnp.float32), jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    blocked = functools.partial(choice_entropies, temperature=TEMPERATURE, block=2**14)
    memory = with_gradients.lower(blocked, points, codes).compile().memory_analysis().temp_size_in_bytes
    assert memory < 2**21 < 1024 * 4096 * 4
