"""SigLIP and SigLIP 2 weights under Hugging Face's names, into `DualEncoder` and back.

Files of `google/siglip2-*-patch16-naflex` (presets in vision/presets.py) and of the fixed-size models, which differ in
the patch embedding only: a convolution, where NaFlex has a linear map.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.convert.mapping import Row, matches, read, write
from nextflow_jax.convert.transforms import (
    GRID,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    LINEAR,
    SAME,
    Transform,
    patch_convolution,
    split,
    squeeze,
)
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.vision.dual_encoder import DualEncoder, DualEncoderConfig, vision_tower
from nextflow_jax.vision.presets import SIGLIP2, siglip2
from nextflow_jax.vision.vit import ViT, ViTConfig

VISION_PREFIX = "vision_model."
BESIDE_THE_TOWER = ("text_model.*", "vision_model.head.*", "logit_scale", "logit_bias")
"""What a file may hold that is no part of the vision tower."""


def load_dual_encoder(path: str | pathlib.Path, config: DualEncoderConfig, text_vocabulary: int) -> dict[str, Any]:
    """The "params" of `DualEncoder(config, text_vocabulary)` from a published file or folder, NumPy float32.

    Raises:
      UserError: the file cannot be read, or differs from the configuration; all differences in one message.
    """
    arrays = read_arrays(path)
    return read(dual_encoder_rows(_patch_transform(arrays)), arrays, _expected(config, text_vocabulary), str(path))


def load_published(path: str | pathlib.Path) -> tuple[DualEncoderConfig, int, dict[str, Any]]:
    """(configuration, text vocabulary, "params") of a published file or folder; the size is told by its shapes.

    Raises:
      UserError: as `load_dual_encoder`, or a size that `SIGLIP2` does not list.
    """
    arrays = read_arrays(path)
    config, vocabulary = siglip2_config(arrays, str(path))
    expected = _expected(config, vocabulary)
    return config, vocabulary, read(dual_encoder_rows(_patch_transform(arrays)), arrays, expected, str(path))


def siglip2_config(arrays: Mapping[str, Any], source: str = "weights") -> tuple[DualEncoderConfig, int]:
    """(configuration, text vocabulary) of published arrays, by their shapes alone.

    Raises:
      UserError: not both towers of a SigLIP, or widths of no known size.
    """
    embeddings = f"{VISION_PREFIX}embeddings"
    needed = (
        "text_model.embeddings.token_embedding.weight",
        f"{embeddings}.position_embedding.weight",
        f"{embeddings}.patch_embedding.weight",
    )
    absent = [name for name in needed if name not in arrays]
    if absent:
        raise UserError(
            f"{source}: no SigLIP 2 dual encoder ({', '.join(absent)} missing); give the whole model's file"
        )
    (vocabulary, text_width), (positions, width), kernel = (arrays[name].shape for name in needed)
    widths = {name: (towers.vision.width, towers.text.width) for name, towers in SIGLIP2.items()}
    sizes = [name for name, known in widths.items() if known == (width, text_width)]
    if len(sizes) != 1:
        raise UserError(f"{source}: towers of widths {width} and {text_width}; known sizes are {widths}")
    side, patch = math.isqrt(positions), kernel[-1] if len(kernel) == 4 else math.isqrt(kernel[-1] // 3)
    config = siglip2(sizes[0])
    vit = dataclasses.replace(config.vit, patch=patch, position_grid=(side, side))
    return dataclasses.replace(config, vit=vit), vocabulary


def load_vision_tower(path: str | pathlib.Path, config: ViTConfig) -> dict[str, Any]:
    """The "params" of `ViT(config)`: the vision tower without its pooling, from a whole model or a tower's file.

    Raises:
      UserError: as `load_dual_encoder`.
    """
    arrays = read_arrays(path)
    if not any(name.startswith(VISION_PREFIX) for name in arrays):
        arrays = {VISION_PREFIX + name: array for name, array in arrays.items()}
    pictures = jnp.zeros((1, config.patch, config.patch, 3))
    expected = {"vision": jax.eval_shape(lambda: ViT(config, jnp.float32).init(jax.random.key(0), pictures)["params"])}
    ignore = [pattern for pattern in BESIDE_THE_TOWER if any(matches(pattern, name) is not None for name in arrays)]
    return vision_tower(read(vision_rows(_patch_transform(arrays)), arrays, expected, str(path), tuple(ignore)))


def save_dual_encoder(path: str | pathlib.Path, params: Mapping[str, Any]) -> None:
    """Writes the "params" of a DualEncoder as transformers' Siglip2Model reads them (safetensors)."""
    write_arrays(path, write(dual_encoder_rows(), params))


def save_vision_tower(path: str | pathlib.Path, params: Mapping[str, Any]) -> None:
    """Writes the "params" of a ViT under the names of transformers' Siglip2 vision tower (safetensors)."""
    write_arrays(path, write(vision_rows(), {"vision": params}))


def dual_encoder_rows(patch_embedding: Transform = LINEAR) -> tuple[Row, ...]:
    """The table of a whole model; see `vision_rows` for `patch_embedding`."""
    head = "vision_model.head"
    return (
        *vision_rows(patch_embedding),
        Row(f"{head}.probe", "pool/probe", squeeze(0)),
        Row(f"{head}.attention.in_proj_weight", _heads("pool", "kernel"), split(3).then(HEADS_IN)),
        Row(f"{head}.attention.in_proj_bias", _heads("pool", "bias"), split(3).then(HEADS_BIAS)),
        Row(f"{head}.attention.out_proj.weight", "pool/attention/out/kernel", HEADS_OUT),
        Row(f"{head}.attention.out_proj.bias", "pool/attention/out/bias"),
        *_norm(f"{head}.layernorm", "pool/norm"),
        *_dense(f"{head}.mlp.fc1", "pool/mlp/up"),
        *_dense(f"{head}.mlp.fc2", "pool/mlp/down"),
        Row("text_model.embeddings.token_embedding.weight", "text/embedding"),
        Row("text_model.embeddings.position_embedding.weight", "text/positions"),
        *_blocks("text_model.encoder", "text/transformer"),
        *_norm("text_model.final_layer_norm", "text/transformer/norm"),
        *_dense("text_model.head", "text_projection"),
        Row("logit_scale", "log_temperature", squeeze(0)),
        Row("logit_bias", "bias", squeeze(0)),
    )


def vision_rows(patch_embedding: Transform = LINEAR) -> tuple[Row, ...]:
    """The table of the vision tower.

    Args:
      patch_embedding: LINEAR for NaFlex models, whose patches are vectors in the order of `split_patches` (rows,
        columns, channels); `patch_convolution(patch)` for fixed-size ones.
    """
    embeddings = f"{VISION_PREFIX}embeddings"
    return (
        Row(f"{embeddings}.patch_embedding.weight", "vision/patch_embedding/kernel", patch_embedding),
        Row(f"{embeddings}.patch_embedding.bias", "vision/patch_embedding/bias"),
        Row(f"{embeddings}.position_embedding.weight", "vision/positions", GRID),
        *_blocks(f"{VISION_PREFIX}encoder", "vision/transformer"),
        *_norm(f"{VISION_PREFIX}post_layernorm", "vision/transformer/norm"),
    )


def _blocks(theirs: str, ours: str) -> tuple[Row, ...]:
    """The pre-norm blocks that both towers share."""
    layer, block = f"{theirs}.layers.{{layer}}", f"{ours}/blocks"
    rows = [
        *_norm(f"{layer}.layer_norm1", f"{block}/attention_norm"),
        *_norm(f"{layer}.layer_norm2", f"{block}/mlp_norm"),
        *_dense(f"{layer}.mlp.fc1", f"{block}/mlp/up"),
        *_dense(f"{layer}.mlp.fc2", f"{block}/mlp/down"),
        Row(f"{layer}.self_attn.out_proj.weight", f"{block}/attention/out/kernel", HEADS_OUT),
        Row(f"{layer}.self_attn.out_proj.bias", f"{block}/attention/out/bias"),
    ]
    for letter, name in zip("qkv", ("query", "key", "value")):
        rows.append(Row(f"{layer}.self_attn.{letter}_proj.weight", f"{block}/attention/{name}/kernel", HEADS_IN))
        rows.append(Row(f"{layer}.self_attn.{letter}_proj.bias", f"{block}/attention/{name}/bias", HEADS_BIAS))
    return tuple(rows)


def _heads(module: str, kind: str) -> tuple[str, ...]:
    return tuple(f"{module}/attention/{name}/{kind}" for name in ("query", "key", "value"))


def _dense(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row(f"{theirs}.weight", f"{ours}/kernel", LINEAR), Row(f"{theirs}.bias", f"{ours}/bias", SAME)


def _norm(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


def _patch_transform(arrays: Mapping[str, np.ndarray]) -> Transform:
    """Linear, or the convolution that this file's patch embedding is."""
    kernel = arrays.get(f"{VISION_PREFIX}embeddings.patch_embedding.weight")
    return patch_convolution(kernel.shape[-1], kernel.shape[1]) if kernel is not None and kernel.ndim == 4 else LINEAR


def _expected(config: DualEncoderConfig, text_vocabulary: int) -> Any:
    def make() -> Any:
        images = jnp.zeros((1, config.vit.patch, config.vit.patch, 3))
        tokens, lengths = jnp.zeros((1, 1), jnp.int32), jnp.ones((1,), jnp.int32)
        return DualEncoder(config, text_vocabulary).init(jax.random.key(0), images, tokens, lengths)["params"]

    return jax.eval_shape(make)
