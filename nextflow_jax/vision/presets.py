"""Published sizes by name: SigLIP 2's dual encoders, the NextFlow tokenizer."""

import dataclasses
from typing import NamedTuple

from nextflow_jax.config import choose
from nextflow_jax.scales import LEVEL_STRIDE, level_family
from nextflow_jax.vision.cnn import PixelConfig
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.dual_encoder import DualEncoderConfig
from nextflow_jax.vision.tokenizer import VisionTokenizerConfig
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import ViTConfig

SIGLIP2_VOCABULARY = 256_000
"""Token ids of SigLIP 2's text tokenizer (Gemma's)."""


class Towers(NamedTuple):
    """The two stacks of a dual encoder."""

    vision: TransformerConfig
    text: TransformerConfig


_BASE = TransformerConfig(width=768, layers=12, heads=12, mlp_width=3072)
_LARGE = TransformerConfig(width=1024, layers=24, heads=16, mlp_width=4096)
_SO400M = TransformerConfig(width=1152, layers=27, heads=16, mlp_width=4304)
_GIANT = TransformerConfig(width=1536, layers=40, heads=16, mlp_width=6144)

SIGLIP2: dict[str, Towers] = {
    "base-patch16": Towers(_BASE, _BASE),
    "large-patch16": Towers(_LARGE, _LARGE),
    "so400m-patch16": Towers(_SO400M, _SO400M),
    "giant-patch16": Towers(_GIANT, _SO400M),
}
"""From the configurations of `google/siglip2-*-patch16-*`; "so400m" is shape-optimised, 400M parameters a tower."""


def siglip2(name: str, remat: str = "none", dtype: str = "float32") -> DualEncoderConfig:
    """The dual encoder of a published SigLIP 2 size; its text vocabulary is `SIGLIP2_VOCABULARY`.

    The NaFlex files (base and so400m are published) have position tables of 16 x 16, as here.

    Args:
      name: a key of `SIGLIP2`.
      remat: of both towers, a key of REMAT_POLICIES.
      dtype: of the computation.

    Raises:
      UserError: an unknown name.
    """
    towers = choose("SigLIP 2 size", name, SIGLIP2)
    vision, text = (with_remat(tower, remat) for tower in towers)
    return DualEncoderConfig(
        vit=ViTConfig(patch=16, position_grid=(16, 16), transformer=vision),
        text=text,
        max_text_tokens=64,
        text_pooling="last",
        image_projection=False,
        embedding_dim=vision.width,
        dtype=dtype,
    )


def nextflow_tokenizer(
    level: int = 512,
    codes: int = 16_384,
    enlarged_decoder: bool = False,
    semantic: bool = True,
    remat: str = "full",
    dtype: str = "bfloat16",
) -> VisionTokenizerConfig:
    """The tokenizer at its published size (recipe section 2): SigLIP 2's so400m beside VQGAN's convolutions, stride 16.

    Args:
      level: 256, 512 or 1024; its family has all 41 picture sizes. Parameters are the same for every level.
      codes: rows of the codebook: 16384 in NextFlow's ablations, 32768 in TokenFlow.
      enlarged_decoder: the third training stage's pixel decoder: base 256 and 4 residual blocks a level, not 128 and 2
        (VQGAN's decoders have one more than is named).
      semantic: False for the single-codebook baseline, whose codes are the pixel half alone.
      remat: of every transformer and convolution block, a key of both rooms' REMAT_POLICIES: "none" or "full".
      dtype: of the computation.
    """
    vit = ViTConfig(patch=LEVEL_STRIDE, position_grid=(16, 16), transformer=with_remat(_SO400M, remat))
    pixel = PixelConfig(
        stem=1,
        multipliers=(1, 1, 2, 2, 4),
        encoder_base=128,
        encoder_blocks=2,
        decoder_base=256 if enlarged_decoder else 128,
        decoder_blocks=5 if enlarged_decoder else 3,
        latent=256,
        groups=32,
        attention=True,
        remat=remat,
    )
    return VisionTokenizerConfig(
        family=level_family(level),
        vit=vit,
        pixel=pixel,
        quantizer=QuantizerConfig(
            codes=codes, semantic_dim=32 if semantic else 0, pixel_dim=8, normalise="codes", scale_drop=0.5
        ),
        semantic_decoder=dataclasses.replace(with_remat(_SO400M, remat), layers=3),
        teacher_width=_SO400M.width,
        dtype=dtype,
    )


def with_remat(stack: TransformerConfig, remat: str) -> TransformerConfig:
    """The stack with another choice of what the backward pass finds stored."""
    return dataclasses.replace(stack, remat=remat)
