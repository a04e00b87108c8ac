"""What an inspection finds: tables of counts, and the records that are broken."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

QUANTILES = (0, 10, 50, 90, 99, 100)
"""Of lengths, in percent."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Plain text in rows under a header; the first column is words."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Broken:
    """A record, or a whole file, that is not what it should be."""

    key: str
    """Of the record; the file's name when it is a file."""
    where: str
    reason: str

    def __str__(self) -> str:
        return f"broken: {self.key} ({self.where}): {self.reason}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """Of one directory."""

    tables: tuple[Table, ...]
    broken: tuple[Broken, ...]
    checked: int
    """Records that were read."""
    records: int
    """Records that there are."""


def as_text(table: Table) -> str:
    """The table as lines, columns aligned: numbers at their right, words at their left."""
    rows = [table.header, *table.rows]
    columns = [list(column) for column in zip(*rows)]
    for column in columns:
        width = max(map(len, column))
        numbers = all(cell[:1].isdigit() for cell in column[1:])
        column[:] = [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]
    return "\n".join([table.title, *("  " + "  ".join(row).rstrip() for row in zip(*columns))])


def spread(total: int, wanted: int) -> Int[np.ndarray, "_"]:
    """Numbers of `wanted` of `total` records, evenly spread, first and last among them; all if there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.int64))


def histogram(title: str, unit: str, counts: Mapping[str, collections.Counter[int]]) -> Table:
    """How often each number occurs, in bins that double: a row a bin, a column for every name."""
    bins = sorted({value.bit_length() for counter in counts.values() for value in counter})
    binned = {name: collections.Counter[int]() for name in counts}
    for name, counter in counts.items():
        for value, count in counter.items():
            binned[name][value.bit_length()] += count
    rows = tuple((_bin_name(each), *(f"{binned[name][each]:,}" for name in counts)) for each in bins)
    return Table(title, (unit, *counts), rows)


def quantile_table(
    title: str, unit: str, counted: str, values: Mapping[str, Int[np.ndarray, "_"]], *, with_sum: bool
) -> Table:
    """Quantiles of each name's numbers, how many there are (of what `counted` says), and their sum where asked."""
    rows = []
    for name, each in values.items():
        if len(each):
            total = [f"{int(each.sum()):,}"] if with_sum else []
            rows.append((name, f"{len(each):,}", *total, *(f"{value:,}" for value in _quantiles(each))))
    header = (unit, counted, *(["sum"] if with_sum else []), *map(_quantile_name, QUANTILES))
    return Table(title, header, tuple(rows))


def count_table(title: str, names: Sequence[str], counts: Mapping[tuple[str, ...], Iterable[int]]) -> Table:
    """Rows of numbers under the first names' labels, sorted by them."""
    rows = tuple((*labels, *(f"{value:,}" for value in values)) for labels, values in sorted(counts.items()))
    return Table(title, tuple(names), rows)


def _quantiles(values: Int[np.ndarray, "_"]) -> list[int]:
    return np.percentile(values, QUANTILES, method="nearest").astype(np.int64).tolist()


def _quantile_name(percent: int) -> str:
    return {0: "least", 50: "median", 100: "most"}.get(percent, f"{percent}%")


def _bin_name(bits: int) -> str:
    least, most = (1 << bits) >> 1, (1 << bits) - 1
    return f"{least:,}" if least >= most else f"{least:,}-{most:,}"
