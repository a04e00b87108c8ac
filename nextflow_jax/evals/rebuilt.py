"""Scores of rebuilt pictures, gathered in a stream: of every picture a few numbers, of the features two Gaussians."""

import numpy as np
from jaxtyping import Int, UInt8

from nextflow_jax.evals import reconstruction
from nextflow_jax.evals.code_use import CodeUse
from nextflow_jax.evals.frechet import GaussianStatistics, frechet_distance
from nextflow_jax.evals.judges import Judges
from nextflow_jax.scales import ScaleSchedule


class Rebuilt:
    """What was measured so far; batches are added, and sets of other pictures merged.

    Args:
      codebook_size: V.
      judges: the networks that measure too.
    """

    def __init__(self, codebook_size: int, judges: Judges) -> None:
        self._judges = judges
        self.codes = CodeUse(codebook_size)
        self.scores: dict[str, list[float]] = {"psnr": [], "ssim": []}
        """Metric -> its value of every picture, in the order of adding."""
        self._features: tuple[GaussianStatistics, GaussianStatistics] | None = None
        """Of originals and copies."""
        if judges.lpips is not None:
            self.scores["lpips"] = []

    @property
    def count(self) -> int:
        """Pictures so far."""
        return len(self.scores["psnr"])

    def add(
        self,
        originals: UInt8[np.ndarray, "B H W 3"],
        copies: UInt8[np.ndarray, "B H W 3"],
        codes: Int[np.ndarray, "B N"],
        schedule: ScaleSchedule,
    ) -> None:
        """Measures a batch of pictures of one size."""
        self.codes.add(codes, schedule)
        self.scores["psnr"] += reconstruction.psnr(originals, copies).tolist()
        self.scores["ssim"] += reconstruction.ssim(originals, copies).tolist()
        if self._judges.lpips is not None:
            self.scores["lpips"] += self._judges.lpips(originals, copies).tolist()
        if self._judges.features is not None:
            new = (GaussianStatistics.of(self._judges.features(images)) for images in (originals, copies))
            self._add_features(tuple(new))

    def merge(self, other: "Rebuilt") -> None:
        """Adds what another has measured, of pictures that follow these."""
        self.codes.merge(other.codes)
        for name, values in other.scores.items():
            self.scores[name] += values
        if other._features is not None:
            self._add_features(other._features)

    def figures(self) -> dict[str, float]:
        """psnr, ssim, lpips: means over pictures; rfid; codebook_usage, perplexity; count. NaN: too few pictures."""
        means = {name: float(np.mean(values)) if values else float("nan") for name, values in self.scores.items()}
        if self._judges.features is not None:
            means["rfid"] = self._rfid()
        use = {"codebook_usage": self.codes.usage, "perplexity": self.codes.perplexity}
        return {**means, **use, "count": float(self.count)}

    def _rfid(self) -> float:
        if self._features is None or self._features[0].count < 2:
            return float("nan")
        return frechet_distance(*self._features)

    def _add_features(self, new: tuple[GaussianStatistics, GaussianStatistics]) -> None:
        old = self._features
        self._features = new if old is None else (old[0].merge(new[0]), old[1].merge(new[1]))
