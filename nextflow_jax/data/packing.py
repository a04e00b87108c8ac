"""Packing: which documents share a row, and which rows a batch. Strategies by name; none ever splits a document.

    pad_each_batch   a document a row, batches in the order of the stream: what every other strategy is measured against
    fixed_length     rows filled up by first fit decreasing, in random order
    compute_budget   rows filled up with the same mix of long and short documents, so that their FLOPs are about equal;
                     rows that cannot be, which one long document fills, come in the same batches, spread evenly

Every row has `row_length` positions, whatever the strategy: programs for accelerators have static shapes.

Source: the three strategies of NextFlow's Table 3 (recipe section 5). There the budget bounds what a rank computes and
its number of positions varies; here the positions are fixed, and the budget evens out what attention costs.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

_DEALT = 0.9
"""Share of the rows that `pack_evenly` deals out; the rest fills gaps."""


@runtime_checkable
class Packer(Protocol):
    """Puts every document into one row."""

    def __call__(
        self, lengths: Int[np.ndarray, "documents"], row_length: int, rows: int | None = None
    ) -> list[Int[np.ndarray, "_"]] | None:
        """The rows, each an array of positions in `lengths`, growing.

        Args:
          lengths: positions of every document.
          row_length: positions of a row.
          rows: how many there are; a packer may use more of them, which tells that the documents are too many.

        Returns:
          The rows; None: the documents do not fit.
        """
        ...


@runtime_checkable
class Arranger(Protocol):
    """Puts the rows of a window into its batches."""

    def __call__(
        self, costs: Float[np.ndarray, "rows"], batch_size: int, ranks: int, generator: np.random.Generator
    ) -> Int[np.ndarray, "rows"]:
        """The order of the rows: batch after batch, within a batch rank after rank.

        Args:
          costs: FLOPs of the rows, or any multiple.
          batch_size: rows of a batch.
          ranks: groups of a batch's rows, equally many each, that wait for one another.
          generator: of all that is random.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a window's documents become rows and batches."""

    pack: Packer
    arrange: Arranger
    tolerance: float = 0.0
    """Share of a window's documents by which the stretch that it takes may be shorter than the longest that fits."""


def pack_fixed_length(
    lengths: Int[np.ndarray, "documents"], row_length: int, rows: int | None = None
) -> list[Int[np.ndarray, "_"]]:
    """First fit decreasing into rows of `row_length` positions, as many as it takes, whatever `rows` says.

    Documents of one length are placed together: in order, each open row takes as many as fit, which is where placing
    them one by one would have put them. The cost is one array operation a distinct length.

    Raises:
      ValueError: a document that is empty or longer than a row.
    """
    del rows
    _refuse_lengths(lengths, row_length)
    remaining = np.empty(len(lengths), np.int64)
    row_of = np.empty(len(lengths), np.int64)
    opened = 0
    order = np.argsort(-lengths, kind="stable")
    distinct, starts = np.unique(-lengths[order], return_index=True)
    for length, group in zip(-distinct, np.split(order, starts[1:])):
        room = np.cumsum(remaining[:opened] // length)
        in_opened = min(len(group), int(room[-1])) if opened else 0
        a_new_row = row_length // length
        new_rows = -(-(len(group) - in_opened) // a_new_row)
        chosen = np.concatenate(
            [
                np.searchsorted(room, np.arange(in_opened), side="right"),
                opened + np.arange(len(group) - in_opened) // a_new_row,
            ]
        )
        remaining[opened : opened + new_rows] = row_length
        opened += int(new_rows)
        remaining[:opened] -= length * np.bincount(chosen, minlength=opened)
        row_of[group] = chosen
    return _by_row(row_of, opened)


def pack_one_a_row(
    lengths: Int[np.ndarray, "documents"], row_length: int, rows: int | None = None
) -> list[Int[np.ndarray, "_"]]:
    """Every document in a row of its own.

    Raises:
      ValueError: as `pack_fixed_length`.
    """
    del rows
    _refuse_lengths(lengths, row_length)
    return list(np.arange(len(lengths))[:, None])


def pack_evenly(
    lengths: Int[np.ndarray, "documents"], row_length: int, rows: int | None = None
) -> list[Int[np.ndarray, "_"]] | None:
    """Deals documents out, longest first, in rounds: the longest of a round goes to the row with the most room.

    So a row gets one document of every length class, and rows differ little in what attention costs. The shortest fill
    the rows up by first fit decreasing.

    Raises:
      ValueError: as `pack_fixed_length`.
    """
    _refuse_lengths(lengths, row_length)
    rows = len(pack_fixed_length(lengths, row_length)) if rows is None else rows
    remaining = np.full(rows, row_length, np.int64)
    row_of = np.full(len(lengths), -1, np.int64)
    order = np.argsort(-lengths, kind="stable")
    dealt = int(np.searchsorted(np.cumsum(lengths[order]), _DEALT * rows * row_length))
    start = 0
    while start < dealt:
        able = int(np.count_nonzero(remaining >= lengths[order[start]]))
        if not able:
            return None
        group = order[start : min(start + able, dealt)]
        roomiest = np.argsort(-remaining, kind="stable")[: len(group)]
        row_of[group] = roomiest
        remaining[roomiest] -= lengths[group]
        start += able
    return _by_row(row_of, rows) if _fill_up(lengths, order[dealt:], remaining, row_of) else None


def _fill_up(
    lengths: Int[np.ndarray, "documents"],
    late: Int[np.ndarray, "late"],
    remaining: Int[np.ndarray, "rows"],
    row_of: Int[np.ndarray, "documents"],
) -> bool:
    """First fit of the documents `late`, longest first, into rows with so much room; False: some do not fit."""
    distinct, starts = np.unique(-lengths[late], return_index=True)
    for length, group in zip(-distinct, np.split(late, starts[1:])):
        room = np.cumsum(remaining // length)
        if not len(room) or room[-1] < len(group):
            return False
        chosen = np.searchsorted(room, np.arange(len(group)), side="right")
        remaining -= length * np.bincount(chosen, minlength=len(remaining))
        row_of[group] = chosen
    return True


def arrange_at_random(
    costs: Float[np.ndarray, "rows"], batch_size: int, ranks: int, generator: np.random.Generator
) -> Int[np.ndarray, "rows"]:
    """Any order."""
    del batch_size, ranks
    return generator.permutation(len(costs))


def arrange_as_drawn(
    costs: Float[np.ndarray, "rows"], batch_size: int, ranks: int, generator: np.random.Generator
) -> Int[np.ndarray, "rows"]:
    """The order that they have."""
    del batch_size, ranks, generator
    return np.arange(len(costs))


def arrange_by_cost(
    costs: Float[np.ndarray, "rows"], batch_size: int, ranks: int, generator: np.random.Generator
) -> Int[np.ndarray, "rows"]:
    """Rows of about the same cost share a batch; in it, they are dealt out to the ranks, there and back.

    The order of batches, of ranks and of the rows of a rank is random.
    """
    # Rows of equal cost, such as all rows of short texts, are to mix over batches.
    shuffled = generator.permutation(len(costs))
    by_cost = shuffled[np.argsort(-costs[shuffled], kind="stable")].reshape(-1, batch_size)
    turns = by_cost.reshape(len(by_cost), batch_size // ranks, ranks).copy()
    turns[:, 1::2] = turns[:, 1::2, ::-1]
    return _shuffle_levels(turns.transpose(0, 2, 1), generator).reshape(-1)


STRATEGIES: dict[str, Strategy] = {
    "pad_each_batch": Strategy(pack_one_a_row, arrange_as_drawn),
    "fixed_length": Strategy(pack_fixed_length, arrange_at_random),
    "compute_budget": Strategy(pack_evenly, arrange_by_cost, tolerance=0.002),
}
"""What `PipelineConfig.packing` may name."""


def _shuffle_levels(
    rows: Int[np.ndarray, "batches ranks each"], generator: np.random.Generator
) -> Int[np.ndarray, "batches ranks each"]:
    """Batches in random order, in each the ranks, in each of these its rows."""
    rows = rows[generator.permutation(len(rows))]
    ranks = generator.permuted(np.broadcast_to(np.arange(rows.shape[1]), rows.shape[:2]), axis=1)
    return generator.permuted(np.take_along_axis(rows, ranks[:, :, None], axis=1), axis=2)


def _refuse_lengths(lengths: Int[np.ndarray, "documents"], row_length: int) -> None:
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= row_length:
        raise ValueError(f"lengths {lengths.min()}..{lengths.max()} do not fit rows of 1..{row_length}")


def _by_row(row_of: Int[np.ndarray, "documents"], rows: int) -> list[Int[np.ndarray, "_"]]:
    """The documents of every row, growing."""
    by_row = np.argsort(row_of, kind="stable")
    return np.split(by_row, np.searchsorted(row_of[by_row], np.arange(1, rows))) if rows else []
