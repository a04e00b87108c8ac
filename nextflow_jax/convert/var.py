"""VAR's VQVAE (arXiv 2404.02905, `vae_ch160v4096z32.pth`) under its published names, into our VisionTokenizer and back.

Source of the names: FoundationVision/VAR, models/vqvae.py and models/basic_vae.py.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.config import choose
from nextflow_jax.convert.mapping import Row, check, matches, read, write
from nextflow_jax.convert.trained_codes import restored_codes, with_state
from nextflow_jax.convert.transforms import CONV, split
from nextflow_jax.convert.vqgan import Names, coder_rows, convolution
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.vision.cnn import PixelConfig
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

LADDERS = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
"""Picture side -> sides of VAR's grids (`v_patch_nums`); one VQVAE serves both."""

STATISTICS = ("quantize.ema_vocab_hit_SV",)
"""How often training chose each code: no weights, left out."""

QKV = ("query", "key", "value")
REFINERS = "quantize.quant_resi.qresi_ls.{group}"


def load_var(path: str | pathlib.Path, side: int = 256, part: str = "auto") -> tuple[VisionTokenizerConfig, dict]:
    """Configuration and variables ("params", "codebook"; NumPy float32) for `VisionTokenizerCodec`.

    Args:
      path: `vae_ch160v4096z32.pth`, or a checkpoint of the same shape with other widths and depths.
      side: of the pictures, in pixels: a key of LADDERS.
      part: see `read_arrays`.

    Raises:
      UserError: the file cannot be read or is no VQVAE of VAR's shape; all differences in one message.
    """
    arrays = read_arrays(path, part)
    config = var_config(arrays, side, str(path))
    return config, read_var(arrays, config, str(path))


def save_var(path: str | pathlib.Path, variables: Mapping[str, Any]) -> None:
    """Writes variables under VAR's names (safetensors): the exact inverse of `load_var`, without STATISTICS."""
    write_arrays(path, write_var(variables))


def read_var(arrays: Mapping[str, Any], config: VisionTokenizerConfig, source: str) -> dict[str, Any]:
    """VAR's arrays as the variables of `VisionTokenizer(config)`; `source` begins messages.

    Raises:
      UserError: unmapped, missing, mis-shaped and mistyped arrays, all in one message.
    """
    expected, ignore = _expected(config), _ignored(arrays)
    return with_state(read(var_rows(config.pixel), arrays, expected["params"], source, ignore), expected["codebook"])


def check_var(arrays: Mapping[str, Any], config: VisionTokenizerConfig, source: str) -> None:
    """Raises what `read_var` would raise; makes no arrays."""
    check(var_rows(config.pixel), arrays, _expected(config)["params"], source, _ignored(arrays))


def write_var(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The variables of `read_var` (or trained on from there) by VAR's names."""
    params = restored_codes(variables)
    levels = sum(1 for name in params["pixel_encoder"] if name.startswith("level_") and name.endswith("_block_0"))
    return write(var_rows(PixelConfig(stem=1, multipliers=(1,) * levels)), params)


def var_rows(pixel: PixelConfig) -> tuple[Row, ...]:
    """The table, for as many levels as `pixel` has."""
    levels = range(len(pixel.multipliers))
    names = {
        "block": "block",
        "middle": ("mid.block_1", "mid.attn_1", "mid.block_2"),
        "attention": _fused_attention,
    }
    encoder = Names(levels=[f"down.{level}" for level in levels], resample="downsample.conv", **names)
    decoder = Names(levels=[f"up.{level}" for level in levels], resample="upsample.conv", **names)
    return (
        *coder_rows("encoder", "pixel_encoder", "down", encoder),
        *convolution("quant_conv", "pixel_projection"),
        Row("quantize.embedding.weight", "quantizer/embedding"),
        Row(f"{REFINERS}.weight", "quantizer/refine_kernels", CONV),
        Row(f"{REFINERS}.bias", "quantizer/refine_biases"),
        *convolution("post_quant_conv", "pixel_expansion"),
        *coder_rows("decoder", "pixel_decoder", "up", decoder),
    )


def var_config(arrays: Mapping[str, Any], side: int = 256, source: str = "weights") -> VisionTokenizerConfig:
    """The configuration that arrays of VAR's names have, by their shapes.

    Args:
      arrays: by VAR's names; only shapes are looked at.
      side: of the pictures, in pixels: a key of LADDERS.
      source: begins messages.

    Raises:
      UserError: arrays that the shapes are read from are missing, or a side without a published ladder.
    """
    ladder = choose("VAR's picture side", str(side), {str(known): grids for known, grids in LADDERS.items()})
    try:
        base = arrays["encoder.conv_in.weight"].shape[0]
        firsts = "encoder.down.{level}.block.0.conv1.weight"
        widths = [arrays[firsts.format(level=level)].shape[0] for level in range(_count(arrays, firsts))]
        codes, code_dim = arrays["quantize.embedding.weight"].shape
        latent, _, projection_size, _ = arrays["post_quant_conv.weight"].shape
        decoder_width = arrays["decoder.conv_in.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{source}: no VQVAE of VAR's ({error} is missing or misshapen); check the file") from error
    if not widths or decoder_width * base % widths[-1] or any(width % base for width in widths):
        raise UserError(f"{source}: no VQVAE of VAR's (encoder widths {base} and {widths}); check the file")
    return VisionTokenizerConfig(
        family=ScheduleFamily(ladder, 2 ** (len(widths) - 1), ((side, side),)),
        pixel=PixelConfig(
            stem=1,
            multipliers=tuple(width // base for width in widths),
            encoder_base=base,
            encoder_blocks=_count(arrays, "encoder.down.0.block.{block}.conv1.weight"),
            decoder_base=decoder_width * base // widths[-1],
            decoder_blocks=_count(arrays, "decoder.up.0.block.{block}.conv1.weight"),
            latent=latent,
            groups=32,
            attention=True,
            projection_size=projection_size,
        ),
        quantizer=QuantizerConfig(
            codes=codes,
            semantic_dim=0,
            pixel_dim=code_dim,
            learned="gradient",
            refiners=_count(arrays, f"{REFINERS}.weight"),
        ),
    )


def _expected(config: VisionTokenizerConfig) -> dict[str, Any]:
    """Shapes of all variables, by a walk that leaves out the scales: quantising ten of them takes long to trace."""

    def walk(module: VisionTokenizer, images: jax.Array) -> Any:
        return module.quantizer.embedding(), module.decode_features(module.encode_features(images))

    images = jnp.zeros((1, *config.family.sizes[0], 3))
    return jax.eval_shape(lambda: VisionTokenizer(config).init(jax.random.key(0), images, method=walk))


def _ignored(arrays: Mapping[str, Any]) -> list[str]:
    return [name for name in STATISTICS if name in arrays]


def _fused_attention(theirs: str, ours: str) -> tuple[Row, ...]:
    kernels, biases = (tuple(f"{ours}/{name}/{part}" for name in QKV) for part in ("kernel", "bias"))
    return Row(f"{theirs}.qkv.weight", kernels, split(3).then(CONV)), Row(f"{theirs}.qkv.bias", biases, split(3))


def _count(arrays: Mapping[str, Any], pattern: str) -> int:
    return sum(1 for name in arrays if matches(pattern, name) is not None)
