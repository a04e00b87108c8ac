"""Frechet distance between two sets of features, from their Gaussian statistics, gathered in a stream.

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))            (FID: arXiv 1706.08500, equation 6)

pytorch-fid takes the square root of the product S1 S2, which is not symmetric, with SciPy's `sqrtm`; with fewer
pictures than features the product is singular, and it adds 1e-6 to both diagonals when the root is not finite. Here the
trace of the root is the sum of the singular values of S1^(1/2) S2^(1/2), with symmetric roots made of eigenvectors, so
that rank-deficient covariances need no such addition, and the result is never complex. It is exact for the statistics;
the statistics of few pictures stay a biased estimate: the distance of two samples of one distribution is positive and
falls as they grow. Compare only figures of equal numbers of pictures.
"""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """Number, mean and scatter of the feature vectors seen so far; float64."""

    count: int
    mean: Float[np.ndarray, "F"]
    scatter: Float[np.ndarray, "F F"]
    """Sum of the outer products of the deviations from the mean."""

    @classmethod
    def empty(cls, width: int) -> "GaussianStatistics":
        """Of no vectors of this width."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: Float[np.ndarray, "n F"]) -> "GaussianStatistics":
        """Of these vectors, of any float type."""
        if not len(features):
            return cls.empty(features.shape[1])
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """Of both sets together (Chan, Golub and LeVeque's update): the order and the sizes of parts do not matter."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return GaussianStatistics(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "F F"]:
        """Unbiased, as NumPy's `cov`.

        Raises:
          ValueError: of fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two vectors; there are {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """The squared distance d^2 between the Gaussians of two sets of two vectors or more; not negative."""
    covariances = first.covariance, second.covariance
    roots = [_root(covariance) for covariance in covariances]
    # |R1' R2| has the singular values of S1^(1/2) S2^(1/2): the orthogonal factors left out do not change them.
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    means = float(np.sum((first.mean - second.mean) ** 2))
    return max(0.0, means + float(sum(np.trace(covariance) for covariance in covariances) - 2 * overlap))


def _root(covariance: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F rank"]:
    """R with R R' = covariance, without the directions in which the covariance is zero up to rounding."""
    values, vectors = np.linalg.eigh(covariance)
    floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    kept = values > floor
    return vectors[:, kept] * np.sqrt(values[kept])
