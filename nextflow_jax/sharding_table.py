"""What lies where, for people: the table of every array of a state, and which bytes lie whole on every device."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from nextflow_jax.sharding import logical_axes

HEADER = ("array", "shape", "dtype", "logical axes", "partition", "bytes on a device")
"""Columns of the table."""


class PlacedArray(NamedTuple):
    """A row of the table."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    """The logical axis of each dimension; () where none are named."""
    sharding: NamedSharding

    @property
    def num_bytes(self) -> int:
        """Of the whole array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def local_bytes(self) -> int:
        """Of a device's part."""
        return math.prod(self.sharding.shard_shape(self.shape)) * np.dtype(self.dtype).itemsize


def placed_arrays(arrays: Any, axes: Any, shardings: Any) -> list[PlacedArray]:
    """The rows of three trees of one structure: arrays or their shapes, `LogicalAxes`, shardings."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    rest = jax.tree.leaves(axes), jax.tree.leaves(shardings)
    return [
        PlacedArray(_path_name(path), leaf.shape, str(leaf.dtype), names.names, sharding)
        for (path, leaf), names, sharding in zip(leaves, *rest, strict=True)
    ]


def sharding_table(variables: Any, shardings: Any) -> str:
    """The table of variables that are boxed with their logical axes; see `table_of`."""
    return table_of(placed_arrays(meta.unbox(variables), logical_axes(variables), shardings))


def table_of(rows: Sequence[PlacedArray]) -> str:
    """The columns' names; one line an array: name, shape, dtype, logical axes, partition, bytes; then the totals."""
    cells = [HEADER, *(tuple(_cells(row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    total, local = sum(row.num_bytes for row in rows), sum(row.local_bytes for row in rows)
    return "\n".join([*lines, f"total {total:,} bytes, {local:,} on each device"])


def whole_on_every_device(rows: Sequence[PlacedArray], at_least: int) -> list[PlacedArray]:
    """Arrays of at least so many bytes that no axis of the mesh splits, the largest first."""
    whole = (row for row in rows if row.local_bytes == row.num_bytes >= at_least)
    return sorted(whole, key=lambda row: -row.num_bytes)


def _cells(row: PlacedArray) -> Iterator[str]:
    yield row.name
    yield "x".join(map(str, row.shape)) or "scalar"
    yield row.dtype
    yield ",".join(axis or "-" for axis in row.axes) or "-"
    yield _spec_text(row.sharding.spec)
    yield f"{row.local_bytes:,}"


def _path_name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _spec_text(spec: PartitionSpec) -> str:
    entries = ["-" if entry is None else "+".join((entry,) if isinstance(entry, str) else entry) for entry in spec]
    return f"({', '.join(entries)})" if entries else "replicated"
