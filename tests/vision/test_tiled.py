import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.vision.cnn import PixelConfig, PixelDecoder
from nextflow_jax.vision.tiled import tiled_decode

CONFIG = PixelConfig(
    stem=1, multipliers=(1, 1, 2), decoder_base=4, decoder_blocks=1, latent=3, groups=2, attention=True, remat="full"
)


def both_ways(config, rows, dtype=jnp.float32):
    decoder = PixelDecoder(config, dtype)
    return (
        jax.jit(lambda params, x: decoder.apply({"params": params}, x)),
        jax.jit(lambda params, x: tiled_decode(config, dtype, params, x, rows)),
    )


@pytest.mark.parametrize(
    ("grid", "rows", "blocks"),
    [((9, 3), 1, 1), ((9, 3), 10, 1), ((8, 4), 6, 2), ((8, 4), 64, 1)],
    ids=["of one row", "that do not divide the picture", "narrower than what they see", "higher than the picture"],
)
def test_strips_give_the_whole_picture(random_variables, grid, rows, blocks):
    config = dataclasses.replace(CONFIG, decoder_blocks=blocks)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *grid, 3)), jnp.float32)
    params = random_variables(PixelDecoder(config, jnp.float32), x)["params"]
    whole, tiled = (np.asarray(way(params, x)) for way in both_ways(config, rows))
    assert whole.shape == tiled.shape == (2, grid[0] * 4, grid[1] * 4, 3)
    assert np.std(whole) > 0.1
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_strips_join_the_patches_of_a_stem(random_variables):
    config = PixelConfig(stem=2, multipliers=(1, 2), decoder_base=4, latent=3, groups=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5, 3)), jnp.float32)
    params = random_variables(PixelDecoder(config, jnp.float32), x)["params"]
    whole, tiled = (np.asarray(way(params, x)) for way in both_ways(config, 4))
    assert tiled.shape == (1, 24, 20, 3)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_reduced_precision_stays_near_the_whole_picture(random_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 4, 3)), jnp.float32)
    config = dataclasses.replace(CONFIG, multipliers=(1, 2))
    params = random_variables(PixelDecoder(config, jnp.float32), x)["params"]
    whole, tiled = (np.asarray(way(params, x)) for way in both_ways(config, 4, jnp.bfloat16))
    np.testing.assert_allclose(tiled, whole, atol=0.05 * np.abs(whole).max())


def test_strips_take_a_fraction_of_the_memory():
    """Compiled only: a square picture of 256 pixels in strips of 16 rows."""
    config = dataclasses.replace(CONFIG, multipliers=(1, 1, 1), decoder_base=16, attention=False)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = meta.unbox(jax.eval_shape(PixelDecoder(config, jnp.float32).init, jax.random.key(0), x))["params"]
    whole, tiled = (
        way.lower(params, x).compile().memory_analysis().temp_size_in_bytes for way in both_ways(config, 16)
    )
    assert tiled < 0.4 * whole
