"""What of documents is compared with all others, as columns: kept by the parts of a corpus, read by the selection.

A corpus's columns are those of its parts put one after the other.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Shaped, UInt, UInt8

from nextflow_jax.errors import UserError

_SCALARS = ("key", "task", "content", "pictures", "text", "label")


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The hashes of one document, each the first 64 bits of a SHA-256 where nothing else is said."""

    key: int
    task: int
    content: int
    """Of task, picture bytes and normalised texts, in order."""
    pictures: int
    """Of the bytes of all pictures in order; NO_HASH: it has none."""
    text: int
    """Of all normalised texts in order; NO_HASH: it has none."""
    label: int
    """NO_HASH: it has none."""
    perceptual: tuple[int, ...]
    """Of every picture in order, see perceptual.py; empty when pictures are not decoded."""
    colours: tuple[tuple[int, int, int], ...]
    """Mean red, green and blue of every picture."""


@dataclasses.dataclass(frozen=True, eq=False)
class FingerprintColumns:
    """The fingerprints of many documents, in corpus order."""

    key: UInt[np.ndarray, "n"]
    task: UInt[np.ndarray, "n"]
    content: UInt[np.ndarray, "n"]
    pictures: UInt[np.ndarray, "n"]
    text: UInt[np.ndarray, "n"]
    label: UInt[np.ndarray, "n"]
    num_pictures: Int[np.ndarray, "n"]
    """How many entries of the two below are the document's."""
    perceptual: UInt[np.ndarray, "pictures"]
    colours: UInt8[np.ndarray, "pictures 3"]

    def __len__(self) -> int:
        return len(self.key)


def to_columns(fingerprints: Sequence[Fingerprint]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The fingerprints as columns by name (see FingerprintColumns), to be saved with a part."""
    columns = {name: np.asarray([getattr(one, name) for one in fingerprints], np.uint64) for name in _SCALARS}
    columns["num_pictures"] = np.asarray([len(one.perceptual) for one in fingerprints], np.int32)
    columns["perceptual"] = np.asarray([bits for one in fingerprints for bits in one.perceptual], np.uint64)
    colours = [colour for one in fingerprints for colour in one.colours]
    columns["colours"] = np.asarray(colours, np.uint8).reshape(-1, 3)
    return columns


def from_columns(columns: Mapping[str, Shaped[np.ndarray, "..."]]) -> FingerprintColumns:
    """The columns of a corpus; other names in `columns` are ignored.

    Raises:
      UserError: a column is missing, or they are not of the same documents.
    """
    names = [field.name for field in dataclasses.fields(FingerprintColumns)]
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"the corpus index has no column {', '.join(missing)}; ingest the corpus again")
    documents = {len(columns[name]) for name in (*_SCALARS, "num_pictures")}
    pictures = {len(columns["perceptual"]), len(columns["colours"]), int(columns["num_pictures"].sum())}
    if len(documents) > 1 or len(pictures) > 1:
        raise UserError("the columns of the corpus index are of different lengths; ingest the corpus again")
    return FingerprintColumns(**{name: columns[name] for name in names})


def concatenate(parts: Sequence[Mapping[str, Shaped[np.ndarray, "..."]]]) -> FingerprintColumns:
    """The columns of parts, one after the other; of no parts, columns of no documents."""
    empty = to_columns([])
    return from_columns({name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in empty})
