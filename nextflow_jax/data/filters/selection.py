"""The filters that look at the whole corpus: which documents stay once duplicates are gone and labels balanced."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from nextflow_jax.data.filters.balance import over_caps
from nextflow_jax.data.filters.columns import FingerprintColumns, from_columns
from nextflow_jax.data.filters.config import FiltersConfig
from nextflow_jax.data.filters.duplicates import near_duplicates, repeats
from nextflow_jax.data.filters.hashes import NO_HASH, hash64, mix


class Selection(NamedTuple):
    """Which documents of a corpus stay, and how many went for which reason (of data/corpus/reasons.py)."""

    kept: Bool[np.ndarray, "n"]
    dropped: dict[str, int]


def select(index_columns: Mapping[str, Shaped[np.ndarray, "..."]], config: FiltersConfig, seed: int) -> Selection:
    """The documents that stay, a pure function of the arguments.

    A document is compared with those before it that are still there, reason after reason: repeated keys always,
    then what `config` asks for. Costs about 100 bytes and 20 microseconds a document.

    Args:
      index_columns: of the whole corpus in part order; those of `columns.to_columns`, others are ignored.
      config: its groups `duplicates` and `balance`.
      seed: chooses which documents of a label stay.

    Raises:
      UserError: a column is missing or of the wrong length, or the config needs fingerprints the corpus lacks.
    """
    columns = from_columns(index_columns)
    duplicates = config.duplicates
    kept = np.ones(len(columns), bool)
    dropped: dict[str, int] = {}

    def drop(reason: str, marked: Bool[np.ndarray, "n"]) -> None:
        marked = marked & kept
        dropped[reason] = int(np.count_nonzero(marked))
        kept[marked] = False

    drop("repeated key", repeats(columns.key, kept))
    if duplicates.exact:
        drop("exact duplicate", repeats(columns.content, kept))
    if duplicates.same_pictures:
        has = columns.pictures != NO_HASH
        drop("repeated pictures", repeats(mix(columns.task, columns.pictures), kept & has))
    if duplicates.near_distance >= 0:
        drop("near duplicate", near_duplicates(columns, duplicates, kept))
    if duplicates.repeats_of_text:
        has = (columns.text != NO_HASH) & _of_tasks(columns, duplicates.text_tasks)
        drop("repeated text", repeats(mix(columns.task, columns.text), kept & has, duplicates.repeats_of_text))
    if config.balance.max_per_label or config.balance.max_times_median:
        drop("label cap", over_caps(columns, config.balance, kept, seed))
    return Selection(kept, {reason: count for reason, count in dropped.items() if count})


def _of_tasks(columns: FingerprintColumns, tasks: tuple[str, ...]) -> Bool[np.ndarray, "n"]:
    return np.isin(columns.task, np.asarray([hash64(task) for task in tasks], np.uint64))
