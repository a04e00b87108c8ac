"""The tally: what batches hold, counted by groups of documents, and the statistics of any number of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Grouping:
    """A way to tell documents apart, e.g. by task."""

    of_record: Int[np.ndarray, "records"]
    """The group of every record; -1: none."""
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """Counts of consecutive global batches."""

    rows: Int[np.ndarray, "batches"]
    positions: Int[np.ndarray, "batches"]
    """Of the rows, padding included."""
    documents: Int[np.ndarray, "batches"]
    tokens: Int[np.ndarray, "batches"]
    """Positions that are no padding."""
    inverted: Int[np.ndarray, "batches"]
    """Documents that are turned around."""
    imbalance: Float[np.ndarray, "batches"]
    """The cost of the dearest group of a batch's rows, as a multiple of the mean group's."""
    grouped: tuple[tuple[Int[np.ndarray, "batches _"], Int[np.ndarray, "batches _"]], ...]
    """Documents and tokens by group, for each grouping."""

    def part(self, start: int, stop: int) -> "Tally":
        """The counts of batches start..stop-1."""
        columns = {field.name: getattr(self, field.name)[start:stop] for field in dataclasses.fields(self)[:-1]}
        return Tally(**columns, grouped=tuple((d[start:stop], t[start:stop]) for d, t in self.grouped))


def imbalance(costs: Float[np.ndarray, "rows"], batch_size: int, groups: int) -> Float[np.ndarray, "batches"]:
    """The cost of the dearest group of each batch's rows, as a multiple of the mean group's."""
    of_groups = costs.reshape(-1, groups, batch_size // groups).sum(axis=2)
    return of_groups.max(axis=1) / of_groups.mean(axis=1)


def count_groups(
    grouping: Grouping,
    records: Int[np.ndarray, "documents"],
    lengths: Int[np.ndarray, "documents"],
    batch: Int[np.ndarray, "documents"],
    batches: int,
) -> tuple[Int[np.ndarray, "batches groups"], Int[np.ndarray, "batches groups"]]:
    """Documents and tokens of every batch by group.

    Args:
      grouping: the groups.
      records: the documents.
      lengths: positions of each.
      batch: the batch of each, counted from 0.
      batches: how many there are.
    """
    groups = len(grouping.names)
    group = grouping.of_record[records].astype(np.int64)
    cell = (batch * groups + group)[group >= 0]
    shape, size = (batches, groups), batches * groups
    documents = np.bincount(cell, minlength=size).reshape(shape)
    tokens = np.bincount(cell, weights=lengths[group >= 0], minlength=size).reshape(shape)
    return documents, tokens.astype(np.int64)


def describe(tallies: Sequence[Tally], groupings: Sequence[Grouping], *, with_inverted: bool) -> dict[str, float]:
    """The mixture and padding of all batches of some tallies.

    Returns:
      padding_share of all positions, documents_per_row, cost_imbalance (mean over batches), and for every group
      documents/<name> and tokens/<name>: its share of the documents and of the positions that are no padding; a name
      that several groupings have comes once, groups without documents not at all, nor further groupings of one group.
      `with_inverted` adds documents/inverted, which count among those of their groups too.
    """
    documents, tokens = (int(sum(getattr(tally, name).sum() for tally in tallies)) for name in ("documents", "tokens"))
    found = {
        "padding_share": 1 - tokens / sum(int(tally.positions.sum()) for tally in tallies),
        "documents_per_row": documents / sum(int(tally.rows.sum()) for tally in tallies),
        "cost_imbalance": float(np.concatenate([tally.imbalance for tally in tallies]).mean()),
    }
    for place, grouping in enumerate(groupings):
        if place and len(grouping.names) == 1:
            continue
        counts = [sum(tally.grouped[place][kind].sum(axis=0) for tally in tallies) for kind in (0, 1)]
        for number in np.flatnonzero(counts[0]):
            found[f"documents/{grouping.names[number]}"] = float(counts[0][number] / max(documents, 1))
            found[f"tokens/{grouping.names[number]}"] = float(counts[1][number] / max(tokens, 1))
    if with_inverted:
        found["documents/inverted"] = sum(int(tally.inverted.sum()) for tally in tallies) / max(documents, 1)
    return found
