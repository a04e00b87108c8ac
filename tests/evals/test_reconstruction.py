import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from nextflow_jax.evals.reconstruction import codebook_usage, psnr, ssim


def pictures(seed, count=4, size=16):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_psnr_is_the_definition_of_scikit_image_for_each_picture():
    originals, copies = pictures(0), pictures(1)
    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(originals, copies)]
    np.testing.assert_allclose(psnr(originals, copies), expected, rtol=1e-12)


def test_an_exact_copy_has_a_finite_psnr_above_every_inexact_one():
    originals = pictures(0)
    almost = originals.copy()
    almost[:, 0, 0, 0] ^= 255
    assert np.all(np.isfinite(psnr(originals, originals)))
    assert np.all(psnr(originals, originals) > psnr(originals, almost))


def test_ssim_is_one_for_copies_and_falls_with_noise():
    originals = np.repeat(np.repeat(pictures(0, size=4), 4, axis=1), 4, axis=2)
    slightly = np.clip(originals.astype(int) + np.random.default_rng(2).integers(-9, 10, originals.shape), 0, 255)
    np.testing.assert_allclose(ssim(originals, originals), 1.0)
    middle = ssim(originals, slightly.astype(np.uint8))
    assert np.all(middle < 1) and np.all(middle > ssim(originals, pictures(3)))


@pytest.mark.parametrize(("codes", "expected"), [([[0, 0], [0, 0]], 0.25), ([[0, 1], [2, 3]], 1.0)])
def test_codebook_usage_counts_distinct_codes(codes, expected):
    assert codebook_usage(np.array(codes, np.int32), 4) == expected
