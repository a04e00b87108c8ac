import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision.cnn import REMAT_POLICIES, PixelConfig, PixelDecoder, PixelEncoder

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
    with pytest.raises(UserError, match="config.projection_size = 2"):
        preflight(dataclasses.replace(CONFIG, projection_size=2))
    with pytest.raises(UserError, match="config.remat = 'dots'"):
        preflight(dataclasses.replace(CONFIG, remat="dots"))


def shapes_of(module, x):
    abstract = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    return {name: leaf.shape for name, leaf in flatten_dict(abstract["params"], sep="/").items()}


def block(name, before, after):
    shapes = {
        "norm_1/norm/scale": (before,),
        "norm_1/norm/bias": (before,),
        "conv_1/kernel": (3, 3, before, after),
        "conv_1/bias": (after,),
        "norm_2/norm/scale": (after,),
        "norm_2/norm/bias": (after,),
        "conv_2/kernel": (3, 3, after, after),
        "conv_2/bias": (after,),
    }
    if before != after:
        shapes |= {"skip/kernel": (1, 1, before, after), "skip/bias": (after,)}
    return {f"{name}/{array}": shape for array, shape in shapes.items()}


def conv(name, before, after, size=3):
    return {f"{name}/kernel": (size, size, before, after), f"{name}/bias": (after,)}


def attention(name, width):
    shapes = {"norm/scale": (width,), "norm/bias": (width,)}
    for part in ("query", "key", "value", "out"):
        shapes |= conv(part, width, width, size=1)
    return {f"{name}/{array}": shape for array, shape in shapes.items()}


def test_the_arrays_are_those_of_a_published_vqgan():
    """Built up here as the published modules build them (VAR's basic_vae.py), with channels 1/32 of theirs."""
    config = PixelConfig(
        stem=1,
        multipliers=(1, 1, 2, 2, 4),
        encoder_base=4,
        encoder_blocks=2,
        decoder_base=4,
        decoder_blocks=3,
        latent=8,
        groups=2,
        attention=True,
    )
    middle = {**block("middle_block_0", 16, 16), **attention("middle_attention", 16), **block("middle_block_1", 16, 16)}
    encoder, decoder, before = conv("stem", 3, 4), conv("stem", 8, 16), 4
    for level, width in enumerate((4, 4, 8, 8, 16)):
        for index in range(2):
            encoder |= block(f"level_{level}_block_{index}", before, width)
            before = width
            encoder |= attention(f"level_4_attention_{index}", 16) if level == 4 else {}
        encoder |= conv(f"down_{level}", width, width) if level < 4 else {}
    for level, width in reversed(list(enumerate((4, 4, 8, 8, 16)))):
        for index in range(3):
            decoder |= block(f"level_{level}_block_{index}", before, width)
            before = width
            decoder |= attention(f"level_4_attention_{index}", 16) if level == 4 else {}
        decoder |= conv(f"up_{level}", width, width) if level else {}
    last = {"out_norm/norm/scale": (16,), "out_norm/norm/bias": (16,), **conv("out", 16, 8)}
    assert shapes_of(PixelEncoder(config, jnp.float32), jnp.zeros((1, 32, 32, 3))) == {**encoder, **middle, **last}
    last = {"out_norm/norm/scale": (4,), "out_norm/norm/bias": (4,), **conv("out", 4, 3)}
    assert shapes_of(PixelDecoder(config, jnp.float32), jnp.zeros((1, 2, 2, 8))) == {**decoder, **middle, **last}


@pytest.mark.parametrize("remat", [name for name in REMAT_POLICIES if name != "none"])
def test_remat_changes_memory_only(random_variables, remat):
    config = dataclasses.replace(CONFIG, attention=True)
    latents = random(1, 3, 2, 6)
    variables = random_variables(PixelDecoder(config, jnp.float32), latents)

    def gradients(config):
        decoder = PixelDecoder(config, jnp.float32)
        return jax.grad(lambda variables: jnp.sum(jnp.sin(decoder.apply(variables, latents))))

    less = gradients(dataclasses.replace(config, remat=remat))
    assert "remat" in str(jax.make_jaxpr(less)(variables))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        jax.jit(gradients(config))(variables),
        jax.jit(less)(variables),
    )


def test_what_remat_keeps_between_forward_and_backward(random_variables):
    """Of one block: its input and parameters ("full"), the outputs of its convolutions too ("convolutions")."""
    x = jnp.zeros((1, 4, 4, 4))
    kept = {}
    for remat in REMAT_POLICIES:
        config = PixelConfig(
            stem=1, multipliers=(1,), decoder_base=4, decoder_blocks=4, latent=4, groups=2, remat=remat
        )
        decoder = PixelDecoder(config, jnp.float32)
        variables = random_variables(decoder, x)
        residuals = jax.eval_shape(lambda v, decoder=decoder: jax.vjp(decoder.apply, v, x)[1], variables)
        kept[remat] = sum(leaf.shape == x.shape for leaf in jax.tree.leaves(residuals))
    assert kept["full"] < kept["convolutions"] < kept["none"]


def test_reduced_precision_is_of_the_computation_only(random_variables):
    latents = random(1, 4, 4, 6)
    variables = random_variables(PixelDecoder(CONFIG, jnp.float32), latents)
    exact, rough = (
        jax.jit(PixelDecoder(CONFIG, dtype).apply)(variables, latents) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rough.dtype == jnp.float32
    assert 1e-4 < float(jnp.max(jnp.abs(exact - rough))) < 0.1 * float(jnp.max(jnp.abs(exact)))
