"""What an evaluation asks of a model: how many pictures, how the answers are sampled, what is aimed at."""

import dataclasses
from collections.abc import Iterator

from nextflow_jax.config import Fault
from nextflow_jax.sampling.settings import SamplingSettings

GREEDY = SamplingSettings(guidance=1.0, temperature=0.0, top_k=0, top_p=1.0)
"""The likeliest token everywhere, without guidance: what the retrieval and exact-match figures are defined with."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Sizes and sampling settings of the suite in nextflow_jax/evals/suite.py."""

    prompts: int = 200
    """Training captions to draw, and training pictures to caption, at most."""
    edits: int = 200
    """Training edit pairs, at most."""
    heldout: int = 200
    """Held-out combinations, at most."""
    shown: int = 16
    """Prompts whose picture is kept after every scale, for the report."""
    batch_size: int = 50
    """Requests sampled together."""
    sampling: SamplingSettings = GREEDY
    max_text_tokens: int = 48
    """Longest generated caption."""
    seed: int = 0
    """Chooses the pictures, and the samples where sampling is not greedy."""
    targets: tuple[tuple[str, float], ...] = ()
    """(metric, value it should reach), shown beside the measured figures."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        for name in ("prompts", "batch_size", "max_text_tokens"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use 1 or more")
        for name in ("edits", "heldout", "shown"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 to leave the part out")
