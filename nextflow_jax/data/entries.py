"""Entries of a mixture: documents named by task, by source, or by both, and stars for one entry each."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from nextflow_jax.data.index import DocumentIndex

EVERYTHING = "all"
"""The entry that has every document."""
EACH = "*"

Table = tuple[tuple[str, float], ...]
"""(entry, number): weights, shares, epochs."""


def has_star(entry: str) -> bool:
    """Whether it stands for one entry each."""
    return EACH in _parts(entry)


def covers(pattern: str, entry: str) -> bool:
    """Whether `entry` is `pattern`, or one that its star stands for."""
    pairs = zip(_parts(pattern), _parts(entry))
    return all(ours == theirs or (ours == EACH and theirs is not None) for ours, theirs in pairs)


def value(entry: str, table: Table) -> float | None:
    """What a table says of an entry, by its own name before a star's; None: nothing."""
    own = dict(table)
    return own[entry] if entry in own else next((number for name, number in table if covers(name, entry)), None)


def find_entries(patterns: Iterable[str], index: DocumentIndex, usable: Bool[np.ndarray, "records"]) -> list[str]:
    """Entries without stars: those of `patterns` and those that their stars stand for; each once, as they come."""
    found: dict[str, None] = {}
    for pattern in dict.fromkeys(patterns):
        starred = [entry for entry in entries_like(pattern, index, usable) if covers(pattern, entry)]
        found |= dict.fromkeys(starred if has_star(pattern) else [pattern])
    return list(found)


def entries_like(entry: str, index: DocumentIndex, usable: Bool[np.ndarray, "records"]) -> list[str]:
    """Entries of the same form (task, source or both) that have usable documents, sorted."""
    task, source = _parts(entry)
    pair = index.task[usable] * len(index.sources) + index.source[usable]
    there = np.flatnonzero(np.bincount(pair, minlength=1)).tolist()
    names = set()
    for t, s in (divmod(number, len(index.sources)) for number in there):
        names.add(
            ("" if task is None else index.tasks[t]) + ("" if source is None else f"@{index.sources[s]}") or EVERYTHING
        )
    return sorted(names)


def members(entry: str, index: DocumentIndex) -> Bool[np.ndarray, "records"]:
    """The documents of an entry without stars."""
    task, source = _parts(entry)
    result = np.ones(len(index), bool)
    for wanted, column, names in ((task, index.task, index.tasks), (source, index.source, index.sources)):
        if wanted is not None:
            result &= column == (names.index(wanted) if wanted in names else -1)
    return result


def _parts(entry: str) -> tuple[str | None, str | None]:
    """(task, source) of an entry; None: any."""
    if entry == EVERYTHING:
        return None, None
    task, at, source = entry.partition("@")
    return task or None, source if at else None
