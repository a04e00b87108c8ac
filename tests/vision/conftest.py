"""A tokenizer small enough to compile in seconds, with two picture sizes, one of them not square."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.vision.cnn import PixelConfig
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import ViTConfig

TINY_STACK = TransformerConfig(width=8, layers=1, heads=2, mlp_width=16)


@pytest.fixture(scope="session")
def config():
    """Sizes 16x16 and 16x24 at stride 4: grids up to 4x4 and 4x6."""
    return VisionTokenizerConfig(
        family=ScheduleFamily(ladder=(1, 2, 4), stride=4, sizes=((16, 16), (16, 24))),
        vit=ViTConfig(patch=4, position_grid=(4, 4), transformer=TINY_STACK),
        pixel=PixelConfig(stem=2, multipliers=(1, 2), encoder_base=8, decoder_base=8, latent=8, groups=4),
        quantizer=QuantizerConfig(codes=32, semantic_dim=3, pixel_dim=5, refiners=2),
        semantic_decoder=TINY_STACK,
        teacher_width=8,
    )


@pytest.fixture(scope="session")
def random_variables():
    """A function: like `module.init`, but unboxed, random everywhere (biases too) and without compiling anything."""

    def make(module, *args, seed=0, **kwargs):
        generator = np.random.default_rng(seed)
        abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))

        def fill(path, leaf):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return jnp.zeros(leaf.shape, leaf.dtype)
            scale = 1.0 if "codebook" in str(path) else max(1, math.prod(leaf.shape[:-1])) ** -0.5
            return jnp.asarray(generator.normal(size=leaf.shape) * scale, leaf.dtype)

        return jax.tree_util.tree_map_with_path(fill, meta.unbox(abstract))

    return make


@pytest.fixture(scope="session")
def variables(config, random_variables):
    """Of the tiny tokenizer."""
    return random_variables(VisionTokenizer(config), jnp.zeros((1, 16, 16, 3)), train=False)


@pytest.fixture(scope="session")
def images():
    """Float pictures in [-1, 1] of both sizes."""
    generator = np.random.default_rng(2)
    shapes = {(16, 16): (8, 16, 16, 3), (16, 24): (8, 16, 24, 3)}
    return {size: jnp.asarray(generator.uniform(-1, 1, shape), jnp.float32) for size, shape in shapes.items()}
