"""What an evaluation asks of a model or a tokenizer: how many pictures, how answers are sampled, what is aimed at."""

import dataclasses
from collections.abc import Iterator

from nextflow_jax.config import Fault
from nextflow_jax.data.pictures import SPLITS
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


@dataclasses.dataclass(frozen=True)
class TokenizerEvaluationConfig:
    """What nextflow_jax/evals/tokenizer_suite.py measures of a vision tokenizer, and on which pictures."""

    pictures: int = 1000
    """Of each split, at most; drawn without repetition when there are more."""
    splits: tuple[str, ...] = ("train", "validation")
    sizes: tuple[tuple[int, int], ...] = ()
    """Height and width; a picture is measured at every size whose ratio is the nearest to its own. Empty: the sizes of
    the experiment's pictures."""
    shown: int = 12
    """Pictures of each split that are kept for the report, with their state after every scale."""
    batch_size: int = 32
    """Pictures in memory and on the device at once."""
    lpips_vgg: str = ""
    """torchvision's VGG16 weights, a file; with `lpips_linear` the LPIPS is measured, without them it is left out."""
    lpips_linear: str = ""
    """The linear weights of the package lpips, its file for VGG."""
    inception: str = ""
    """pytorch-fid's file pt_inception-2015-12-05-6726825d.pth; without it the rFID is left out."""
    seed: int = 0
    """Chooses the pictures."""
    targets: tuple[tuple[str, float], ...] = ()
    """(metric, value it should reach), shown beside the measured figures."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        for name in ("pictures", "batch_size"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use 1 or more")
        if self.shown < 0:
            yield Fault("shown", self.shown, "must not be negative", "use 0 to keep no pictures")
        if not self.splits or set(self.splits) - set(SPLITS) or len(set(self.splits)) < len(self.splits):
            yield Fault("splits", self.splits, f"must be some of {SPLITS}, each once", "use ('train', 'validation')")
        if bool(self.lpips_vgg) != bool(self.lpips_linear):
            missing = "lpips_linear" if self.lpips_vgg else "lpips_vgg"
            yield Fault(missing, "", "LPIPS needs both files", "give the other one too, or neither")
