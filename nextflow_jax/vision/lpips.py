"""LPIPS: how different two pictures look, by VGG16's features (Zhang et al., arXiv 1801.03924; their package's v0.1).

    distances = lpips_distance(params, reconstruction, images)          # [B]

Features after five of VGG16's ReLUs are divided by their length over channels; squared differences are weighted by
channel, averaged over the picture and summed over the five. Published weights: `nextflow_jax/convert/lpips.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCKS = ((1, 2), (1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3))
"""Convolutions of VGG16's five blocks; each block's last ReLU is looked at (relu1_2, 2_2, 3_3, 4_3, 5_3)."""
VGG16_WIDTHS = (64, 128, 256, 512, 512)
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation of pixels in [-1, 1]."""
LENGTH_FLOOR = 1e-10
SMALLEST_SIDE = 16
"""Pixels that leave one cell for the coarsest features."""


def lpips_shapes(widths: Sequence[int] = VGG16_WIDTHS) -> dict[str, Any]:
    """The tree of parameters as shapes: "vgg" {"1_1": {kernel HWIO, bias}, ...}, "linear" {"1": [O], ...}."""
    vgg, linear, previous = {}, {}, 3
    for block, (layers, width) in enumerate(zip(BLOCKS, widths, strict=True), 1):
        for layer in layers:
            kernel = jax.ShapeDtypeStruct((3, 3, previous, width), jnp.float32)
            vgg[f"{block}_{layer}"] = {"kernel": kernel, "bias": jax.ShapeDtypeStruct((width,), jnp.float32)}
            previous = width
        linear[str(block)] = jax.ShapeDtypeStruct((width,), jnp.float32)
    return {"vgg": vgg, "linear": linear}


def lpips_distance(params: dict[str, Any], a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
    """LPIPS of each pair of pictures: 0 = the same; below 0.1 close, above 0.5 different.

    Args:
      params: a tree as of `lpips_shapes`.
      a: float32 in [-1, 1], sides of at least SMALLEST_SIDE; not clamped.
      b: likewise.
    """
    total = jnp.zeros(a.shape[0], jnp.float32)
    features = zip(vgg_features(params["vgg"], a), vgg_features(params["vgg"], b))
    for block, (of_a, of_b) in enumerate(features, 1):
        squared = jnp.square(_unit_length(of_a) - _unit_length(of_b))
        total = total + jnp.mean(jnp.sum(squared * params["linear"][str(block)], axis=-1), axis=(1, 2))
    return total


def vgg_features(params: dict[str, Any], images: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ _"]]:
    """The five looked-at features of VGG16 (Simonyan & Zisserman, arXiv 1409.1556), fine to coarse."""
    x = (images.astype(jnp.float32) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
    features = []
    for block, layers in enumerate(BLOCKS, 1):
        if block > 1:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for layer in layers:
            convolution = params[f"{block}_{layer}"]
            x = jax.lax.conv_general_dilated(
                x, convolution["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + convolution["bias"])
        features.append(x)
    return features


def _unit_length(features: Float[Array, "B Y X I"]) -> Float[Array, "B Y X I"]:
    """Divided by their length over channels; zeros stay zeros, with a finite gradient."""
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    return jnp.where(squared > 0, features / (length + LENGTH_FLOOR), 0.0)
