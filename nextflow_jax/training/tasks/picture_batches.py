"""Batches of pictures: which pictures make up global batch n, as a pure function of (seed, n)."""

from collections.abc import Sequence

import numpy as np

from nextflow_jax.data.shuffle import shuffled
from nextflow_jax.errors import UserError


class PictureBatches:
    """Runs through the pictures in a new order each epoch; no batch holds a picture twice.

    An epoch has as many batches as fit whole; the pictures left over come in other epochs.

    Args:
      keys: the pictures to draw from.
      seed: of the experiment.
      batch_size: rows of the global batch.

    Raises:
      UserError: fewer pictures than rows.
    """

    def __init__(self, keys: Sequence[str], seed: int, batch_size: int) -> None:
        if batch_size > len(keys):
            raise UserError(
                f"config.train.batch_size = {batch_size} is more than the {len(keys)} training pictures; "
                f"use at most {len(keys)}, or a larger config.pictures.subset"
            )
        self._keys = list(keys)
        self._seed = seed
        self._batch_size = batch_size

    def keys(self, batch: int, part: int, num_parts: int) -> list[str]:
        """Keys of the pictures in part `part` of `num_parts` of global batch `batch`."""
        rows = self._batch_size // num_parts
        epoch, within = divmod(batch, len(self._keys) // self._batch_size)
        start = epoch * len(self._keys) + within * self._batch_size + part * rows
        order = shuffled(np.arange(start, start + rows), len(self._keys), self._seed, "picture batches")
        return [self._keys[index] for index in order]
