import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision.cnn import NormAct, PixelConfig, PixelDecoder, PixelEncoder, ResidualBlock

CONFIG = PixelConfig(stem=2, multipliers=(1, 2), encoder_base=4, decoder_base=8, latent=6, groups=2)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, stem=1, multipliers=(1, 1, 2))])
def test_the_grid_is_the_picture_over_the_stride(config):
    images = jax.ShapeDtypeStruct((2, 16, 24, 3), jnp.float32)
    encoder, decoder = PixelEncoder(config, jnp.float32), PixelDecoder(config, jnp.float32)
    latents, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    assert config.stride == 4
    assert latents.shape == (2, 4, 6, config.latent)
    pictures, _ = jax.eval_shape(decoder.init_with_output, jax.random.key(0), latents)
    assert pictures.shape == images.shape
    assert pictures.dtype == jnp.float32


def test_encoder_and_decoder_have_their_own_width_and_depth():
    wide = dataclasses.replace(CONFIG, decoder_base=16, decoder_blocks=3)
    latents, images = jnp.zeros((1, 4, 4, 6)), jnp.zeros((1, 16, 16, 3))
    for module, x, changes in ((PixelEncoder, images, False), (PixelDecoder, latents, True)):
        small, large = (
            jax.eval_shape(module(config, jnp.float32).init, jax.random.key(0), x) for config in (CONFIG, wide)
        )
        assert (jax.tree.structure(small) != jax.tree.structure(large)) == changes


def test_group_norm_is_over_the_grid_and_the_channels_of_a_group():
    x = random(2, 3, 5, 4) * 3 + 1
    params = {"params": {"norm": {"scale": random(4, seed=1), "bias": random(4, seed=2)}}}
    grouped = np.asarray(x).reshape(2, 3, 5, 2, 2)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(grouped.var(axis=(1, 2, 4), keepdims=True) + 1e-6)).reshape(x.shape)
    value = normed * params["params"]["norm"]["scale"] + params["params"]["norm"]["bias"]
    out = NormAct(2, jnp.float32).apply(params, x)
    np.testing.assert_allclose(out, value / (1 + np.exp(-value)), atol=1e-5)


def test_a_residual_block_without_convolutions_passes_its_input(random_variables):
    x = random(1, 4, 4, 4)
    block = ResidualBlock(4, 2, jnp.float32)
    params = random_variables(block, x)
    params["params"]["conv_2"] = jax.tree.map(jnp.zeros_like, params["params"]["conv_2"])
    np.testing.assert_allclose(jax.jit(block.apply)(params, x), x, atol=1e-6)


def test_pixels_lie_where_their_cell_lies(random_variables):
    """A change in one corner cell of the latents stays near that corner of the picture."""
    config = PixelConfig(stem=2, multipliers=(1,), decoder_base=4, decoder_blocks=0, latent=3, groups=4)
    decoder, latents = PixelDecoder(config, jnp.float32), random(1, 6, 8, 3)
    params = random_variables(decoder, latents)
    corner = jax.jit(jax.grad(lambda latents: jnp.sum(decoder.apply(params, latents)[:, :2, -2:])))
    strength = np.abs(corner(latents)[0]).sum(axis=-1)
    reach = strength > strength.max() * 0.2
    rows, columns = np.nonzero(reach)
    assert rows.max() <= 2
    assert columns.min() >= 5


def test_impossible_channels_are_named():
    with pytest.raises(UserError, match=r"config.multipliers = \(\)"):
        preflight(dataclasses.replace(CONFIG, multipliers=()))
    with pytest.raises(UserError, match=r"config.decoder_base = 9.*use 10"):
        preflight(dataclasses.replace(CONFIG, decoder_base=9))
