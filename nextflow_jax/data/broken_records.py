"""Broken records: those that no worker could read are counted in one place, and too many of them stop the run."""

import logging
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from nextflow_jax.data.index import DocumentIndex
from nextflow_jax.errors import UserError

_LOG = logging.getLogger(__name__)


class BuiltBatch(TypedDict):
    """What a thread or a worker process made."""

    arrays: dict[str, np.ndarray]
    """[rows, S, ...] by name."""
    broken: dict[int, str]
    """Numbers of the records that it could not read, and why."""


class BrokenRecords:
    """Counts the unreadable records of a split that this process's batches tell of, whichever worker built them."""

    def __init__(self, index: DocumentIndex, max_fraction: float):
        self._index = index
        self._max_fraction = max_fraction
        self._records: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def count(self, batch: BuiltBatch) -> dict[str, np.ndarray]:
        """The arrays of a batch, whose broken records are counted and logged, each once.

        Raises:
          UserError: with them, more than the allowed share of the split's records are broken.
        """
        self._add(batch["broken"])
        return batch["arrays"]

    def _add(self, broken: Mapping[int, str]) -> None:
        for record, reason in broken.items():
            if record in self._records:
                continue
            self._records.add(record)
            count, key = len(self._records), self._index.key(record)
            _LOG.warning("skipped broken record %d (%s): %s; %d so far", record, key, reason, count)
            if count > self._max_fraction * len(self._index):
                raise UserError(
                    f"{count} of {len(self._index)} records are broken, the last one {key} ({reason}); "
                    f"max_broken_fraction allows {self._max_fraction}; check the shards with verify='full'"
                )
