"""Presets have the parameters of the published models, and their largest arrays shard."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig, make_mesh, make_rules, shardings_of
from nextflow_jax.vision.cnn import PixelDecoder
from nextflow_jax.vision.dual_encoder import DualEncoder
from nextflow_jax.vision.presets import SIGLIP2, SIGLIP2_VOCABULARY, nextflow_tokenizer, siglip2
from nextflow_jax.vision.tokenizer import VisionTokenizer


def abstract_params(config):
    images, tokens, lengths = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 1), jnp.int32), jnp.ones((1,), jnp.int32)
    encoder = DualEncoder(config, SIGLIP2_VOCABULARY)
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, tokens, lengths)["params"])


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(meta.unbox(tree)))


def stack(width, layers, mlp):
    return layers * (4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width) + 2 * width


@pytest.mark.parametrize("name", SIGLIP2)
def test_sizes_are_the_published_ones(name):
    config = siglip2(name)
    preflight(config)
    params = abstract_params(config)
    vision, text = config.vit.transformer, config.text
    width = vision.width
    tower = width * (16 * 16 * 3 + 1) + 16 * 16 * width + stack(width, vision.layers, vision.mlp_width)
    assert size(params["vision"]) == tower
    texts = (SIGLIP2_VOCABULARY + 64) * text.width + stack(text.width, text.layers, text.mlp_width)
    assert size(params["text"]) + size(params["text_projection"]) == texts + (text.width + 1) * width


def test_so400m_has_400_million_parameters_a_tower_and_giant_a_billion():
    so400m, giant = (abstract_params(siglip2(name)) for name in ("so400m-patch16", "giant-patch16"))
    np.testing.assert_allclose(size(so400m["vision"]), 412e6, rtol=0.01)
    np.testing.assert_allclose(size(so400m["text"]["transformer"]), 412e6, rtol=0.01)
    np.testing.assert_allclose(size(giant["vision"]), 1.13e9, rtol=0.02)


def test_so400m_shards_over_eight_devices():
    params = abstract_params(siglip2("so400m-patch16"))
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    shardings = jax.tree.leaves(shardings_of(params, mesh, make_rules()))
    leaves = jax.tree.leaves(meta.unbox(params))
    local = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in zip(leaves, shardings, strict=True))
    assert local < size(params) / 8 * 1.01


def test_unknown_sizes_are_named():
    with pytest.raises(UserError, match="SigLIP 2 size 'so400m' is not known"):
        siglip2("so400m")


def test_the_tokenizer_has_the_published_parts():
    config = nextflow_tokenizer(256)
    preflight(config)
    tokenizer, images = VisionTokenizer(config), jnp.zeros((1, 256, 256, 3))
    outputs, variables = jax.eval_shape(lambda: tokenizer.init_with_output(jax.random.key(0), images, train=False))
    params = variables["params"]
    assert size(params["semantic_encoder"]) == size(abstract_params(siglip2("so400m-patch16"))["vision"])
    assert outputs.reconstruction.shape == (1, 256, 256, 3) and outputs.semantic.shape == (1, 16, 16, 1152)
    assert outputs.codes.shape == (1, 900) and (config.quantizer.codes, config.quantizer.dim) == (16384, 40)
    shardings_of(params, make_mesh(MeshConfig(data=1, fsdp=8)), make_rules())


@pytest.mark.parametrize(("level", "tokens"), [(512, 3684), (1024, 10084)])
def test_levels_differ_in_their_schedules_only(level, tokens):
    config = nextflow_tokenizer(level)
    preflight(config)
    assert config.family.schedule((level, level)).num_tokens == tokens and len(config.family.sizes) == 41
    assert dataclasses.replace(config, family=nextflow_tokenizer(256).family) == nextflow_tokenizer(256)


def test_the_enlarged_decoder_doubles_channels_and_blocks():
    """Four times the weights a block, and two blocks more on three a level."""
    configs = [nextflow_tokenizer(256, enlarged_decoder=choice).pixel for choice in (False, True)]
    latents = jnp.zeros((1, 2, 2, 256))
    plain, enlarged = (
        size(jax.eval_shape(lambda c=c: PixelDecoder(c, jnp.float32).init(jax.random.key(0), latents))) for c in configs
    )
    assert 4 < enlarged / plain < 4 * 5 / 3
    assert dataclasses.replace(configs[1], decoder_base=128, decoder_blocks=3) == configs[0]


def test_the_single_codebook_baseline_keeps_the_pixel_half():
    single, dual = nextflow_tokenizer(256, semantic=False), nextflow_tokenizer(256)
    preflight(single)
    assert (single.quantizer.semantic_dim, single.quantizer.dim, single.pixel) == (0, 8, dual.pixel)
