"""What an evaluation asks of a model: how many pictures, and how the answers are sampled."""

import dataclasses
from collections.abc import Iterator

from nextflow_jax.config import Fault


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Sizes and sampling settings of the suite in nextflow_jax/evals/suite.py. Temperature 0 is greedy."""

    prompts: int = 200
    """Training captions to draw, and training pictures to caption."""
    edits: int = 200
    """Training edit pairs, at most."""
    heldout: int = 200
    """Held-out combinations, at most."""
    shown: int = 16
    """Prompts whose picture is kept after every scale, for the report."""
    batch_size: int = 50
    """Requests sampled together."""
    guidance: float = 0.0
    """Strength of classifier-free guidance; 0 samples the conditional model as it is."""
    temperature: float = 0.0
    top_k: int = 0
    """Candidates kept at each token; 0 keeps all."""
    top_p: float = 1.0
    max_text_tokens: int = 48
    """Longest generated caption."""
    seed: int = 0
    """Chooses the pictures and the samples."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        for name in ("prompts", "batch_size", "max_text_tokens"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use 1 or more")
        for name in ("edits", "heldout", "shown", "guidance", "temperature", "top_k"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 to switch it off")
        if not 0 < self.top_p <= 1:
            yield Fault("top_p", self.top_p, "must be in (0, 1]", "use 1.0 to keep every candidate")
