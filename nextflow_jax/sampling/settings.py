"""How the next token is drawn: guidance, temperature, top-k and top-p, each one number or one a scale."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from nextflow_jax.config import Fault, nearest

PerScale = float | int | Sequence[float] | Sequence[int]
"""One number for every scale of a picture, or one a scale, coarse to fine; a short list goes on with its last entry."""

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")
GUIDANCE_DROPS = ("text", "all")

_PICTURE_FIELDS = ("guidance", "temperature", "top_k", "top_p")


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """Settings of one request; a bundle carries the ones to use when nothing else is said."""

    guidance: PerScale = 1.0
    """Classifier-free guidance g: logits = unguided + g * (guided - unguided). 1 samples the conditional model as it
    is; so does 0, which means "off"."""
    temperature: PerScale = 0.7
    """Divides the logits of codes; 0 takes the most likely code."""
    top_k: PerScale = 20
    """Candidates kept for each code; 0 keeps all."""
    top_p: PerScale = 1.0
    """Keeps the fewest likeliest candidates whose probabilities sum to at least this."""
    text_temperature: float = 0.0
    """The same three for text tokens."""
    text_top_k: int = 0
    text_top_p: float = 1.0
    guidance_schedule: str = "constant"
    """How guidance goes from scale 1 to scale K: "constant"; "linear" from 1 to g in equal steps (VAR's ramp,
    arXiv 2404.02905); "cosine" from 1 to g, slow at both ends."""
    guidance_scales: tuple[int, ...] = ()
    """(first, last) scale that is guided, counted from 1; the others are not (guidance in an interval, arXiv
    2404.07724). Empty: all are."""
    guidance_drops: str = "text"
    """What the unguided half does not see: "text" of the prompt, as training's condition dropout leaves a document; or
    "all" of it, its pictures too, which is what that dropout leaves of a text-to-image document."""

    def __post_init__(self) -> None:
        # JSON knows lists only; a frozen value must be hashable.
        for name in _PICTURE_FIELDS:
            value = getattr(self, name)
            if isinstance(value, Sequence):
                object.__setattr__(self, name, tuple(value))

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        fields = [*_PICTURE_FIELDS, "text_temperature", "text_top_k", "text_top_p"]
        for name in fields:
            value = getattr(self, name)
            entries = value if isinstance(value, tuple) else (value,)
            if not entries:
                yield Fault(name, value, "needs at least one entry", "give one number, or one a scale")
            elif name.endswith("top_p") and not all(0 < entry <= 1 for entry in entries):
                yield Fault(name, value, "must be in (0, 1]", "use 1.0 to keep every candidate")
            elif name.endswith("top_k") and not all(entry >= 0 and entry == int(entry) for entry in entries):
                yield Fault(name, value, "must be a whole number, not negative", "use 0 to keep every candidate")
            elif not all(0 <= entry < float("inf") for entry in entries):
                yield Fault(name, value, "must be a finite number, not negative", "use 0 to switch it off")
        yield from self._guidance_faults()

    def _guidance_faults(self) -> Iterator[Fault]:
        choices = {"guidance_schedule": GUIDANCE_SCHEDULES, "guidance_drops": GUIDANCE_DROPS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                yield Fault(name, value, f"must be one of {', '.join(known)}", nearest(value, known))
        if self.guidance_schedule != "constant" and isinstance(self.guidance, tuple):
            rule = f"a {self.guidance_schedule} schedule ends at one number"
            yield Fault("guidance", self.guidance, rule, "give one, or use the schedule 'constant'")
        scales = self.guidance_scales
        if scales and not (len(scales) == 2 and 1 <= scales[0] <= scales[1]):
            yield Fault("guidance_scales", scales, "must be (first, last) with 1 <= first <= last", "use () for all")

    @property
    def guided(self) -> bool:
        """Whether any scale needs the unguided half."""
        value = self.guidance if isinstance(self.guidance, tuple) else (self.guidance,)
        return any(entry not in (0, 1) for entry in value)

    def guidance_of_scales(self, num_scales: int) -> Float[np.ndarray, "K"]:
        """Guidance of each scale of a picture of `num_scales`: schedule and interval resolved to numbers."""
        values = per_scale(self.guidance, num_scales)
        if self.guided and self.guidance_schedule != "constant":
            share = np.linspace(0, 1, num_scales) if num_scales > 1 else np.ones(1)
            if self.guidance_schedule == "cosine":
                share = (1 - np.cos(np.pi * share)) / 2
            values = (1 + share * (values - 1)).astype(np.float32)
        if self.guidance_scales:
            first, last = self.guidance_scales
            scale = np.arange(1, num_scales + 1)
            values = np.where((scale >= first) & (scale <= last), values, np.float32(1))
        return values


def per_scale(value: PerScale, num_scales: int) -> Float[np.ndarray, "K"]:
    """`value` as one number a scale."""
    entries = list(value) if isinstance(value, Sequence) else [value]
    padded = entries + entries[-1:] * (num_scales - len(entries))
    return np.asarray(padded[:num_scales], np.float32)
