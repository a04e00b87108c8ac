"""How a tokenizer uses its codebook, gathered in a stream: usage and perplexity, of each scale and of all together."""

import numpy as np
from jaxtyping import Int

from nextflow_jax.scales import ScaleSchedule


class CodeUse:
    """Counts of codes a scale, over pictures of any sizes; scale k of all schedules is one scale."""

    def __init__(self, codebook_size: int) -> None:
        self._counts = np.zeros((0, codebook_size), np.int64)

    def add(self, codes: Int[np.ndarray, "B N"], schedule: ScaleSchedule) -> None:
        """Counts the codes of a batch of pictures of one size."""
        size = self._counts.shape[1]
        missing = max(0, schedule.num_scales - len(self._counts))
        self._counts = np.concatenate([self._counts, np.zeros((missing, size), np.int64)])
        for k in range(schedule.num_scales):
            self._counts[k] += np.bincount(codes[:, schedule.slice(k)].reshape(-1), minlength=size)

    def merge(self, other: "CodeUse") -> None:
        """Adds what another has counted."""
        longer = max(len(self._counts), len(other._counts))
        padded = (np.pad(counts, ((0, longer - len(counts)), (0, 0))) for counts in (self._counts, other._counts))
        self._counts = sum(padded)

    @property
    def usage(self) -> float:
        """Share of the codebook that occurs at any scale; 0 before anything was counted."""
        return float(np.mean(self._counts.sum(0) > 0))

    @property
    def perplexity(self) -> float:
        """Of all scales together; `perplexity` of the counts."""
        return perplexity(self._counts.sum(0))

    def scales(self) -> list[dict[str, float]]:
        """Of each scale: "usage", the codes that occur over the most that could (codebook or positions seen, whichever
        is less), and "perplexity"."""
        most = np.minimum(self._counts.sum(1), self._counts.shape[1])
        return [
            {"usage": float(np.sum(counts > 0) / max(1, limit)), "perplexity": perplexity(counts)}
            for counts, limit in zip(self._counts, most)
        ]


def perplexity(counts: Int[np.ndarray, "V"]) -> float:
    """Exponential of a histogram's entropy: how many codes, equally used, would be as hard to guess. Of none: NaN."""
    used = counts[counts > 0].astype(np.float64)
    if not len(used):
        return float("nan")
    shares = used / used.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
