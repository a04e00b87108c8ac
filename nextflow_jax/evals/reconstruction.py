"""How well a vision tokenizer rebuilds pictures: PSNR, SSIM and the share of its codebook in use."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from skimage.metrics import structural_similarity

_EXACT_MSE = 0.25
"""Stands for a mean squared error of 0, so that one exact copy (54 dB) does not drown a mean over pictures."""


def psnr(
    originals: UInt8[np.ndarray, "B height width 3"], copies: UInt8[np.ndarray, "B height width 3"]
) -> Float[np.ndarray, "B"]:
    """Peak signal-to-noise ratio of each picture in dB, peak 255; an exact copy counts as half a grey level off."""
    # Picture by picture: a batch of large ones in float64 would take several times its own memory.
    pairs = zip(originals, copies, strict=True)
    mse = np.array([np.mean(np.square(a.astype(np.int32) - b)) for a, b in pairs], np.float64)
    return 10 * np.log10(255**2 / np.maximum(mse, _EXACT_MSE))


def ssim(
    originals: UInt8[np.ndarray, "B height width 3"], copies: UInt8[np.ndarray, "B height width 3"]
) -> Float[np.ndarray, "B"]:
    """Structural similarity of each picture, scikit-image's definition: 7x7 uniform window, mean over RGB."""
    pairs = zip(originals, copies, strict=True)
    return np.array([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs], np.float64)


def codebook_usage(codes: Int[np.ndarray, "B N"], codebook_size: int) -> float:
    """Share of the codebook that occurs among `codes`."""
    return len(np.unique(codes)) / codebook_size
