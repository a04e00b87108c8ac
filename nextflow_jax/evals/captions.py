"""Is a generated caption the picture's name? Exact match, strictly or with the names of pixel-identical pictures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def exact_match(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> Bool[np.ndarray, "Q"]:
    """Whether each answer is one of its accepted captions, up to surrounding white space."""
    pairs = zip(answers, accepted, strict=True)
    return np.array([answer.strip() in {caption.strip() for caption in captions} for answer, captions in pairs], bool)
