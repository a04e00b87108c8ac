"""Decoder sizes by name, from one that tests run to the shapes of Qwen2.5-VL's language towers."""

from typing import Any

from nextflow_jax.config import choose
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.vocabulary import Vocabulary

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "layers": 2,
        "width": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "mlp_width": 128,
        "rope_sections": (2, 3, 3),
        "rope_base": 1e4,
        "qk_norm": True,
        "initializer_range": 0.04,
    },
    "small": {
        "layers": 4,
        "width": 128,
        "heads": 4,
        "kv_heads": 4,
        "head_size": 32,
        "mlp_width": 384,
        "rope_sections": (4, 6, 6),
        "rope_base": 1e4,
        "qk_norm": True,
        "initializer_range": 0.04,
        "remat": "dots",
    },
    "base": {
        "layers": 14,
        "width": 768,
        "heads": 12,
        "kv_heads": 6,
        "head_size": 64,
        "mlp_width": 2304,
        "rope_sections": (8, 12, 12),
        "rope_base": 1e5,
        "qk_norm": True,
        "remat": "dots",
        "dtype": "bfloat16",
    },
    "large": {
        "layers": 22,
        "width": 2048,
        "heads": 16,
        "kv_heads": 4,
        "head_size": 128,
        "mlp_width": 5632,
        "rope_sections": (16, 24, 24),
        "qk_norm": True,
        "remat": "full",
        "dtype": "bfloat16",
    },
    "qwen2_5_vl_3b": {
        "layers": 36,
        "width": 2048,
        "heads": 16,
        "kv_heads": 2,
        "head_size": 128,
        "mlp_width": 11008,
        "rope_sections": (16, 24, 24),
        "attention_bias": True,
        "tied_head": True,
        "remat": "full",
        "dtype": "bfloat16",
    },
    "qwen2_5_vl_7b": {
        "layers": 28,
        "width": 3584,
        "heads": 28,
        "kv_heads": 4,
        "head_size": 128,
        "mlp_width": 18944,
        "rope_sections": (16, 24, 24),
        "attention_bias": True,
        "remat": "full",
        "dtype": "bfloat16",
    },
}
"""tiny: tests; small: the OpenMoji quickstart; base: about 100M parameters; large: about 1B; Qwen's: recipe section 1.

Parameters grow with the vocabulary, which is the caller's; the figures leave out its two tables. "small" computes again
what is not a product although it fits: on CPU that is about 15% quicker than storing and loading it.
"""


def decoder_preset(name: str, vocabulary: Vocabulary, code_dim: int, max_scales: int, **changes: Any) -> DecoderConfig:
    """The configuration of a named size.

    Args:
      name: a key of `PRESETS`.
      vocabulary: the unified vocabulary of the tokenizers in use.
      code_dim: C of the vision tokenizer.
      max_scales: see `DecoderConfig.max_scales`.
      **changes: fields to set otherwise than the preset.

    Raises:
      UserError: an unknown name.
    """
    shape = choose("decoder preset", name, PRESETS)
    fields = {"vocabulary": vocabulary, "code_dim": code_dim, "max_scales": max_scales, **shape, **changes}
    return DecoderConfig(**fields)
