"""Drawing: documents of the stream with what chance makes of them, and what they cost then."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nextflow_jax.data.keys import uniform_range
from nextflow_jax.data.stream import DocumentStream
from nextflow_jax.data.tally import Grouping


class Chances(NamedTuple):
    """What may happen to a document, decided by the seed and its position in the stream."""

    seed: int
    condition_dropout: float
    """Share of documents whose condition text is dropped."""
    task_inversion: float
    """Share of the documents that can be turned around that are."""


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentTable:
    """What a plan knows of every record of a split."""

    length: Int[np.ndarray, "records"]
    """Positions with the condition."""
    condition: Int[np.ndarray, "records"]
    """Positions that dropping the condition saves."""
    task: Int[np.ndarray, "records"]
    tasks: tuple[str, ...]
    inverted_length: Int[np.ndarray, "records"]
    """Positions turned around (from text to image into captioning); 0 where a document cannot be."""
    pairs: Int[np.ndarray, "records"]
    """Visible pairs of `length` positions."""
    condition_pairs: Int[np.ndarray, "records"]
    """Pairs that dropping the condition saves."""
    inverted_pairs: Int[np.ndarray, "records"]
    """Pairs of `inverted_length` positions."""
    source: Grouping | None = None
    entry: Grouping | None = None
    """Of the mixture: the stream's pools, in their order."""

    @property
    def groupings(self) -> tuple[Grouping, ...]:
        """By task, and by source and entry where they are known."""
        return (Grouping(self.task, self.tasks), *(group for group in (self.source, self.entry) if group is not None))

    def expected_lengths(self, condition_dropout: float, task_inversion: float) -> Float[np.ndarray, "records"]:
        """Positions of every record on average."""
        lengths = self.length - condition_dropout * self.condition
        turned = np.where(self.inverted_length > 0, task_inversion, 0.0)
        return (1 - turned) * lengths + turned * self.inverted_length


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """Documents drawn from the stream, in stream order."""

    records: Int[np.ndarray, "documents"]
    dropped: Bool[np.ndarray, "documents"]
    """True: without its condition."""
    inverted: Bool[np.ndarray, "documents"]
    """True: turned around; then nothing of it is dropped."""
    lengths: Int[np.ndarray, "documents"]
    pairs: Int[np.ndarray, "documents"]

    def first(self, count: int) -> "Stretch":
        """The first documents of it."""
        return Stretch(*(getattr(self, field.name)[:count] for field in dataclasses.fields(self)))


def draw(
    stream: DocumentStream, table: DocumentTable, chances: Chances, start: int, capacity: int
) -> tuple[Stretch, bool]:
    """Documents from stream position `start` on, as many as fill `capacity` positions at most.

    Returns:
      (the documents, whether the stream has no more of them).
    """
    stop, mean = start, max(1.0, float(table.length.mean()))
    parts: list[Stretch] = []
    filled, ended = 0, False
    while filled <= capacity and not ended:
        begin, stop = stop, stop + max(16, int((capacity - filled) / mean * 1.05))
        parts.append(_look_up(stream, table, chances, begin, stop))
        filled += int(parts[-1].lengths.sum())
        ended = len(parts[-1].records) < stop - begin
    names = [field.name for field in dataclasses.fields(Stretch)]
    whole = Stretch(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    count = int(np.searchsorted(np.cumsum(whole.lengths), capacity, side="right"))
    return whole.first(count), ended and count == len(whole.records)


def _look_up(stream: DocumentStream, table: DocumentTable, chances: Chances, start: int, stop: int) -> Stretch:
    """The documents at these positions, or those before the stream's end."""
    records = stream.records(start, stop)
    stop = start + len(records)
    turned = uniform_range(start, stop, chances.seed, "inversion") < chances.task_inversion
    inverted = turned & (table.inverted_length[records] > 0)
    dropped = (uniform_range(start, stop, chances.seed, "condition") < chances.condition_dropout) & ~inverted
    lengths = table.length[records] - dropped * table.condition[records]
    pairs = table.pairs[records] - dropped * table.condition_pairs[records]
    return Stretch(
        records,
        dropped,
        inverted,
        np.where(inverted, table.inverted_length[records], lengths),
        np.where(inverted, table.inverted_pairs[records], pairs),
    )
