"""Random VGG and linear weights and pictures that the golden script and the tests both make; none is stored."""

import zlib

import numpy as np

WIDTHS = (4, 6, 8, 8, 10)
"""Of VGG's blocks; the published ones are (64, 128, 256, 512, 512)."""
SIZES = ((16, 16), (24, 40), (37, 18))


def random_array(name, shape):
    """A float32 array that depends on its name and shape alone, sized so that activations neither vanish nor grow."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.startswith("lin"):
        return np.abs(values)  # as the published ones: not negative
    if len(shape) > 1:
        return values * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return values * np.float32(0.1)


def random_pair(size):
    """Two batches of two pictures, float32 [2, 3, H, W] in [-1, 1]."""
    generator = np.random.default_rng(size)
    first = generator.uniform(-1, 1, (2, 3, *size))
    second = np.clip(first + 0.3 * generator.standard_normal(first.shape), -1, 1)
    second[1, :, : size[0] // 2] = first[1, :, : size[0] // 2]
    return first.astype(np.float32), second.astype(np.float32)
