"""LPIPS from published files: torchvision's VGG16 and the lpips package's linear weights, by their published names."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.convert.mapping import Row, read
from nextflow_jax.convert.transforms import CONV, squeeze
from nextflow_jax.convert.weight_files import read_arrays
from nextflow_jax.vision.lpips import BLOCKS, VGG16_WIDTHS, lpips_shapes

CHANNEL_WEIGHTS = squeeze(0, 2, 3)
"""A 1 x 1 convolution to one channel [1, in, 1, 1] -> [in]."""


def _vgg_rows() -> tuple[Row, ...]:
    """torchvision numbers every convolution, ReLU and pooling of `features` in turn."""
    rows, index = [], 0
    for block, layers in enumerate(BLOCKS, 1):
        for layer in layers:
            rows.append(Row(f"features.{index}.weight", f"{block}_{layer}/kernel", CONV))
            rows.append(Row(f"features.{index}.bias", f"{block}_{layer}/bias"))
            index += 2
        index += 1
    return tuple(rows)


VGG_ROWS = _vgg_rows()
LINEAR_ROWS = tuple(Row(f"lin{i}.model.1.weight", str(i + 1), CHANNEL_WEIGHTS) for i in range(len(BLOCKS)))
CLASSIFIER = "classifier."
"""The part of VGG16 that LPIPS does not use; some files leave it out."""


def lpips_parameters(
    vgg_arrays: Mapping[str, Any],
    linear_arrays: Mapping[str, Any],
    widths: Sequence[int] = VGG16_WIDTHS,
    source: str = "LPIPS weights",
) -> dict[str, Any]:
    """The parameters of `lpips_distance` from arrays by their published names.

    Args:
      vgg_arrays: torchvision's vgg16 state dict.
      linear_arrays: the lpips package's v0.1 weights for vgg.
      widths: channels of VGG's blocks.
      source: begins error messages.

    Raises:
      UserError: arrays missing, unexpected or of other shapes; names all.
    """
    expected = lpips_shapes(widths)
    features = {name: array for name, array in vgg_arrays.items() if not name.startswith(CLASSIFIER)}
    return {
        "vgg": read(VGG_ROWS, features, expected["vgg"], f"{source} (vgg)"),
        "linear": read(LINEAR_ROWS, linear_arrays, expected["linear"], f"{source} (linear)"),
    }


def load_lpips(vgg_file: str | pathlib.Path, linear_file: str | pathlib.Path) -> dict[str, Any]:
    """The parameters of `lpips_distance` from files.

    Args:
      vgg_file: torchvision's vgg16 state dict, .pth or .safetensors.
      linear_file: the lpips package's weights/v0.1/vgg.pth, or the same as .safetensors.

    Raises:
      UserError: a file is absent, unreadable or holds something else.
    """
    return lpips_parameters(read_arrays(vgg_file), read_arrays(linear_file), source=f"{vgg_file}, {linear_file}")
