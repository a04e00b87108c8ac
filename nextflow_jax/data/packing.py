"""Packing: which documents share a row. Strategies by name; none ever splits a document."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

Packer = Callable[[Int[np.ndarray, "documents"], int], list[Int[np.ndarray, "_"]]]
"""(lengths, row length) to the rows, each an array of positions in `lengths`, growing; every document in one row."""


def pack_fixed_length(lengths: Int[np.ndarray, "documents"], row_length: int) -> list[Int[np.ndarray, "_"]]:
    """First fit decreasing into rows of `row_length` positions.

    Documents of one length are placed together: in order, each open row takes as many as fit, which is where placing
    them one by one would have put them. The cost is one array operation a distinct length.

    Raises:
      ValueError: a document that is empty or longer than a row.
    """
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= row_length:
        raise ValueError(f"lengths {lengths.min()}..{lengths.max()} do not fit rows of 1..{row_length}")
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
        rows = np.concatenate(
            [
                np.searchsorted(room, np.arange(in_opened), side="right"),
                opened + np.arange(len(group) - in_opened) // a_new_row,
            ]
        )
        remaining[opened : opened + new_rows] = row_length
        opened += new_rows
        remaining[:opened] -= length * np.bincount(rows, minlength=opened)
        row_of[group] = rows
    by_row = np.argsort(row_of, kind="stable")
    return np.split(by_row, np.searchsorted(row_of[by_row], np.arange(1, opened))) if opened else []


STRATEGIES: dict[str, Packer] = {"fixed_length": pack_fixed_length}
"""What `PipelineConfig.packing` may name."""
