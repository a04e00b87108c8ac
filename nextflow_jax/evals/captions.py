"""Is a generated caption the picture's name? Exact match, strictly or with the names of pixel-identical pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt8


def exact_match(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> Bool[np.ndarray, "Q"]:
    """Whether each answer is one of its accepted captions, up to surrounding white space."""
    pairs = zip(answers, accepted, strict=True)
    return np.array([answer.strip() in {caption.strip() for caption in captions} for answer, captions in pairs], bool)


def twins(images: UInt8[np.ndarray, "R height width 3"], keys: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Key of each picture -> keys of all pictures with the very same pixels, itself included."""
    by_pixels: dict[bytes, list[str]] = {}
    for image, key in zip(images, keys, strict=True):
        by_pixels.setdefault(image.tobytes(), []).append(key)
    return {key: tuple(group) for group in by_pixels.values() for key in group}
