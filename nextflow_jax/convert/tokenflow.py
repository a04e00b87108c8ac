"""TokenFlow's published checkpoints (arXiv 2412.03069) into nextflow_jax/vision/peers/tokenflow.py and back.

Source of the names: ByteVisionLab/TokenFlow, tokenflow/tokenizer/vq_model.py and vqkd_model.py; of the teachers' names:
OpenAI's CLIP, timm's ViTamin and transformers' SigLIP (of the time: with the prefix "vision_model").
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.config import from_config_dict, preflight, to_plain_dict
from nextflow_jax.convert.flat import flatten_variables, merge
from nextflow_jax.convert.mapping import Row, check, matches, read, write
from nextflow_jax.convert.tokenflow_teachers import teacher_rows
from nextflow_jax.convert.trained_codes import restored_codes, with_state
from nextflow_jax.convert.transforms import (
    CONV,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    POINTWISE,
    Transform,
    split,
    squeeze,
)
from nextflow_jax.convert.vqgan import Names, coder_rows, linear, norm
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.vision.peers.tokenflow import TokenFlow, TokenFlowConfig, published

DESCRIPTION_FILE = "tokenflow.json"
WEIGHTS_FILE = "tokenflow.safetensors"

TEACHER_MARKS = {
    "clipb_224": "encoder_vqkd.class_embedding",
    "vitamin_xlarge_256": "encoder_vqkd.patch_embed.backbone.stem.conv1.weight",
    "siglip_384": "encoder_vqkd.vision_model.embeddings.patch_embedding.weight",
}
"""A name that only checkpoints with this teacher have."""

UNUSED = (
    "quantize.codebook_used",  # statistics of training
    "encoder_vqkd.vision_model.encoder.layers.{last}.*",  # features are taken before SigLIP's last layer
    "encoder_vqkd.vision_model.post_layernorm.*",
    "encoder_vqkd.vision_model.head.*",
)
"""What a checkpoint may hold that no result depends on; left out. `last` counts the layers that are used."""


def load_tokenflow(path: str | pathlib.Path, part: str = "auto") -> tuple[TokenFlowConfig, dict[str, Any]]:
    """Configuration and variables ("params", "codebook"; NumPy float32) for `TokenFlow`, from a published checkpoint.

    Raises:
      UserError: the file cannot be read or is no published TokenFlow; all differences in one message.
    """
    arrays = read_arrays(path, part)
    config = tokenflow_config(arrays, str(path))
    return config, read_tokenflow(arrays, config, str(path))


def save_tokenflow(path: str | pathlib.Path, variables: Mapping[str, Any], config: TokenFlowConfig) -> None:
    """Writes variables under TokenFlow's names (safetensors): the exact inverse of `load_tokenflow`, without UNUSED."""
    write_arrays(path, write_tokenflow(variables, config))


def tokenflow_config(arrays: Mapping[str, Any], source: str = "weights") -> TokenFlowConfig:
    """Which published configuration a checkpoint has, by its names and the shapes of decoder and codebook.

    Raises:
      UserError: no TokenFlow.
    """
    teachers = [teacher for teacher, mark in TEACHER_MARKS.items() if mark in arrays]
    needed = ("quantize.embedding_vqkd.weight", "decoder.conv_in.weight", "encoder.norm_out.weight")
    absent = [name for name in needed if name not in arrays]
    if len(teachers) != 1 or absent:
        raise UserError(
            f"{source}: no TokenFlow checkpoint ({', '.join(absent) or 'no known teacher'}); known teachers are "
            f"{', '.join(TEACHER_MARKS)}"
        )
    codes, decoder, encoder = (arrays[name].shape[0] for name in needed)
    return published(teachers[0], enhanced=decoder > encoder, codes=codes)


def read_tokenflow(arrays: Mapping[str, Any], config: TokenFlowConfig, source: str) -> dict[str, Any]:
    """TokenFlow's arrays as the variables of `TokenFlow(config)`; `source` begins messages.

    Raises:
      UserError: unmapped, missing, mis-shaped and mistyped arrays, all in one message.
    """
    expected, ignore = _expected(config), _ignored(arrays, config)
    return with_state(read(tokenflow_rows(config), arrays, expected["params"], source, ignore), expected["codebook"])


def check_tokenflow(arrays: Mapping[str, Any], config: TokenFlowConfig, source: str) -> None:
    """Raises what `read_tokenflow` would raise; makes no arrays."""
    check(tokenflow_rows(config), arrays, _expected(config)["params"], source, _ignored(arrays, config))


def write_tokenflow(variables: Mapping[str, Any], config: TokenFlowConfig) -> dict[str, np.ndarray]:
    """The variables of `read_tokenflow` (or trained on from there) by TokenFlow's names."""
    return write(tokenflow_rows(config), restored_codes(variables))


def save_folder(folder: str | pathlib.Path, config: TokenFlowConfig, variables: Mapping[str, Any]) -> None:
    """Writes the configuration as JSON and the variables, under our names, as safetensors; see `load_folder`."""
    folder = pathlib.Path(folder)
    write_arrays(folder / WEIGHTS_FILE, flatten_variables(variables))
    (folder / DESCRIPTION_FILE).write_text(json.dumps(to_plain_dict(config), indent=1) + "\n", encoding="utf-8")


def load_folder(folder: str | pathlib.Path) -> tuple[TokenFlowConfig, dict[str, Any]]:
    """What `save_folder` wrote, checked.

    Raises:
      UserError: no such folder, or its files do not fit one another.
    """
    file = pathlib.Path(folder) / DESCRIPTION_FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; `python -m nextflow_jax.convert --model tokenflow` makes it")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); convert the weights again") from error
    config = from_config_dict(TokenFlowConfig, values, str(file))
    preflight(config, str(file))
    weights = pathlib.Path(folder) / WEIGHTS_FILE
    return config, merge(read_arrays(weights), _expected(config), str(weights))


def tokenflow_rows(config: TokenFlowConfig) -> tuple[Row, ...]:
    """The table of a configuration."""
    levels = len(config.pixel.multipliers)
    names = {"block": "res", "middle": ("mid.0", "mid.1", "mid.2"), "attention": _attention}
    encoder = Names([f"conv_blocks.{level}" for level in range(levels)], resample="downsample.conv", **names)
    # the decoder's levels are numbered in the order in which they run: coarse to fine
    decoder = Names([f"conv_blocks.{levels - 1 - level}" for level in range(levels)], resample="upsample.conv", **names)
    return (
        *teacher_rows(config.teacher),
        *linear("encode_task_layer.0", "semantic_projection_in"),
        *linear("encode_task_layer.2", "semantic_projection_out"),
        *coder_rows("encoder", "pixel_encoder", "down", encoder),
        *_pointwise("quant_conv", "pixel_projection"),
        Row(
            ("quantize.embedding_vqkd.weight", "quantize.embedding_vqgan.weight"),
            "quantizer/embedding",
            _halves(config.quantizer.semantic_dim),
        ),
        *_semantic_decoder_rows(),
        *linear("decode_task_layer.0", "semantic_head_in"),
        *linear("decode_task_layer.2", "semantic_head_out"),
        *_pointwise("post_quant_conv", "pixel_expansion"),
        *coder_rows("decoder", "pixel_decoder", "up", decoder),
    )


def _semantic_decoder_rows() -> tuple[Row, ...]:
    """BEiT's vision transformer over the semantic codes; its embedding of patches is a dense layer over codes."""
    theirs, ours = "decoder_vqkd", "semantic_decoder"
    block, blocks = f"{theirs}.blocks.{{layer}}", f"{ours}/blocks"
    kernels = tuple(f"{blocks}/{name}/kernel" for name in ("query", "key", "value"))
    return (
        *_pointwise(f"{theirs}.patch_embed.proj", "semantic_expansion"),
        Row(f"{theirs}.cls_token", f"{ours}/class_token", squeeze(0)),
        Row(f"{theirs}.pos_embed", f"{ours}/positions", squeeze(0)),
        *norm(f"{block}.norm1", f"{blocks}/attention_norm"),
        Row(f"{block}.attn.qkv.weight", kernels, split(3).then(HEADS_IN)),
        Row(f"{block}.attn.q_bias", f"{blocks}/query/bias", HEADS_BIAS),
        Row(f"{block}.attn.v_bias", f"{blocks}/value/bias", HEADS_BIAS),
        Row(f"{block}.attn.proj.weight", f"{blocks}/out/kernel", HEADS_OUT),
        Row(f"{block}.attn.proj.bias", f"{blocks}/out/bias"),
        *norm(f"{block}.norm2", f"{blocks}/mlp_norm"),
        *linear(f"{block}.mlp.fc1", f"{blocks}/up"),
        *linear(f"{block}.mlp.fc2", f"{blocks}/down"),
        *norm(f"{theirs}.fc_norm", f"{ours}/norm_after"),
    )


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    rows = []
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        rows += [Row(f"{theirs}.{letter}.weight", f"{ours}/{name}/kernel", CONV)]
        rows += [Row(f"{theirs}.{letter}.bias", f"{ours}/{name}/bias")]
    return tuple(rows)


def _pointwise(theirs: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{theirs}.weight", f"{ours}/kernel", POINTWISE), Row(f"{theirs}.bias", f"{ours}/bias")


def _halves(semantic_dim: int) -> Transform:
    """Their two tables of codes [V, C_half], side by side in ours."""

    def to_ours(arrays: tuple, _: tuple) -> tuple:
        if arrays[0].shape[1] != semantic_dim:
            raise ValueError(f"the semantic half needs {semantic_dim} dimensions")
        return (np.concatenate(arrays, axis=1),)

    return Transform("halves of codes", to_ours, lambda arrays: tuple(np.split(arrays[0], [semantic_dim], axis=1)))


def _ignored(arrays: Mapping[str, Any], config: TokenFlowConfig) -> list[str]:
    patterns = [pattern.format(last=config.teacher.tower.layers) for pattern in UNUSED]
    return [pattern for pattern in patterns if any(matches(pattern, name) is not None for name in arrays)]


def _expected(config: TokenFlowConfig) -> dict[str, Any]:
    """Shapes of all variables, by a walk that leaves out the scales: quantising 15 of them takes long to trace."""

    def walk(module: TokenFlow, images: jax.Array) -> Any:
        features = module.encode_features(images)
        return module.quantizer.embedding(), module.decode_features(features), module.decode_semantic(features)

    images = jnp.zeros((1, config.size, config.size, 3))
    return jax.eval_shape(lambda: TokenFlow(config).init(jax.random.key(0), images, method=walk))
