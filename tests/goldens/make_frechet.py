"""Makes frechet.npz: Frechet distances by SciPy's `sqrtm`, the way pytorch-fid computes them.

python tests/goldens/make_frechet.py        # needs scipy
"""

import pathlib

import numpy as np
import scipy.linalg


def distance(a, b):
    means, covariances = zip(*((features.mean(0), np.cov(features, rowvar=False)) for features in (a, b)))
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = means[0] - means[1]
    return difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))


def main():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(2, 8, 8))
    first = (generator.normal(size=(60, 8)) @ mixing[0]).astype(np.float32)
    second = (generator.normal(size=(45, 8)) @ mixing[1] + 0.5).astype(np.float32)
    expected = distance(first.astype(np.float64), second.astype(np.float64))
    np.savez(pathlib.Path(__file__).with_name("frechet.npz"), first=first, second=second, distance=expected)


if __name__ == "__main__":
    main()
