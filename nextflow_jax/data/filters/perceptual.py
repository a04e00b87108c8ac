"""A 64-bit perceptual hash: pictures that look alike differ in few bits, whatever their size and file format.

The DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), in the variant
of the ImageHash project: which of the 8 x 8 lowest frequencies of the picture, shrunk to 32 x 32 grey pixels, are above
their median. Two changes: the mean brightness has no bit (it says nothing against a median), and coefficients below a
dead zone count as zero, so that flat graphics do not hash the noise of their compression.
"""

import functools

import numpy as np
from jaxtyping import Float
from PIL import Image

_SIDE = 32
_LOW = 8
_DEAD_ZONE = 8.0
"""In units of the orthonormal 32 x 32 DCT of grey values from 0 to 255."""


def perceptual_hash(picture: Image.Image) -> tuple[int, tuple[int, int, int]]:
    """The hash of an RGB picture, of any size and ratio, and its mean red, green and blue (0 to 255)."""
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    red, green, blue = np.asarray(small, np.float64).reshape(-1, 3).mean(0).round().astype(int).tolist()
    basis = _dct_basis()
    low = basis @ np.asarray(small.convert("L"), np.float64) @ basis.T
    levels = np.trunc(low / _DEAD_ZONE).ravel()
    bits = levels > np.sort(levels[1:])[_LOW * _LOW // 2 - 1]
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), (red, green, blue)


@functools.cache
def _dct_basis() -> Float[np.ndarray, "8 32"]:
    """The first rows of the orthonormal DCT-II."""
    rows, columns = np.arange(_LOW)[:, None], np.arange(_SIDE)[None]
    basis = np.cos(np.pi * rows * (2 * columns + 1) / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    basis[0] /= np.sqrt(2)
    return basis
