"""Random InceptionV3 arrays and pictures that the golden script and the test both make, so that neither is stored."""

import zlib

import numpy as np

IMAGE_SHAPE = (2, 3, 107, 141)
"""Two pictures whose last maps are 2x3: larger than a cell, and not square."""


def random_array(name, shape):
    """A float32 array that depends on its name and shape alone, sized so that activations neither vanish nor grow."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, np.float32)
    if name.endswith("conv.weight"):
        return values * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    if name.endswith(("bn.weight", "bn.running_var")):
        return np.exp(values * np.float32(0.1))
    return values * np.float32(0.1)


def random_images():
    """float32 [2, 3, 107, 141] in [-1, 1], smooth enough that pools see more than noise."""
    generator = np.random.default_rng(0)
    coarse = generator.uniform(-1, 1, (*IMAGE_SHAPE[:2], 18, 24))
    images = np.repeat(np.repeat(coarse, 6, axis=2), 6, axis=3)[:, :, : IMAGE_SHAPE[2], : IMAGE_SHAPE[3]]
    return np.clip(images + 0.1 * generator.standard_normal(IMAGE_SHAPE), -1, 1).astype(np.float32)
