"""64-bit hashes of texts and of other hashes, and the form in which texts are compared."""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt

NO_HASH = 0
"""Stands for what a document does not have: a text, pictures, a label. No hash of anything is 0."""


def normalise(text: str) -> str:
    """The text as it is compared: NFKC, case folded, punctuation out, white space single.

    A text of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = folded.translate(_SPACED).split()
    return " ".join(words or folded.split())


class _Spaced(dict[int, int]):
    """Code point -> itself, or a space for punctuation, separators and control characters; filled as they come."""

    def __missing__(self, point: int) -> int:
        found = self[point] = ord(" ") if unicodedata.category(chr(point))[0] in "PZC" else point
        return found


_SPACED = _Spaced()


def hash64(*parts: str) -> int:
    """The first 64 bits of the SHA-256 of `parts`; never NO_HASH."""
    digest = hashlib.sha256()
    for part in _delimited(parts):
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "big") or 1


def mix(*hashes: UInt[np.ndarray, "..."] | np.uint64) -> UInt[np.ndarray, "..."]:
    """One 64-bit hash of several, element by element: the finaliser of SplitMix64 (Steele et al. 2014) after each."""
    mixed = np.zeros(1, np.uint64)
    for values in hashes:
        mixed = mixed ^ values
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def _delimited(parts: Iterable[str]) -> Iterable[bytes]:
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        yield len(data).to_bytes(8, "big")
        yield data
