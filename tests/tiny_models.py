"""The smallest models of every kind, random, for the tests of bundles, sampling and the commands that use them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from nextflow_jax.bundle import Bundle, DecoderPart
from nextflow_jax.models.decoder import Decoder, DecoderConfig, DecoderInputs
from nextflow_jax.sampling.settings import SamplingSettings
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.text import train_sentencepiece
from nextflow_jax.vision.cnn import PixelConfig
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import ViTConfig
from nextflow_jax.vocabulary import Vocabulary

FAMILY = ScheduleFamily(ladder=(1, 2, 3), stride=4, sizes=((12, 12), (8, 16)))
"""Grids 1 2 3 for the square picture, 1x1 1x3 2x4 for the wide one."""
TEXTS = ("a red sun", "a blue moon", "the dark side of the moon", "sun and moon", "make it blue")

TOKENIZER_CONFIG = VisionTokenizerConfig(
    family=FAMILY,
    vit=ViTConfig(patch=4, position_grid=(2, 2), transformer=TransformerConfig(16, 1, 2, 16)),
    pixel=PixelConfig(stem=4, multipliers=(1,), encoder_base=8, decoder_base=8, latent=8, groups=2),
    quantizer=QuantizerConfig(codes=24, semantic_dim=3, pixel_dim=5),
    semantic_decoder=TransformerConfig(16, 1, 2, 16),
    teacher_width=8,
)


def random_variables(init, deviation):
    """Variables of the shapes that `init` gives, filled by NumPy: compiling the initialisers takes far longer."""
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        if "scale'" in name or "cluster_size" in name:
            return np.ones(leaf.shape, leaf.dtype)
        return (deviation * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, meta.unbox(jax.eval_shape(init)))


@functools.cache
def text_tokenizer():
    """A sentencepiece model of a few texts."""
    return train_sentencepiece(TEXTS, 300)


@functools.cache
def codec():
    """A random vision tokenizer with 24 codes."""
    images = jnp.zeros((1, *FAMILY.sizes[0], 3))
    tokenizer = VisionTokenizer(TOKENIZER_CONFIG)
    variables = random_variables(lambda: tokenizer.init(jax.random.key(0), images, train=False), 0.5)
    return VisionTokenizerCodec(TOKENIZER_CONFIG, variables, chunk=4)


@functools.cache
def decoder_part(inputs="residual", last_scale_context=False, max_positions=96):
    """A random decoder of two layers and width 32, with weights large enough to make logits differ clearly."""
    vocabulary = Vocabulary(text_tokenizer().size, TOKENIZER_CONFIG.quantizer.codes, pad_multiple=8)
    config = DecoderConfig(
        vocabulary=vocabulary,
        code_dim=TOKENIZER_CONFIG.quantizer.dim,
        max_scales=FAMILY.max_scales + 1,
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_size=8,
        mlp_width=48,
        rope_sections=(1, 1, 2),
        rope_base=100.0,
    )
    sequence = SequenceConfig(inputs=inputs)
    decoder, inputs = Decoder(config), DecoderInputs.zeros(1, 1, sequence.taps)
    variables = random_variables(lambda: decoder.init(jax.random.key(0), inputs), 0.3)
    return DecoderPart(config, variables, sequence, last_scale_context, max_positions)


def bundle(**options):
    """The tiny bundle; `options` go to `decoder_part`."""
    settings = SamplingSettings(temperature=1.0, top_k=0)
    return Bundle(codec(), text_tokenizer(), decoder_part(**options), settings, {"step": 7})


def picture(seed, size=(12, 12)):
    """A random picture."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
