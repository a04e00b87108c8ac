"""Random weights and pictures that make_peers.py and the tests both make, so that only names and results are stored."""

import zlib

import numpy as np


def random_weights(shapes):
    """float32 arrays that depend on name and shape alone, sized so that activations neither vanish nor grow.

    Args:
      shapes: name -> shape, under a peer's names.
    """
    return {name: _random_array(name, tuple(shape)) for name, shape in shapes.items()}


def random_pictures(size):
    """float32 [2, 3, size, size] in [-1, 1]: coarse shapes with some noise."""
    generator = np.random.default_rng(size)
    coarse = generator.uniform(-1, 1, (2, 3, size // 2, size // 2))
    shapes = np.kron(coarse, np.ones((1, 1, 2, 2)))
    return np.clip(shapes + 0.2 * generator.standard_normal(shapes.shape), -1, 1).astype(np.float32)


def _random_array(name, shape):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name == "scaling_layer.scale":
        return np.abs(values) * np.float32(0.1) + np.float32(0.3)
    if "embedding" in name or "pos_embed" in name or "cls_token" in name or name == "scaling_layer.shift":
        return values * np.float32(0.5)
    if len(shape) > 1:
        return values * np.float32(np.prod(shape[1:]) ** -0.5)
    return values * np.float32(0.2) + np.float32(name.endswith(".weight"))
