"""config.json of Qwen2, Qwen2.5 and Qwen2.5-VL folders: read into one form, compared with a DecoderConfig, written.

Two layouts are read: the one of transformers 5 (sizes in `text_config`, `rope_parameters`) and the older flat one
(`rope_theta`, `rope_scaling`).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.vocabulary import Vocabulary

CONFIG_FILE = "config.json"

VISION_LANGUAGE = "qwen2_5_vl"
TEXT = "qwen2"
MODEL_TYPES = (TEXT, VISION_LANGUAGE)

ROPE_TYPES = ("default", "mrope")
"""Others (yarn, linear, ...) stretch positions, which our decoder's do not need."""

TWINS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "boi": "vision_start_token_id",
    "eoi": "vision_end_token_id",
}
"""Our special -> the entry of config.json with the id of theirs that means the same, if any."""


@dataclasses.dataclass(frozen=True)
class Tower:
    """The language tower that a config.json describes."""

    model_type: str
    text_size: int
    """Rows of the token table: more than the tokenizer has ids, for they are padded (152,064 for 151,665 ids)."""
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    rope_base: float
    rope_sections: tuple[int, int, int] | None
    """None in text models, whose positions are the same on all axes: any sections do."""
    norm_eps: float
    tied_head: bool
    twins: Mapping[str, int]
    """Our special -> the text id that means the same there."""


def read_tower(folder: str | pathlib.Path) -> Tower:
    """The tower of a folder's config.json.

    Raises:
      UserError: no config.json, another architecture, or settings that our decoder has no equal of; names all.
    """
    file = pathlib.Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a Hugging Face checkpoint")
    try:
        whole = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a JSON object ({error}); download it again") from error
    if whole.get("model_type") not in MODEL_TYPES:
        rule = f"model_type {whole.get('model_type')!r} cannot be loaded"
        raise UserError(f"{file}: {rule}; give a checkpoint of {' or '.join(MODEL_TYPES)}")
    values = {**whole, **(whole.get("text_config") or {})}
    rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    faults = _unsupported(values, rope)
    if faults:
        raise UserError(f"{file}: {'; '.join(faults)}")
    return _tower(file, whole, values, rope)


def decoder_fields(tower: Tower) -> dict[str, Any]:
    """The fields of `DecoderConfig` that a tower decides, for `dataclasses.replace` or `DecoderConfig`.

    A text model leaves `rope_sections` open: about 1/4, 3/8, 3/8 as in Qwen2.5-VL.
    """
    half = tower.head_size // 2
    side = half * 3 // 8
    return {
        **{name: getattr(tower, name) for name in _SAME},
        "rope_sections": tower.rope_sections or (half - 2 * side, side, side),
        "attention_bias": True,
        "qk_norm": False,
    }


def decoder_config(
    tower: Tower, codebook_size: int, code_dim: int, max_scales: int, pad_multiple: int = 128, **changes: Any
) -> DecoderConfig:
    """The decoder that a tower's weights fit, with a vision vocabulary added.

    Args:
      tower: from `read_tower`.
      codebook_size: codes of the vision tokenizer.
      code_dim: C of the vision tokenizer.
      max_scales: see `DecoderConfig.max_scales`.
      pad_multiple: see `Vocabulary`.
      **changes: fields to set otherwise.
    """
    vocabulary = Vocabulary(tower.text_size, codebook_size, pad_multiple)
    fields = {**decoder_fields(tower), **changes}
    return DecoderConfig(vocabulary=vocabulary, code_dim=code_dim, max_scales=max_scales, **fields)


def check_tower(tower: Tower, config: DecoderConfig, source: str) -> None:
    """Refuses a decoder that the tower's weights do not fit.

    Raises:
      UserError: every field that differs, ours and theirs.
    """
    wanted = {**decoder_fields(tower), "vocabulary.text_size": tower.text_size}
    if tower.rope_sections is None:
        del wanted["rope_sections"]
    ours = {name: getattr(config, name) for name in wanted if "." not in name}
    ours["vocabulary.text_size"] = config.vocabulary.text_size
    differing = [f"{name} = {ours[name]}, there {value}" for name, value in wanted.items() if ours[name] != value]
    if differing:
        raise UserError(f"{source} is not of config.model's shape: {'; '.join(differing)}; set config.model to these")


def text_config_json(config: DecoderConfig, dtype: str, max_positions: int) -> dict[str, Any]:
    """The config.json of a decoder's text part as a Qwen2 checkpoint, in the layout that transformers 4 and 5 read.

    Raises:
      UserError: the decoder has parts that Qwen2 lacks, or lacks parts that it has.
    """
    faults = []
    if not config.attention_bias:
        faults.append("attention_bias = False: Qwen2 has biases on queries, keys and values")
    if config.qk_norm:
        faults.append("qk_norm = True: Qwen2 has no norms of queries and keys")
    if faults:
        raise UserError(f"this decoder cannot be written as a Qwen2 checkpoint ({'; '.join(faults)}); export a bundle")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": TEXT,
        "vocab_size": config.vocabulary.text_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": max_positions,
        "initializer_range": config.initializer_range,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
    }


_SAME = ("layers", "width", "heads", "kv_heads", "head_size", "mlp_width", "rope_base", "norm_eps", "tied_head")
"""Fields that Tower and DecoderConfig both have."""


def _tower(file: pathlib.Path, whole: Mapping[str, Any], values: Mapping[str, Any], rope: Mapping[str, Any]) -> Tower:
    def size(name: str) -> int:
        if not isinstance(values.get(name), int):
            raise UserError(f"{file}: {name} is {values.get(name)!r}, not a number; download it again")
        return values[name]

    heads, width = size("num_attention_heads"), size("hidden_size")
    sections = rope.get("mrope_section")
    return Tower(
        model_type=whole["model_type"],
        text_size=size("vocab_size"),
        layers=size("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_size=values.get("head_dim") or width // heads,
        mlp_width=size("intermediate_size"),
        rope_base=float(rope.get("rope_theta", values.get("rope_theta", _DEFAULT_BASE[whole["model_type"]]))),
        rope_sections=tuple(sections) if sections else None,
        norm_eps=float(values.get("rms_norm_eps", _DEFAULT_EPS[whole["model_type"]])),
        tied_head=bool(whole.get("tie_word_embeddings") or values.get("tie_word_embeddings", False)),
        twins=_twins(whole, values),
    )


_DEFAULT_BASE = {TEXT: 1e4, VISION_LANGUAGE: 1e6}
_DEFAULT_EPS = {TEXT: 1e-6, VISION_LANGUAGE: 1e-5}
"""What transformers takes where config.json is silent."""


def _twins(whole: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for special, name in TWINS.items():
        value = values.get(name, whole.get(name))
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and 0 <= value < values.get("vocab_size", 0):
            found[special] = value
    return found


def _unsupported(values: Mapping[str, Any], rope: Mapping[str, Any]) -> list[str]:
    faults = []
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        faults.append(f"positions of kind {rope_type!r} are not supported; known are {', '.join(ROPE_TYPES)}")
    if values.get("use_sliding_window") and values.get("max_window_layers", 0) < values.get("num_hidden_layers", 0):
        faults.append("sliding-window attention (use_sliding_window) is not supported")
    if values.get("hidden_act", "silu") != "silu":
        faults.append(f"hidden_act {values['hidden_act']!r} is not supported; the decoder's is silu")
    return faults
