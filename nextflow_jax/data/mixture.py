"""The mixture: which documents are read and in which shares, by task and source, documents or tokens, step by step."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Shaped

from nextflow_jax.config import Fault, nearest
from nextflow_jax.data import entries
from nextflow_jax.data.entries import EACH, EVERYTHING, Table
from nextflow_jax.data.index import DocumentIndex
from nextflow_jax.data.stream import BLOCK, DocumentStream, Pool
from nextflow_jax.errors import UserError

_FINE_BLOCK = 100_000
"""Stream positions that keep the shares where they are not given in documents: a share of the tokens may be few."""


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Which documents are read, how often.

    An entry names documents by task, source or both: `text`, `@wiki`, `text@wiki`; a star stands for one entry each:
    `@*` every source, `text@*` every source of a task, `*` every task. No document may be in two entries. Documents
    of an entry are reshuffled each time they are used up.
    """

    weights: Table = ()
    """(entry, weight): entries in proportion to their weights. Empty: every document once an epoch, whatever it is;
    with a temperature, every source with the same weight."""
    unit: str = "documents"
    """What weights and shares are of: "documents", or "tokens", the positions of a row."""
    temperature: float = 0.0
    """T > 0: in proportion to weight * size^(1/T), size in units; 1 follows the sizes, the larger the more even.
    0: sizes do not matter. (mT5, arXiv 2010.11934, has 1/T = 0.3.)"""
    shares: Table = ()
    """(entry, share of the whole): has exactly that, and what `weights` name divides the rest; `(("text", 0.25),)` is
    the quarter of text of the paper's Table 1."""
    max_epochs: Table = ()
    """(entry, epochs): seen so many times, the entry is exhausted and the others divide its share. Where all are, the
    data end."""
    changes: tuple[tuple[int, Table], ...] = ()
    """(global batch, weights): from that batch on, these weights; entries go on where they were. Batch n is trained in
    step n + 1."""

    @property
    def phases(self) -> tuple[tuple[int, Table], ...]:
        """(first global batch, weights), the first from 0 on."""
        everything = ((f"@{EACH}", 1.0),) if self.temperature else ((EVERYTHING, 1.0),)
        return ((0, self.weights or everything), *self.changes)

    @property
    def patterns(self) -> list[str]:
        """Every entry named, those of all phases."""
        return list(dict.fromkeys(entry for table in (*dict(self.phases).values(), self.shares) for entry, _ in table))

    def faults(self) -> Iterator[Fault]:
        """The rules this mixture breaks."""
        if self.unit not in ("documents", "tokens"):
            yield Fault("unit", self.unit, "is no unit", nearest(self.unit, ("documents", "tokens")))
        if self.temperature < 0:
            yield Fault("temperature", self.temperature, "must not be negative", "use 0.0 for weights as they are")
        yield from self._weight_faults("weights", self.weights)
        for number, (_, weights) in enumerate(self.changes):
            yield from self._weight_faults(f"changes.{number}", weights)
        yield from self._change_faults()
        yield from self._share_faults()
        yield from self._epoch_faults()

    def _weight_faults(self, field: str, weights: Table) -> Iterator[Fault]:
        exact = self.unit == "documents" and not self.temperature
        least = sum(weight for _, weight in weights) / BLOCK if exact else 0.0
        for entry, weight in weights:
            if weight <= 0 or weight < least:
                rule = f"every weight must be positive and at least 1/{BLOCK} of their sum"
                yield Fault(field, (entry, weight), rule, "leave the entry out or raise it")
        names = [entry for entry, _ in weights]
        for entry in sorted({name for name in names if names.count(name) > 1}):
            yield Fault(field, entry, "each entry may appear once", "add the weights")

    def _change_faults(self) -> Iterator[Fault]:
        batches = [batch for batch, _ in self.changes]
        if any(later <= earlier for earlier, later in zip([0, *batches], batches)):
            yield Fault("changes", batches, "their batches must grow, and begin after 0", "put them in order")
        if self.changes and not all(weights for _, weights in self.phases[1:]):
            yield Fault("changes", self.changes, "each change needs weights", "name the entries from then on")
        if self.changes and not self.weights:
            yield Fault("weights", (), "changes need weights before them", "name the entries from the start")

    def _share_faults(self) -> Iterator[Fault]:
        total = sum(share for _, share in self.shares)
        if any(share <= 0 for _, share in self.shares) or total >= 1:
            yield Fault("shares", self.shares, "must be positive and sum to less than 1", "lower them")
        if self.shares and not self.weights:
            yield Fault("weights", (), "shares need entries that divide the rest", "name these with weights")
        weighted = {entry for _, weights in self.phases for entry, _ in weights}
        for entry, _ in self.shares:
            if entry in weighted or entries.has_star(entry):
                yield Fault("shares", entry, "must be one entry, without a weight", "leave out its weight or the star")

    def _epoch_faults(self) -> Iterator[Fault]:
        for entry, epochs in self.max_epochs:
            if epochs <= 0:
                yield Fault("max_epochs", (entry, epochs), "must be positive", "leave the entry out of the weights")
            if not any(entries.covers(name, entry) or entries.covers(entry, name) for name in self.patterns):
                yield Fault("max_epochs", entry, "is no entry of the mixture", nearest(entry, self.patterns))


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture's entries found in the shards, from which the stream of every phase follows."""

    config: MixtureConfig
    pools: tuple[Pool, ...]
    pool_of: Int[np.ndarray, "records"]
    """The pool of every record; -1: in none."""

    def stream(self, document_weights: tuple[float, ...], seed: int) -> DocumentStream:
        """The stream of the first phase, whose weights `document_weights` gives."""
        coarse = self.config.unit == "documents" and not (self.config.temperature or self.config.shares)
        return DocumentStream(self.pools, document_weights, seed, BLOCK if coarse else _FINE_BLOCK)

    def document_weights(self, batch: int, lengths: Shaped[np.ndarray, "records"]) -> tuple[float, ...]:
        """Documents of each pool, in proportion, in the phase of a global batch.

        Args:
          batch: any of the phase.
          lengths: positions of every record, as expected where chance has a part.

        Raises:
          UserError: an entry gets so few documents that they cannot be kept.
        """
        config = self.config
        weights = [weights for first, weights in config.phases if first <= batch][-1]
        means = np.asarray([lengths[pool.records].mean() for pool in self.pools], np.float64)
        units = means if config.unit == "tokens" else np.ones(len(self.pools))
        counts = np.asarray([len(pool.records) for pool in self.pools], np.float64)
        exact = np.asarray([entries.value(pool.name, config.shares) or 0.0 for pool in self.pools])
        result = np.asarray([entries.value(pool.name, weights) or 0.0 for pool in self.pools]) * (exact == 0)
        if config.temperature:
            result = result * (counts * units) ** (1 / config.temperature)
        if exact.any():
            result = exact + (1 - exact.sum()) * result / result.sum()
        result = result / units if config.unit == "tokens" else result
        few = (result > 0) & (result * _FINE_BLOCK < result.sum())
        if few.any():
            entry = self.pools[int(np.flatnonzero(few)[0])].name
            raise UserError(
                f"mixture entry {entry!r} would be less than 1 of {_FINE_BLOCK} documents from batch {batch} on; raise "
                "its weight, lower config.pipeline.mixture.temperature, or leave it out"
            )
        return tuple(result.tolist())


def resolve_mixture(config: MixtureConfig, index: DocumentIndex, usable: Bool[np.ndarray, "records"]) -> Mixture:
    """Finds the entries of all phases in the shards.

    Args:
      config: what is asked for.
      index: of the split.
      usable: records that may appear.

    Raises:
      UserError: an entry that the shards lack, a document in two entries, or nothing to read.
    """
    if not usable.any():
        raise UserError(f"none of the {len(usable)} documents of the shards fits a row; raise row_length")
    pools: list[Pool] = []
    pool_of = np.full(len(index), -1, np.int16)
    for name in entries.find_entries(config.patterns, index, usable):
        records = np.flatnonzero(usable & entries.members(name, index))
        if not records.size:
            there = entries.entries_like(name, index, usable)
            raise UserError(f"mixture entry {name!r} has no document in the shards; {nearest(name, there)}")
        taken = pool_of[records]
        if taken.max() >= 0:
            other, count = pools[taken.max()].name, np.count_nonzero(taken == taken.max())
            raise UserError(
                f"mixture entries {other!r} and {name!r} share {count} documents; name them apart, e.g. by task and "
                "source (TASK@SOURCE)"
            )
        pool_of[records] = len(pools)
        epochs = entries.value(name, config.max_epochs)
        pools.append(Pool(name, records, None if epochs is None else max(1, round(epochs * len(records)))))
    return Mixture(config, tuple(pools), pool_of)


def make_stream(
    config: MixtureConfig, index: DocumentIndex, usable: Bool[np.ndarray, "records"], seed: int
) -> DocumentStream:
    """The stream of a split in the mixture's first phase, lengths as the index has them; see `resolve_mixture`."""
    mixture = resolve_mixture(config, index, usable)
    return mixture.stream(mixture.document_weights(0, index.plain), seed)
